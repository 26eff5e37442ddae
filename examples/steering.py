"""Inside a transformer: what its layers know of the tree, read and changed. `python -m examples.steering`.

Trains a transformer of depth 3 on the Random Hierarchy Model (v = 16, m = 4, L = 3), a few minutes on one core, and
does three experiments with it, each compared with exact inference on the tree:

- probes: how much of what can be known of each hidden symbol a linear probe finds in each layer;
- interchange: the residual stream of another context is patched in at the last position;
- steering: the residual stream is moved along the probe of a hidden symbol, from symbol a to symbol b, beside random
  directions of the same length.

It prints the numbers with their standard errors and draws them. After an interruption, the same command continues.
`--quick` trains on a small language of two levels, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples import make_parser, places, trained
from RLM_clean import plots
from RLM_clean.analysis import interventions, probes
from RLM_clean.analysis.interventions import Interchange, Steering, Values
from RLM_clean.analysis.predictions import Table
from RLM_clean.analysis.probes import NodeProbes
from RLM_clean.plots import style

RUN: dict[str, Any] = {
    'dataset': 'rhm', 'num_features': 16, 'num_synonyms': 4, 'num_layers': 3, 'depth': 3, 'num_heads': 4,
    'optim': 'adam', 'lr': 3e-3, 'batch_size': 128, 'max_iters': 10000, 'decay_time': 10000, 'threads': 1,
}  # fmt: skip
QUICK: dict[str, Any] = {
    'num_features': 6, 'num_synonyms': 3, 'num_layers': 2, 'depth': 2, 'num_heads': 2, 'embedding_dim': 16,
    'batch_size': 64, 'max_iters': 300, 'decay_time': 300, 'print_freq': 100, 'test_size': 256,
}  # fmt: skip
SIZES: dict[str, Any] = {'num_train': 4096, 'num_test': 2048}
QUICK_SIZES: dict[str, Any] = {'num_train': 128, 'num_test': 128}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the tables and draws the figure."""
    options = make_parser('steering', __doc__).parse_args(arguments)
    folder, picture = places('steering', options)
    sizes = QUICK_SIZES if options.quick else SIZES

    run = trained(folder / 'rhm', **{**RUN, **(QUICK if options.quick else {})})
    print(run)
    known = probes.probe_nodes(run, **sizes)
    exchanged = interventions.interchange(run, num_pairs=sizes['num_test'])
    print(f'\ninterchange, {exchanged.number} pairs of contexts: divergences in nats')
    print(interchange_table(exchanged), end='\n\n')
    steered = interventions.steering_effects(run, **sizes)
    print(f'steering, {", ".join(str(number) for number in steered.number.tolist())} contexts')
    print(steering_table(steered))
    style.save(draw(known, exchanged, steered), picture)
    print(f'the figure is {picture}')


def interchange_table(found: Interchange) -> Table:
    """E KL(exact prediction with the last k tokens of the donor || patched model) in nats, layer by layer."""
    header = ['patched after', *(f'k = {k}' for k in found.windows)]
    columns = range(len(found.windows))
    rows = [[layer, *(_entry(found.divergence, k, j) for j in columns)] for k, layer in enumerate(found.layers)]
    return Table(header, rows)


def steering_table(found: Steering) -> Table:
    """The measures of steering of each symbol in each layer."""
    header = ['symbol', 'steered after']
    header += ['change exact', 'change', 'change random', 'effect', 'effect random', 'correlation', 'random']
    tables = [found.change['exact'], found.change['steered'], found.change['random']]
    tables += [getattr(found, name)[c] for name in ('effect', 'correlation') for c in ('steered', 'random')]
    rows = [
        [f'level {level}', layer, *(_entry(table, k, j) for table in tables)]
        for j, (level, _) in enumerate(found.nodes)
        for k, layer in enumerate(found.layers)
    ]
    return Table(header, rows)


def _entry(values: Values, row: int, column: int) -> str:
    return f'{values.value[row, column].item():.3f} ± {values.error[row, column].item():.3f}'


def draw(known: NodeProbes, exchanged: Interchange, steered: Steering) -> Figure:
    """The probes of each layer above; below, interchange, and the effect and the size of the steered changes."""
    with style.context():
        figure = Figure(figsize=(11, 7.4))
        upper, lower = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.6))))
        plots.node_probes(known, axes=upper.subplots(1, len(known.layers), sharex=True, sharey=True))
        left, middle, right = lower.subplots(1, 3)
        plots.interchange_curves(exchanged, left).set_title('patched at the last position')
        plots.steering_effects(steered, middle).set_title('steered towards the exact prediction')
        layer = steered.layers[1]
        plots.steering_changes(steered, layer, right).set_title('which symbols matter')
    return figure


if __name__ == '__main__':
    main()
