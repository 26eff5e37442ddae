"""The staircase: a transformer learns the levels of a tree one after the other. `python -m examples.staircase`.

Trains one model on the Random Hierarchy Model (v = 32, m = 8, L = 3) and the same one on the Random Language Model
(v = 32, beta = 3, L = 3), and draws both test losses against the floors H_k, the best losses from the last
k = 0, 1, 3, 7 tokens. Both runs together take half an hour on one core; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from RLM_clean import plots
from RLM_clean.checkpoints import atomic_write, load_run
from RLM_clean.config import Config
from RLM_clean.experiment import train

MODEL: dict[str, Any] = {
    'num_features': 32,
    'num_layers': 3,
    'depth': 3,
    'embedding_dim': 128,
    'num_heads': 4,
    'optim': 'adam',
    'lr': 1e-3,
    'batch_size': 128,
    'warmup_time': 200,
    'print_freq': 500,
    'checkpoints': False,
}
LANGUAGES: dict[str, dict[str, Any]] = {
    'rhm': {'dataset': 'rhm', 'num_synonyms': 8, 'max_iters': 20000, 'decay_time': 20000},
    'rlm': {'dataset': 'rlm', 'beta': 3.0, 'max_iters': 12000, 'decay_time': 12000},
}


def main() -> None:
    """Trains what is not trained yet and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=Path('results/staircase'), help='where the runs are kept')
    parser.add_argument('--picture', type=Path, default=Path('docs/images/staircase.png'), help='the figure')
    parser.add_argument('--max_iters', type=int, help='stop earlier, to try the command out')
    parser.add_argument('--threads', default='auto', help='threads of the CPU')
    arguments = parser.parse_args()

    figure = Figure(figsize=(11, 4.4), layout='constrained')
    for (name, language), axes in zip(LANGUAGES.items(), figure.subplots(1, 2), strict=True):
        options = {**MODEL, **language, 'threads': arguments.threads}
        if arguments.max_iters is not None:
            options['max_iters'] = arguments.max_iters
        outname = str(arguments.folder / name)
        if train(Config(outname=outname, **options)).status == 'interrupted':
            return
        run = load_run(outname)
        assert run.floors is not None and run.entropy is not None
        plots.learning_curve(run.dynamics, run.floors, run.entropy, plots.run_title(run.config), axes)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.picture, lambda file: figure.savefig(file, format='png', dpi=130))
    print(f'the figure is {arguments.picture}')


if __name__ == '__main__':
    main()
