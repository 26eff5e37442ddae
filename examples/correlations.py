"""Correlations decay with the distance on the tree: `python -m examples.correlations`.

Draws the exact mutual information of two tokens against the height of their lowest common ancestor, for Random Language
Models at several beta and for Random Hierarchy Models with several numbers of synonyms: the arithmetic mean over
grammars, and the geometric mean. The dashed theory of the arithmetic mean multiplies the information at each level by
lambda^4, where lambda is the size of the second eigenvalue of the transition matrices (RLM), or by 1 / m^2 (RHM;
F. Cagnetta and M. Wyart, NeurIPS 2024, arXiv:2406.00048). A sub-tree of height h has 2^h tokens, so an exponential
decay in h is a power law in the distance between tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from RLM_clean import plots
from RLM_clean.datasets import RHM, RLM
from RLM_clean.plots import style

BETAS = (1, 1.5, 2, 3, 4)
SYNONYMS = (2, 4, 8, 16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--picture', type=Path, default=Path('results/correlations.png'), help='the figure')
    parser.add_argument('--quick', action='store_true', help='shallow trees of one grammar each, takes seconds')
    options = parser.parse_args(arguments)
    v, depth, seeds = (20, 3, 1) if options.quick else (32, 6, 8)

    left, right = plots.panels(1, 2, size=(11, 4.4))
    plots.information_decay([RLM(v, depth, beta, seed_rules=seed) for beta in BETAS for seed in range(seeds)], left)
    plots.information_decay([RHM(v, m, depth, seed_rules=seed) for m in SYNONYMS for seed in range(seeds)], right)
    with style.context():
        left.set_title(f'Random Language Model, v = {v}')
        right.set_title(f'Random Hierarchy Model, v = {v}')
    style.save(left.figure, options.picture)
    print(f'the figure is {options.picture}')


if __name__ == '__main__':
    main()
