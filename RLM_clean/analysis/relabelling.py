"""The names of hidden symbols: which symbol of one language stands for which of another with the same rules.

Sequences say nothing of the names of hidden symbols, so rules that were estimated from them are compared with the true
ones up to a permutation of the symbols of each level above the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar


def match_symbols(fitted: TreeGrammar, true: TreeGrammar) -> list[Tensor]:
    """For each level l = 0..L - 1 a permutation `p (v,)`: symbol a of `fitted` stands for symbol p[a] of `true`.

    From the parents of tokens up, a level is matched by its rules, whose children have the names of `true` by then: p
    minimises the sum over a of the total variation distances `1/2 sum_bc |T[a, b, c] - T_true[p[a], b, c]|`, a linear
    assignment problem (D. F. Crouse, IEEE Trans. Aerosp. Electron. Syst. 52, 1679, 2016, is the algorithm of scipy).
    Rules that all levels share are matched on each level too: permutations other than the identity then say that
    `fitted` is another language. Raises ValueError for languages of different sizes.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    _check_sizes(fitted, true)
    names = torch.arange(true.v)
    found: list[Tensor] = []
    for level in reversed(range(true.L)):
        T = _with_named_children(fitted.level_rules(level), names)
        rows, columns = linear_sum_assignment(_distances(T, true.level_rules(level)).numpy())
        names = torch.empty(true.v, dtype=torch.int64)
        names[torch.from_numpy(rows)] = torch.from_numpy(columns)
        found.insert(0, names)
    return found


def relabelled_rules(fitted: TreeGrammar, permutations: list[Tensor]) -> Tensor:
    """The rules with new names, `(L, v, v, v)` float64: `T'_l[p_l[a], p_(l+1)[b], p_(l+1)[c]] = T_l[a, b, c]`.

    `permutations` are the p_l of levels 0..L - 1, as `match_symbols` gives them; tokens keep their names.
    """
    below = [*permutations[1:], torch.arange(fitted.v)]
    rules = torch.empty(fitted.L, *[fitted.v] * 3, dtype=torch.float64)
    for level, (parents, children) in enumerate(zip(permutations, below, strict=True)):
        rules[level, parents] = _with_named_children(fitted.level_rules(level), children)
    return rules


def rule_distances(fitted: TreeGrammar, true: TreeGrammar) -> Tensor:
    """The total variation distance of each rule from the true one, `(L, v)`, once symbols have the names of `true`.

    `1/2 sum_bc |T_l[a, b, c] - T_true_l[a, b, c]|` for symbol a of level l of `true`, between 0 and 1; the names are
    those of `match_symbols`. Where levels have rules of their own, those at the root cannot be told apart by sequences:
    their distances say nothing of a fit.
    """
    rules = relabelled_rules(fitted, match_symbols(fitted, true))
    of_true = torch.stack([true.level_rules(level) for level in range(true.L)])
    return (rules - of_true).abs().sum((2, 3)) / 2


def _with_named_children(T: Tensor, names: Tensor) -> Tensor:
    """`T'[a, names[b], names[c]] = T[a, b, c]`."""
    place = names.argsort()
    return T[:, place][:, :, place]


def _distances(T: Tensor, true: Tensor) -> Tensor:
    """The total variation distance of each rule a of T from each rule of `true`, `(v, v)`."""
    return torch.stack([(rule - true).abs().sum((1, 2)) / 2 for rule in T])


def _check_sizes(fitted: TreeGrammar, true: TreeGrammar) -> None:
    if (fitted.v, fitted.L) != (true.v, true.L):
        raise ValueError(
            f'v={fitted.v}, L={fitted.L} do not fit v={true.v}, L={true.L}: compare languages of the same sizes'
        )
