"""Which correlations the models of a run use: how far they are from belief propagation that ignores the upper levels.

BP_k is the best predictor of the language filtered to height k (exact/filtered.py): it knows all correlations within a
sub-tree of 2^k leaves, and takes different sub-trees as independent given the root. A model in training that learns one
level after the other is closest to BP_0 first, then to BP_1, and so on.

J. Garnier-Brun, M. Mezard, E. Moscato and L. Saglietti, ICML 2025, arXiv:2408.15138.
"""

from __future__ import annotations

from collections.abc import Iterable

from RLM_clean import measures
from RLM_clean.analysis.predictions import model_at, model_steps
from RLM_clean.exact import filtered
from RLM_clean.exact.entropies import Estimate
from RLM_clean.runs.run import Run


def filtered_divergences(
    run: Run, steps: Iterable[int] | None = None, ks: Iterable[int] | None = None, num_samples: int = 2048
) -> dict[int, list[Estimate]]:
    """`{k: [E KL(BP_k || model) and its standard error, for each step]}`, in nats, for any task.

    The expectation is over contexts of the language of the run, and over the targets of each. The curve of k is zero
    where the model predicts as BP_k does; that of the largest k, the height of the whole tree, is the excess. `steps`
    are all of `predictions.model_steps(run)` by default, and `ks` all heights.

    Raises ValueError for a k that is not a height of the language, and for a step without weights.
    """
    contexts = measures.reference(run.rlm, run.config.context_size, run.task, num_samples)
    chosen = list(filtered.heights(run.rlm) if ks is None else ks)
    predictors = measures.filtered_predictions(run.rlm, contexts, run.task, chosen)
    found: dict[int, list[Estimate]] = {k: [] for k in chosen}
    for step in model_steps(run) if steps is None else steps:
        at_step = contexts.divergences(model_at(run, step), predictors, run.logits)
        for k, estimate in zip(chosen, at_step, strict=True):
            found[k].append(estimate)
    return found


def filtered_floors(run: Run, num_samples: int = 2048) -> dict[int, filtered.Comparison]:
    """What BP_k loses on the task of a run: `{k: (its loss, its divergence from the best predictor)}`, in nats."""
    contexts = measures.reference(run.rlm, run.config.context_size, run.task, num_samples)
    predictors = measures.filtered_predictions(run.rlm, contexts, run.task).unbind(1)
    return {
        k: filtered.compare(contexts.posteriors, predicted, contexts.positions, contexts.weights)
        for k, predicted in zip(filtered.heights(run.rlm), predictors, strict=True)
    }
