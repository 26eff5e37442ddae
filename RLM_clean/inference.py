"""The import path of the first version: see `RLM_clean.exact.inference`."""

from RLM_clean.exact.inference import (
    all_next_token_probs,
    ancestor_posteriors,
    log_likelihood,
    most_probable_tree,
    next_token_probs,
    sample_posterior,
    spine_posteriors,
)

__all__ = [
    'all_next_token_probs', 'ancestor_posteriors', 'log_likelihood', 'most_probable_tree', 'next_token_probs',
    'sample_posterior', 'spine_posteriors',
]  # fmt: skip
