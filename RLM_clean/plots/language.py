"""The figures of a language's tokens: frequencies against exact laws, floors, and the decay of correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from RLM_clean import exact
from RLM_clean.analysis import counting
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import correlations, theory
from RLM_clean.plots.rules import language_name
from RLM_clean.plots.style import BLACK, BLUE, CYCLE, GREEN, GREY, ORANGE, own_axes, styled

# Counts with fewer expected than this are not near normal.
_LEAST_EXPECTED = 20


# ---------------------------------------------------------------------- sampled against exact


@styled
def token_frequencies(grammar: TreeGrammar, sequences: Tensor, axes: Axes | None = None) -> Axes:
    """The frequency of each symbol at each position of `sequences (N, n)` against its exact probability.

    The band is the exact value with two standard errors on either side, `sqrt(p (1 - p) / N)` each. Axes are
    logarithmic where probabilities differ by more than a factor of 30.
    """
    sampled = counting.empirical_marginals(sequences, grammar.v)
    return _against_exact(correlations.leaf_marginals(grammar), sampled, len(sequences), 'one token', axes)


@styled
def pair_frequencies(
    grammar: TreeGrammar, sequences: Tensor, i: int = -2, j: int = -1, axes: Axes | None = None
) -> Axes:
    """The same for the pairs of symbols at positions i and j, the last two by default; negative ones are from the end.

    Pairs that did not occur have no place on the axis: the legend counts them.
    """
    i, j = i % sequences.shape[1], j % sequences.shape[1]
    sampled = counting.empirical_joint(sequences, i, j, grammar.v)
    exact = correlations.joint(grammar, i, j)
    return _against_exact(exact, sampled, len(sequences), f'tokens {i + 1} and {j + 1}', axes)


def _against_exact(exact: Tensor, sampled: Tensor, N: int, what: str, axes: Axes | None) -> Axes:
    axes = own_axes(axes, (5, 4.2))
    p, f = exact.flatten().numpy(), sampled.flatten().numpy()
    seen = f > 0
    line = np.geomspace(max(p[p > 0].min(), 0.05 / N), p.max(), 200)
    error = np.sqrt(line * (1 - line) / N)
    axes.fill_between(
        line, np.maximum(line - 2 * error, 1e-12), line + 2 * error, color='#DDDDDD', lw=0, label='two standard errors'
    )
    axes.plot(line, line, color=GREY, lw=1, label='exact')
    unseen = f'; {(~seen).sum()} of {len(f)} not seen' if not seen.all() else ''
    axes.plot(p[seen], f[seen], '.', color=BLUE, alpha=0.7, label=f'sampled{unseen}')
    if line[-1] > 30 * line[0]:  # a narrower range would have too few decades for ticks
        axes.set_xscale('log')
        axes.set_yscale('log')
        axes.set_ylim(f[seen].min() / 2, 2 * f.max())
    axes.set_xlabel('exact probability')
    axes.set_ylabel('sampled frequency (probability)')
    axes.set_title(f'{what}, {N} sequences')
    axes.legend(loc='upper left')
    return axes


@styled
def deviations(grammar: TreeGrammar, sequences: Tensor, axes: Axes | None = None) -> Axes:
    """Histograms of (sampled - exact) / standard error, for single tokens and for neighbouring pairs of tokens.

    The standard error is `sqrt(p (1 - p) / N)`; counts expected below 20 are left out, being far from normal. Sampler
    and exact laws agree where the histograms are those of the standard normal law, which is drawn.
    """
    axes = own_axes(axes, (5, 4.2))
    N, n = sequences.shape
    exact = correlations.leaf_marginals(grammar)
    scores = {'one token': _z_scores(exact, counting.empirical_marginals(sequences, grammar.v), N)}
    pairs = [
        _z_scores(correlations.joint(grammar, i, i + 1), counting.empirical_joint(sequences, i, i + 1, grammar.v), N)
        for i in range(n - 1)
    ]
    scores['neighbouring tokens'] = torch.cat(pairs)
    bins = np.linspace(-5, 5, 41)
    for (name, z), color in zip(scores.items(), (ORANGE, BLUE), strict=True):
        label = f'{name}: deviation {z.std():.2f}'
        axes.hist(z.numpy(), bins=bins.tolist(), density=True, histtype='step', color=color, lw=1.4, label=label)
    x = np.linspace(-5, 5, 200)
    axes.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=BLACK, ls='--', lw=1, label='standard normal')
    axes.set_ylim(top=0.72)
    axes.set_xlabel('sampled - exact (standard errors)')
    axes.set_ylabel('probability density')
    axes.legend(loc='upper left')
    return axes


def _z_scores(exact: Tensor, sampled: Tensor, N: int) -> Tensor:
    variance = exact * (1 - exact) / N
    enough = variance * N**2 >= _LEAST_EXPECTED
    return ((sampled - exact)[enough] / variance[enough].sqrt()).flatten()


# ---------------------------------------------------------------------- entropies and floors


@styled
def entropies(languages: Sequence[RLM], axes: Axes | None = None) -> Axes:
    """Entropies (nats) of the tokens against beta, for languages of one v and L: from above to below

    ln v, the marginal `H(x_n)`, the entropy of a sequence divided by its n tokens, and the floor
    `H(x_n | x_1..x_{n-1})`, the lowest loss of any model. Of several grammars of one beta the line is the mean, and the
    band reaches from the least to the largest value. ValueError for languages of several sizes.
    """
    axes = own_axes(axes)
    sizes = {(language.v, language.L) for language in languages}
    if len(sizes) != 1:
        raise ValueError(f'languages of the sizes (v, L) = {sorted(sizes)} do not fit one figure: give those of one')
    ((v, L),) = sizes
    betas = sorted({language.beta for language in languages})
    lines = {
        'marginal $H(x_n)$': (exact.entropies.marginal, ORANGE),
        'sequence, per token': (lambda language: exact.entropies.leaves_entropy(language)[0] / 2**L, GREEN),
        'floor $H(x_n|x_1..x_{n-1})$': (lambda language: exact.entropies.entropy(language)[0], BLUE),
    }
    axes.axhline(math.log(v), color=GREY, lw=1, ls=':', label='ln v')
    for label, (measure, color) in lines.items():
        values = [[measure(language) for language in languages if language.beta == beta] for beta in betas]
        axes.plot(betas, [np.mean(row) for row in values], color=color, marker='.', label=label)
        axes.fill_between(
            betas, [min(row) for row in values], [max(row) for row in values], color=color, alpha=0.2, lw=0
        )
    axes.axvline(theory.BETA_FREEZING, color=GREY, lw=1, ls=':')
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * math.log(v)))
    axes.set_xlabel('beta (inverse temperature)')
    axes.set_ylabel('entropy (nats)')
    axes.set_title(f'v = {v}, L = {L}')
    axes.legend()
    return axes


@styled
def ladder(languages: Sequence[TreeGrammar], num_samples: int = 4096, axes: Axes | None = None) -> Axes:
    """The ladder of floors: `H(x_n | last k tokens)` (nats) against k = 0..n-1, a line a language.

    Full points are k = 0, 1, 3, 7, ..., where the tokens seen complete a sub-tree, dotted lines mark them. Error bars
    are the standard errors of sampled floors.
    """
    axes = own_axes(axes)
    n = max(2**language.L for language in languages)
    for k in exact.entropies.window_ladder(n - 1):
        axes.axvline(k, color=GREY, lw=0.8, ls=':', zorder=1, label='sub-tree complete' if k == 0 else None)
    for language, color in zip(languages, CYCLE, strict=False):
        floors = exact.entropies.window_entropies(language, range(2**language.L), num_samples)
        values = np.array(list(floors.values()))
        axes.errorbar(list(floors), values[:, 0], values[:, 1], color=color, label=language_name(language))
        whole = exact.entropies.window_ladder(2**language.L - 1)
        for ks, face in ((sorted(set(floors) - set(whole)), 'white'), (whole, color)):
            axes.plot(ks, [floors[k][0] for k in ks], 'o', color=color, markerfacecolor=face)
    axes.set_xticks(range(n))
    axes.set_ylim(bottom=0)
    axes.set_xlabel('tokens seen, k')
    axes.set_ylabel(f'$H(x_{{{n}}}$ | last k tokens) (nats)')
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return axes


# ---------------------------------------------------------------------- correlations


@styled
def information_decay(languages: Sequence[TreeGrammar], axes: Axes | None = None) -> Axes:
    """Mutual information (nats) of two tokens against the height of their common ancestor, and its decay by theory.

    Points are exact means over the pairs of each height. Languages of the same parameters, grammars of other seeds, are
    averaged in the logarithm, of which error bars are the standard error: the plain mean would be that of the few
    grammars that forget least.

    Dashed, for the RLM: the first point times `lambda^4` a level, lambda the size of the second eigenvalue of the
    transition matrices of random grammars (each of the two paths of a pair brings lambda to its correlation, and
    information is of second order in that). For the RHM: `v^4 / 2` times the mean square covariance,
    `v (1 - m / v) / (2 m^(2h - 1))`, from its rules. Grammars of other kinds have no such line, and none is averaged.
    """
    axes = own_axes(axes)
    groups: dict[tuple[str, int], list[TreeGrammar]] = {}
    for i, language in enumerate(languages):
        alone = 0 if isinstance(language, (RLM, RHM)) else i + 1
        groups.setdefault((language_name(language), alone), []).append(language)
    for ((name, _), group), color in zip(groups.items(), CYCLE, strict=False):
        heights = np.arange(1, group[0].L + 1)
        logs = torch.stack([correlations.mutual_information_by_distance(language) for language in group]).log()
        values = logs.mean(0).exp().numpy()
        error = (logs.std(0) / math.sqrt(len(group))).numpy() if len(group) > 1 else np.zeros_like(values)
        spread = values * [1 - np.exp(-error), np.exp(error) - 1]
        axes.errorbar(heights, values, spread, fmt='o', color=color, label=name)
        if isinstance(group[0], (RLM, RHM)):
            axes.plot(heights, _expected_information(group[0], heights, values[0]), color=color, ls='--', lw=1)
    axes.set_yscale('log')
    if any(isinstance(language, (RLM, RHM)) for language in languages):
        axes.plot([], [], color=GREY, ls='--', lw=1, label='theory')
    axes.set_xticks(range(1, max(language.L for language in languages) + 1))
    axes.set_xlabel('height of the common ancestor (levels)')
    axes.set_ylabel('mutual information (nats)')
    axes.legend()
    return axes


def _expected_information(language: RLM | RHM, heights: np.ndarray, first: float) -> np.ndarray:
    if isinstance(language, RHM):
        return np.array(
            [language.v**4 / 2 * theory.rhm_covariance(language.v, language.m, int(h)) ** 2 for h in heights]
        )
    return first * theory.random_second_eigenvalue(language.v, language.beta) ** (4.0 * (heights - 1))


@styled
def path_decay(language: RLM, axes: Axes | None = None) -> Axes:
    """Mutual information (nats) of the first and the last token of a sub-tree against its height.

    One path keeps to the left and one to the right, so the decay is that of the grammar's own second eigenvalues,
    `|lambda_L lambda_R|^(2 (h - 1))`, up to a bounded factor: the dashed line, through the last point but one (the last
    pair hangs under the root, whose law is the prior).
    """
    axes = own_axes(axes)
    heights = np.arange(1, language.L + 1)
    ends = [2**h - 1 for h in heights.tolist()]
    values = [correlations.mutual_information(language, 0, end) for end in ends]
    decay = np.array([theory.correlation_decay(language.rules[0], 0, end) ** 2 for end in ends])
    anchor = max(0, language.L - 2)
    axes.semilogy(heights, values, 'o', color=BLUE, label=language_name(language))
    axes.semilogy(heights, values[anchor] / decay[anchor] * decay, color=BLUE, ls='--', lw=1, label='its eigenvalues')
    axes.set_xticks(heights)
    axes.set_xlabel('height of the common ancestor (levels)')
    axes.set_ylabel('mutual information of the ends (nats)')
    axes.legend()
    return axes
