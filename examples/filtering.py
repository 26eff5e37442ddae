"""Filtering: a transformer on masked tokens follows belief propagation level by level. `python -m examples.filtering`.

Trains bidirectional transformers to predict hidden tokens of the unambiguous grammar of Garnier-Brun, Mezard, Moscato
and Saglietti (arXiv:2408.15138; v = 4, L = 4, sigma = 1), with one hidden token in each sequence, as they do. At each
checkpoint a model is compared with BP_k, the best predictor that knows the correlations within sub-trees of 2^k tokens
alone (their k counts the levels that are removed: it is L - k). Prints for each k the first step at which the model is
closer to BP_k, or to one of more levels, than to the others: the mean over seeds of the grammar and of the model, with
its standard error. Draws the curves of the first run.

After an interruption, the same command continues. `--quick` trains
small models on trees of two levels, in seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from RLM_clean import plots
from RLM_clean.analysis import filtering, predictions
from RLM_clean.config import Config
from RLM_clean.exact.entropies import Estimate
from RLM_clean.plots import style
from RLM_clean.runs import load_run
from RLM_clean.training import train

OPTIONS: dict[str, Any] = {
    'dataset': 'unambiguous', 'num_features': 4, 'num_layers': 4, 'objective': 'masked', 'mask_rate': 1 / 16,
    'model': 'transformer_bert', 'depth': 4, 'embedding_dim': 64, 'num_heads': 4, 'optim': 'adam', 'lr': 2e-3,
    'batch_size': 128, 'max_iters': 16384, 'decay_time': 16384, 'warmup_time': 200, 'save_freq': 2,
}  # fmt: skip
QUICK: dict[str, Any] = {
    'num_layers': 2, 'mask_rate': 0.25, 'depth': 2, 'embedding_dim': 16, 'num_heads': 2, 'batch_size': 32,
    'max_iters': 512, 'decay_time': 512, 'warmup_time': 20, 'lr': 1e-2, 'save_freq': 1,
}  # fmt: skip

Divergences = dict[int, list[Estimate]]


def closest(divergences: Divergences) -> list[int]:
    """The k of the smallest divergence at each step."""
    number = len(next(iter(divergences.values())))
    return [min(divergences, key=lambda k: divergences[k][i][0]) for i in range(number)]


def first_steps(steps: Sequence[int], divergences: Divergences) -> dict[int, float]:
    """For each k the first step at which the smallest divergence is that of k or more; infinite if there is none."""
    nearest = closest(divergences)
    return {
        k: next((float(step) for step, j in zip(steps, nearest, strict=True) if j >= k), math.inf) for k in divergences
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, help='where the runs are kept, results/filtering by default')
    parser.add_argument('--picture', type=Path, help='the figure, filtering.png in that folder by default')
    parser.add_argument('--quick', action='store_true', help='small runs, to try the command out')
    parser.add_argument('--seeds', type=int, default=3, help='runs with other grammars and models')
    parser.add_argument('--threads', default='auto', help='threads of the CPU')
    options = parser.parse_args(arguments)
    folder = options.folder or Path('results/filtering_quick' if options.quick else 'results/filtering')
    values = {**OPTIONS, **(QUICK if options.quick else {}), 'threads': options.threads}

    found = []
    for seed in range(1, options.seeds + 1):
        config = Config(outname=str(folder / f'seed{seed}'), seed_rules=seed, seed_model=seed, **values)
        if train(config).status == 'interrupted':
            return
        run = load_run(config.outname)
        steps = predictions.model_steps(run)
        found.append(first_steps(steps, filtering.filtered_divergences(run, steps)))
        print(f'seed {seed}: the loss of BP_k and its divergence from the best predictor (nats)')
        for k, (loss, divergence) in filtering.filtered_floors(run).items():
            print(f'  k = {k}: {loss[0]:.4f} +- {loss[1]:.4f}, {divergence[0]:.4f} +- {divergence[1]:.4f}')
        print(f'  excess of the model at its end: {run.dynamics[-1]["excess"]:.4f}')
    print('the first step at which the model is closest to BP_k or to one of more levels:')
    for k in found[0]:
        print(f'  k = {k}: {_mean([steps[k] for steps in found])}')
    picture = options.picture or folder / 'filtering.png'
    _draw(folder / 'seed1', picture)
    print(f'the figure is {picture}')


def _mean(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return f'in {sum(map(math.isfinite, values))} of {len(values)} runs'
    if len(values) == 1:
        return f'{values[0]:.0f} (one run)'
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f'{statistics.mean(values):.0f} +- {error:.0f} (mean of {len(values)} runs, standard error)'


def _draw(outname: Path, picture: Path) -> None:
    """The learning curve of a run with the losses of BP_k as lines, and its divergences from BP_k."""
    run = load_run(outname)
    left, right = plots.panels(1, 2, size=(11, 4.4))
    floors = {k: loss for k, (loss, _) in filtering.filtered_floors(run).items()}
    plots.learning_curve(run.dynamics, floors, floors[max(floors)][0], plots.run_title(run.config), left, seen='BP_k')
    steps = predictions.model_steps(run)
    plots.filtered_curves(steps, filtering.filtered_divergences(run, steps), right)
    right.set_title('divergence from belief propagation of k levels')
    style.save(left.figure, picture)


if __name__ == '__main__':
    main()
