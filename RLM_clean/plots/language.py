"""The figures of the tokens of a language: frequencies against exact probabilities, floors, decay of correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from RLM_clean import exact
from RLM_clean.analysis import counting
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import correlations, theory
from RLM_clean.plots.rules import language_name, language_names
from RLM_clean.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, line_colors, own_axes, styled

# The distribution of a count is close to normal from this variance on.
_LEAST_VARIANCE = 20


# ---------------------------------------------------------------------- sampled against exact


@styled
def token_frequencies(language: TreeGrammar, sequences: Tensor, axes: Axes | None = None) -> Axes:
    """The frequency of each symbol at each position of `sequences (N, n)` against its exact probability.

    The band is the exact value with two standard errors, `sqrt(p (1 - p) / N)`, on either side. Axes are logarithmic if
    the probabilities differ by more than a factor of 30.
    """
    sampled = counting.empirical_marginals(sequences, language.v)
    return _against_exact(correlations.leaf_marginals(language), sampled, len(sequences), 'one token', axes)


@styled
def pair_frequencies(
    language: TreeGrammar, sequences: Tensor, i: int = -2, j: int = -1, axes: Axes | None = None
) -> Axes:
    """The same as `token_frequencies` for the pairs of symbols at positions i and j, by default the last two.

    Negative positions count from the end. Pairs that did not occur are not drawn, and the legend counts them. Raises
    ValueError for positions of no token.
    """
    n = sequences.shape[1]
    for name, position in (('i', i), ('j', j)):
        if not -n <= position < n:
            raise ValueError(f'{name}={position} is outside a sequence of {n} tokens: use {-n} to {n - 1}')
    i, j = i % n, j % n
    sampled = counting.empirical_joint(sequences, i, j, language.v)
    exact = correlations.joint(language, i, j)
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
    if line[-1] > 30 * line[0]:  # a narrower range has too few decades for ticks
        axes.set_xscale('log')
        axes.set_yscale('log')
        axes.set_ylim(f[seen].min() / 2, 2 * f.max())
    axes.set_xlabel('exact probability')
    axes.set_ylabel('sampled frequency (probability)')
    axes.set_title(f'{what}, {N} sequences')
    axes.legend(loc='upper left')
    return axes


@styled
def deviations(language: TreeGrammar, sequences: Tensor, axes: Axes | None = None) -> Axes:
    """Histograms of (sampled - exact) / standard error, for single tokens and for neighbouring pairs of tokens.

    The standard error is `sqrt(p (1 - p) / N)`. Counts of a variance below 20 are left out, since they are far from
    normal. If the sampler follows the exact probabilities, the histograms follow the standard normal density, which is
    drawn too.
    """
    axes = own_axes(axes, (5, 4.2))
    N, n = sequences.shape
    exact = correlations.leaf_marginals(language)
    scores = {'one token': _z_scores(exact, counting.empirical_marginals(sequences, language.v), N)}
    pairs = [
        _z_scores(correlations.joint(language, i, i + 1), counting.empirical_joint(sequences, i, i + 1, language.v), N)
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
    enough = variance * N**2 >= _LEAST_VARIANCE
    return ((sampled - exact)[enough] / variance[enough].sqrt()).flatten()


# ---------------------------------------------------------------------- entropies and floors


@styled
def entropies(languages: Sequence[RLM], axes: Axes | None = None) -> Axes:
    """Entropies (nats) of the tokens against beta, for languages of one v and L.

    From top to bottom: ln v, the marginal `H(x_n)`, the entropy of a sequence divided by its n tokens, and the floor
    `H(x_n | x_1..x_{n-1})`, the lowest loss of any model. For several grammars of one beta, the line is the mean and
    the band runs from the smallest to the largest value. Raises ValueError for languages of several sizes.
    """
    axes = own_axes(axes)
    sizes = {(language.v, language.L) for language in languages}
    if len(sizes) != 1:
        raise ValueError(
            f'languages of the sizes (v, L) = {sorted(sizes)} do not fit one figure: give languages of one size'
        )
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
    """The ladder of floors: `H(x_n | last k tokens)` (nats) against k = 0..n-1, one line for each language.

    Full points and dotted lines mark k = 0, 1, 3, 7, ..., where the tokens seen complete a sub-tree. Error bars are the
    standard errors of sampled floors.
    """
    axes = own_axes(axes)
    n = max(2**language.L for language in languages)
    for k in exact.entropies.window_ladder(n - 1):
        axes.axvline(k, color=GREY, lw=0.8, ls=':', zorder=1, label='sub-tree complete' if k == 0 else None)
    names, colors = language_names(languages), line_colors(len(languages))
    for language, name, color in zip(languages, names, colors, strict=True):
        floors = exact.entropies.window_entropies(language, range(2**language.L), num_samples)
        values = np.array(list(floors.values()))
        axes.errorbar(list(floors), values[:, 0], values[:, 1], color=color, label=name)
        whole = exact.entropies.window_ladder(2**language.L - 1)
        for ks, face in ((sorted(set(floors) - set(whole)), 'white'), (whole, color)):
            axes.plot(ks, [floors[k][0] for k in ks], 'o', color=color, markerfacecolor=face)
    axes.set_xticks(range(n))
    axes.set_ylim(bottom=0)
    axes.set_xlabel('tokens seen, k')
    target = 'n' if len({language.L for language in languages}) > 1 else n
    axes.set_ylabel(f'$H(x_{{{target}}}$ | last k tokens) (nats)')
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return axes


# ---------------------------------------------------------------------- correlations


@styled
def information_decay(languages: Sequence[TreeGrammar], axes: Axes | None = None) -> Axes:
    """Mutual information (nats) of two tokens against the height of their lowest common ancestor, and its theory.

    Grammars of the same parameters and sizes are averaged. Full points are the arithmetic means, with standard errors
    over the grammars, and open points the geometric means. The geometric mean is that of a typical grammar; a few
    grammars with slow decay can dominate the arithmetic one. The value of one grammar is exact, averaged over the
    pairs of a height.

    Dashed is the theory of the arithmetic mean. RLM: the first full point times `lambda^4` for each level, where lambda
    is the size of the second eigenvalue of the transition matrices of random grammars. The mean square covariance gets
    a factor of lambda^2 from each of the two paths, as if each level had its own rules, and the information is of
    second order in the covariance. RHM: `v^4 / 2` times the mean
    square covariance, `v (1 - m / v) / (2 m^(2h - 1))`. An RHM with Zipf's law has no such theory. Other grammars have
    none either, and are not averaged.
    """
    axes = own_axes(axes)
    groups = _alike(languages)
    for (name, group), color in zip(groups, line_colors(len(groups)), strict=True):
        heights = np.arange(1, group[0].L + 1)
        values = torch.stack([correlations.mutual_information_by_distance(language) for language in group])
        mean = values.mean(0).numpy()
        error = (values.std(0) / math.sqrt(len(group))).numpy() if len(group) > 1 else np.zeros_like(mean)
        axes.errorbar(heights, mean, error, fmt='o', color=color, label=name)
        if len(group) > 1:
            axes.plot(heights, values.log().mean(0).exp(), 'o', color=color, markerfacecolor='white')
        if _has_theory(group[0]):
            axes.plot(heights, _expected_information(group[0], heights, mean[0]), color=color, ls='--', lw=1)
    axes.set_yscale('log', nonpositive='clip')
    if any(len(group) > 1 for _, group in groups):
        axes.plot([], [], 'o', color=GREY, label='mean over grammars')
        axes.plot([], [], 'o', color=GREY, markerfacecolor='white', label='geometric mean')
    if any(map(_has_theory, languages)):
        axes.plot([], [], color=GREY, ls='--', lw=1, label='theory of the mean')
    axes.set_xticks(range(1, max(language.L for language in languages) + 1))
    axes.set_xlabel('height of the common ancestor (levels)')
    axes.set_ylabel('mutual information (nats)')
    axes.legend()
    return axes


def _alike(languages: Sequence[TreeGrammar]) -> list[tuple[str, list[TreeGrammar]]]:
    """Groups of grammars of the same parameters and sizes with their names; other grammars than RLM and RHM are alone.

    A name has v and L only if the parameter alone does not tell two groups apart.
    """
    groups: dict[tuple[str, int], list[TreeGrammar]] = {}
    for i, language in enumerate(languages):
        alone = 0 if isinstance(language, (RLM, RHM)) else i + 1
        groups.setdefault((language_name(language, sizes=True), alone), []).append(language)
    names = language_names([group[0] for group in groups.values()])
    return list(zip(names, groups.values(), strict=True))


def _has_theory(language: TreeGrammar) -> TypeGuard[RLM | RHM]:
    return isinstance(language, RLM) or (isinstance(language, RHM) and language.zipf is None)


def _expected_information(language: RLM | RHM, heights: np.ndarray, first: float) -> np.ndarray:
    if isinstance(language, RHM):
        return np.array(
            [language.v**4 / 2 * theory.rhm_covariance(language.v, language.m, int(h)) ** 2 for h in heights]
        )
    return first * theory.random_second_eigenvalue(language.v, language.beta) ** (4.0 * (heights - 1))


@styled
def path_decay(language: RLM, axes: Axes | None = None) -> Axes:
    """Mutual information (nats) of the first and the last token of a sub-tree against its height.

    One path goes left at each level and the other one right, so that the second eigenvalues of the grammar give the
    decay up to a bounded factor, `|lambda_L lambda_R|^(2 (h - 1))`. This is the dashed line, drawn through the last
    point but one, because the ancestor of the last pair is the root, whose distribution is the prior.
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
