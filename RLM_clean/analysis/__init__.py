"""Analysis of trained models: predictions, filtered predictors, probes, samples, counts, learners that count."""

from RLM_clean.analysis import baselines, counting, filtering, generation, predictions, probes

__all__ = ['baselines', 'counting', 'filtering', 'generation', 'predictions', 'probes']
