"""Analysis of trained models: predictions, probes, generated sequences; and counts of tokens in samples."""

from RLM_clean.analysis import counting, generation, predictions, probes

__all__ = ['counting', 'generation', 'predictions', 'probes']
