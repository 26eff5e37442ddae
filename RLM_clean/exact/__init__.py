"""What is known exactly of a language: inference, entropies (the floors), correlations, closed formulas."""

from RLM_clean.exact import correlations, entropies, inference, theory

__all__ = ['correlations', 'entropies', 'inference', 'theory']
