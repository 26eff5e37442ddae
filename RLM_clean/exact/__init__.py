"""What is known exactly of a language: inference, entropies (the floors), correlations, noise, closed formulas."""

from RLM_clean.exact import averaged_map, correlations, denoising, entropies, filtered, inference, theory

__all__ = ['averaged_map', 'correlations', 'denoising', 'entropies', 'filtered', 'inference', 'theory']
