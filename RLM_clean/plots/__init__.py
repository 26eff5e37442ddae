"""The figures of runs, sweeps and languages. Each function draws into given axes, or makes a figure of its own."""

from RLM_clean.plots.comparison import compare
from RLM_clean.plots.interactive import slider
from RLM_clean.plots.language import (
    deviations,
    entropies,
    information_decay,
    ladder,
    pair_frequencies,
    path_decay,
    token_frequencies,
)
from RLM_clean.plots.models import (
    ancestor_curves,
    attention_maps,
    film,
    filtered_curves,
    generation_scores,
    probe_curves,
    window_curves,
)
from RLM_clean.plots.nodes import interchange_curves, node_probes, steering_changes, steering_effects
from RLM_clean.plots.rules import language_name, ranked_rules, rule_entropies, rule_maps, rule_participation
from RLM_clean.plots.runs import excess_curve, floor_lines, learning_curve, run_title, save_learning_curve
from RLM_clean.plots.scaling import collapsed, power_law, size_curves, thresholds
from RLM_clean.plots.style import BLUE, GREEN, GREY, ORANGE, panels
from RLM_clean.plots.sweeps import excess_map, plot_sweep, save_sweep
from RLM_clean.plots.trees import ambiguity_by_level, posterior_tree, token_strips, tree

__all__ = [
    'BLUE', 'GREEN', 'GREY', 'ORANGE', 'ambiguity_by_level', 'ancestor_curves', 'attention_maps', 'collapsed',
    'compare', 'deviations', 'entropies', 'excess_curve', 'excess_map', 'film', 'filtered_curves', 'floor_lines',
    'generation_scores', 'information_decay', 'interchange_curves', 'ladder', 'language_name', 'learning_curve',
    'node_probes', 'pair_frequencies', 'panels', 'path_decay', 'plot_sweep', 'posterior_tree', 'power_law',
    'probe_curves', 'ranked_rules', 'rule_entropies', 'rule_maps', 'rule_participation', 'run_title',
    'save_learning_curve', 'save_sweep', 'size_curves', 'slider', 'steering_changes', 'steering_effects', 'thresholds',
    'token_frequencies', 'token_strips', 'tree', 'window_curves',
]  # fmt: skip
