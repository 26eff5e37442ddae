"""The staircase: a transformer learns the levels of a tree one after the other. `python -m examples.staircase`.

Trains one model on the Random Hierarchy Model (v = 16, m = 4, L = 3) and one of the same shape on the Random Language
Model (v = 16, beta = 3, L = 3), and draws both test losses against the floors H_k, the best losses from the last
k = 0, 1, 3, 7 tokens. Prints the step at which each floor is passed and the excess at the end. Both runs together took
four minutes on two cores. After an interruption, the same command continues. `--deep` trains one model on the Random
Hierarchy Model with a fourth level, for longer; `--quick` trains on small languages of two levels, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from examples import make_parser, places, trained
from RLM_clean import plots
from RLM_clean.plots import style
from RLM_clean.runs.run import Run

MODEL: dict[str, Any] = {
    'num_features': 16, 'num_layers': 3, 'depth': 3, 'embedding_dim': 64, 'num_heads': 4, 'optim': 'adam', 'lr': 2e-3,
    'batch_size': 128, 'warmup_time': 200, 'max_iters': 20000, 'decay_time': 20000, 'print_freq': 500,
    'checkpoints': False,
}  # fmt: skip
LANGUAGES: dict[str, dict[str, Any]] = {
    'rhm': {'dataset': 'rhm', 'num_synonyms': 4},
    'rlm': {'dataset': 'rlm', 'beta': 3.0},
}

DEEP: dict[str, Any] = {'num_layers': 4, 'depth': 4, 'max_iters': 65536, 'decay_time': 65536}

QUICK: dict[str, Any] = {
    'num_features': 8, 'num_layers': 2, 'depth': 1, 'embedding_dim': 16, 'batch_size': 32, 'num_synonyms': 2,
    'max_iters': 300, 'decay_time': 300, 'lr': 1e-2, 'warmup_time': 20, 'print_freq': 100, 'test_size': 512,
}  # fmt: skip


def passed(run: Run) -> str:
    """At which of its recorded steps a run is first below each floor, and its excess at the end."""
    parts = []
    for k, (floor, _) in list(run.floors.items())[:-1]:
        below = [record['t'] for record in run.dynamics if record['testloss'] < floor]
        parts.append(f'below H_{k} from step {below[0]}' if below else f'not below H_{k}')
    last = run.dynamics[-1]
    return f'{", ".join(parts)}; excess over H_{max(run.floors)} at step {last["t"]}: {last["excess"]:.4f}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet and draws the figure."""
    parser = make_parser('staircase', __doc__, deep='four levels')
    parser.add_argument('--max_iters', type=int, help='stop earlier, to try the command out')
    parser.add_argument('--threads', default='auto', help='threads of the CPU')
    options = parser.parse_args(arguments)
    folder, picture = places('staircase', options)
    changes = DEEP if options.deep else QUICK if options.quick else {}
    languages = {'rhm': LANGUAGES['rhm']} if options.deep else LANGUAGES

    panels = np.atleast_1d(plots.panels(1, len(languages), size=(5.5 * len(languages), 4.4)))
    for (name, language), axes in zip(languages.items(), panels, strict=True):
        values = {**MODEL, **language, **changes, 'threads': options.threads}
        if options.max_iters is not None:
            values['max_iters'] = options.max_iters
        run = trained(folder / name, **values)
        print(f'{name}: {passed(run)}')
        plots.learning_curve(run.dynamics, run.floors, run.entropy, plots.run_title(run.config), axes)
    style.save(panels[0].figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
