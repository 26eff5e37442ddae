"""Analysis of trained models: predictions, filtered predictors, probes, interventions, samples, learners that count."""

from RLM_clean.analysis import (
    baselines,
    counterfactuals,
    counting,
    filtering,
    generation,
    interventions,
    layers,
    predictions,
    probes,
)

__all__ = [
    'baselines', 'counterfactuals', 'counting', 'filtering', 'generation', 'interventions', 'layers', 'predictions',
    'probes',
]  # fmt: skip
