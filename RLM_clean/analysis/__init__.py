"""Analysis of trained models: predictions, filtered predictors, probes, samples, learners that count, counts of tokens."""

from RLM_clean.analysis import baselines, counting, filtering, generation, predictions, probes

__all__ = ['baselines', 'counting', 'filtering', 'generation', 'predictions', 'probes']
