"""Figures of nodes draw the tree and the measures that they are given, and can be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from analysed import run_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from readable import assert_readable, legend_texts

from RLM_clean import plots
from RLM_clean.analysis import interventions, probes
from RLM_clean.analysis.interventions import Interchange, Steering, Values
from RLM_clean.analysis.probes import NodeProbes
from RLM_clean.datasets import RLM

LAYERS = ['embeddings', 'block 1', 'block 2', 'block 3', 'block 4']


def node_values(L: int, layers: int) -> NodeProbes:
    """Divergences that rise with the number of the node and fall with the layer; the root is not seen."""
    nodes = [(l, i) for l in range(L + 1) for i in range(2**l)]
    J = len(nodes)
    values = (torch.arange(J, dtype=torch.float64) / J).expand(layers, J) / torch.arange(1, layers + 1)[:, None]
    conditions = {'trained': values, 'untrained': values + 0.5, 'shuffled': values + 1}
    information = torch.ones(J, dtype=torch.float64)
    information[0] = 0
    return NodeProbes(
        LAYERS[:layers], nodes, conditions, conditions, conditions, information, information, information, conditions
    )


def figure_of(axes: Axes) -> Figure:
    assert isinstance(axes.figure, Figure)
    return axes.figure


def panels_of(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() != '<colorbar>']


@pytest.mark.parametrize(('L', 'layers'), [(1, 2), (3, 4), (3, 5), (5, 3)])
def test_each_layer_is_a_tree_whose_fields_have_the_fraction_of_each_symbol(L: int, layers: int) -> None:
    found = node_values(L, layers)
    figure = plots.node_probes(found)
    assert_readable(figure)
    shown = [panel for panel in panels_of(figure) if panel.get_visible()]
    assert [panel.get_title(loc='left') for panel in shown] == LAYERS[:layers]
    for panel, fractions in zip(shown, found.fraction(), strict=True):
        fields = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
        assert len(fields) == len(found.nodes) == 2 ** (L + 1) - 1
        for (level, i), field in zip(found.nodes, fields, strict=True):
            width = 2 ** (L - level)
            assert field.get_bbox().bounds == (i * width + 0.5, level - 0.5, width, 1)
        texts = [text.get_text() for text in panel.texts]
        assert texts == ([f'{100 * f:.0f}' for f in fractions[1:].tolist()] if L <= 3 else [])
        assert np.allclose(fields[0].get_facecolor(), np.array([0xDD, 0xDD, 0xDD, 0xFF]) / 255)  # nothing is seen
        brightness = [np.asarray(field.get_facecolor(), dtype=float).sum() for field in fields[1:]]
        assert brightness == sorted(brightness, reverse=True)
    lower = plots.node_probes(found, 'untrained')
    assert panels_of(lower)[0].texts[0].get_text() != shown[0].texts[0].get_text() if L <= 3 else True


def steering() -> Steering:
    values = torch.arange(12, dtype=torch.float64).view(4, 3) / 20
    error = values / 100

    def conditions(*names: str) -> dict[str, Values]:
        return {name: Values(values + i / 5, error) for i, name in enumerate(names)}

    return Steering(
        LAYERS[:4], [(1, 0), (2, 2), (3, 6)], torch.tensor([9, 9, 9]),
        conditions('unsteered', 'steered', 'random'), conditions('random', 'steered'),
        conditions('random', 'steered'), conditions('random', 'steered', 'exact'), values,
    )  # fmt: skip


def test_effects_of_steering_are_lines_over_the_layers_with_errors() -> None:
    found = steering()
    axes = plots.steering_effects(found)
    assert_readable(figure_of(axes))
    assert legend_texts(axes) == ['random direction', 'level 1', 'level 2', 'level 3']
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS[:4]
    for j in range(3):
        for container, condition in zip(axes.containers[2 * j : 2 * j + 2], ('steered', 'random'), strict=True):
            line, _, (bars,) = container
            value, error = found.effect[condition]
            np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), value[:, j])
            assert line.get_linestyle() == ('-' if condition == 'steered' else '--')
            heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
            np.testing.assert_allclose(heights, 4 * error[:, j], atol=1e-12)


def test_changes_are_drawn_beside_those_of_the_exact_posterior() -> None:
    found = steering()
    for layer, k in ((None, 3), ('block 1', 1)):
        axes = plots.steering_changes(found, layer)
        assert_readable(figure_of(axes))
        assert legend_texts(axes) == ['exact posterior', f'steered, {LAYERS[k]}', 'random direction']
        for container, condition in zip(axes.containers, ('exact', 'steered', 'random'), strict=True):
            np.testing.assert_allclose(
                np.asarray(container[0].get_ydata(), dtype=float), found.change[condition].value[k]
            )
    assert [label.get_text() for label in axes.get_xticklabels()] == ['level 1', 'level 2', 'level 3']


def test_nodes_of_one_level_are_told_apart() -> None:
    found = steering()
    found.nodes = [(1, 0), (2, 2), (2, 1)]
    assert legend_texts(plots.steering_effects(found))[1:] == [
        'node 1 of level 1', 'node 3 of level 2', 'node 2 of level 2',
    ]  # fmt: skip


def test_interchange_is_a_line_for_each_number_of_tokens() -> None:
    values = torch.arange(1, 17, dtype=torch.float64).view(4, 4)
    axes = plots.interchange_curves(Interchange(LAYERS[:4], [0, 1, 3, 7], 9, Values(values, values / 100)))
    assert_readable(figure_of(axes))
    assert legend_texts(axes) == ['k = 0', 'k = 1', 'k = 3', 'k = 7']
    for w, container in enumerate(axes.containers):
        np.testing.assert_allclose(np.asarray(container[0].get_ydata(), dtype=float), values[:, w])
    assert axes.get_yscale() == 'log' and '(nats)' in axes.get_ylabel()


def test_figures_of_a_run_can_be_drawn_into_given_axes() -> None:
    run = run_of(RLM(v=4, L=2, beta=1.0), depth=1)
    few: dict[str, Any] = {'num_train': 60, 'num_test': 40}
    axes = np.ravel(np.asarray(plots.panels(2, 3, size=(12, 7))))
    assert plots.node_probes(probes.probe_nodes(run, **few), axes=axes[:2]) is axes[0].figure
    steered = interventions.steering_effects(run, **few)
    assert plots.steering_effects(steered, axes[2]) is axes[2]
    assert plots.steering_changes(steered, axes=axes[3]) is axes[3]
    assert plots.interchange_curves(interventions.interchange(run, num_pairs=20), axes[4]) is axes[4]
    axes[0].figure.draw_without_rendering()
    assert all(panel.has_data() or panel.patches for panel in axes[:5]) and not axes[5].has_data()
