"""What is learnt from trained models: predictions, probes, generated sequences, and counts beside them."""

from RLM_clean.analysis import counting, generation, predictions, probes

__all__ = ['counting', 'generation', 'predictions', 'probes']
