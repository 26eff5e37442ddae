"""What is known exactly of a language: inference, entropies (the floors), correlations, closed formulas."""

from RLM_clean.exact import correlations, entropies, filtered, inference, theory

__all__ = ['correlations', 'entropies', 'filtered', 'inference', 'theory']
