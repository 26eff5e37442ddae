"""Analysis of trained models: predictions, probes, samples, learners that count, counts of tokens."""

from RLM_clean.analysis import baselines, counting, generation, predictions, probes

__all__ = ['baselines', 'counting', 'generation', 'predictions', 'probes']
