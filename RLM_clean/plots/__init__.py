"""The figures, for finished runs and for notebooks alike: each draws into given axes, or makes its own."""

from RLM_clean.plots.runs import excess_curve, floor_lines, learning_curve, run_title, save_learning_curve
from RLM_clean.plots.style import BLUE, GREEN, GREY, ORANGE, panels
from RLM_clean.plots.sweeps import plot_sweep, save_sweep

__all__ = [
    'BLUE', 'GREEN', 'GREY', 'ORANGE', 'excess_curve', 'floor_lines', 'learning_curve', 'panels', 'plot_sweep',
    'run_title', 'save_learning_curve', 'save_sweep',
]  # fmt: skip
