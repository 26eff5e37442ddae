"""Analysis: what trained models have learnt, learners that count beside them, fits and thresholds of many runs."""

from RLM_clean.analysis import (
    baselines,
    collapse,
    counterfactuals,
    counting,
    expectation_maximisation,
    filtering,
    generation,
    interventions,
    layers,
    linear_probe,
    predictions,
    probes,
    relabelling,
    scaling,
    smoothing,
    thresholds,
)

__all__ = [
    'baselines', 'collapse', 'counterfactuals', 'counting', 'expectation_maximisation', 'filtering', 'generation',
    'interventions', 'layers', 'linear_probe', 'predictions', 'probes', 'relabelling', 'scaling', 'smoothing',
    'thresholds',
]  # fmt: skip
