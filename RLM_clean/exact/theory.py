"""Closed formulas: the rule as a random energy model, the decay of correlations, the Random Hierarchy Model.

A rule `M[a, :, :]` is the Gibbs measure of a random energy model (REM): N = v^2 states with weights
w = exp(sigma g), sigma^2 = beta^2 ln v, and M = w / Z with Z the sum of the weights. The functions `rem_*` give its
thermodynamic limit, the functions `mean_*` its averages over grammars at finite v, by quadrature. docs/theory.md
derives them all. Entropies are in nats.

B. Derrida, Phys. Rev. B 24, 2613 (1981); E. DeGiuli, Phys. Rev. Lett. 122, 128301 (2019); F. Cagnetta et al.,
Phys. Rev. X 14, 031001 (2024); F. Cagnetta and M. Wyart, NeurIPS 2024, arXiv:2406.00048.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The inverse temperature at which a rule freezes as v grows: the saddle point g = sigma of the sum of the weights
# meets the largest of the N energies, sqrt(2 ln N) = 2 sqrt(ln v).
BETA_FREEZING = 2.0

# The trapezoidal rule on the line errs by about exp(-pi^2 w / step) for integrands that are analytic up to imaginary
# part w pi/2, as functions of exp(-e^(x / w)) are: 1e-21 for this step in units of w.
_STEP = 0.2
# Gaussian tails beyond this many standard deviations weigh less than 1e-38 in all.
_GAUSSIAN_RANGE = 13.0
# Where an integrand has fallen by this exponent, it is left out.
_TAIL = 40.0
_EULER_GAMMA = 0.5772156649015329


# ---------------------------------------------------------------------- the thermodynamic limit of a rule


def rem_log_partition(v: int, beta: float) -> float:
    """`ln Z` of a rule to leading order in ln v; its free energy is `-ln Z / beta`.

    `ln Z = (2 + beta^2 / 2) ln v` up to beta = 2, where entropy and energy compete, and `2 beta ln v` beyond, where
    the largest weight alone counts. In nats. ValueError for v < 2 or beta < 0. Derrida 1981.
    """
    _check_rule(v, beta)
    return (2 + beta**2 / 2 if beta <= BETA_FREEZING else 2 * beta) * math.log(v)


def rem_entropy(v: int, beta: float) -> float:
    """The entropy of a rule to leading order in ln v: `(2 - beta^2 / 2) ln v` up to beta = 2, and 0 beyond.

    `S = ln Z - beta d(ln Z)/d(beta)`. In nats. ValueError for v < 2 or beta < 0. Derrida 1981.
    """
    _check_rule(v, beta)
    return max(0.0, 2 - beta**2 / 2) * math.log(v)


def rem_participation_ratio(beta: float) -> float:
    """The mean of `sum_bc M[a, b, c]^2` for v to infinity: 0 up to beta = 2, and `1 - 2 / beta` beyond.

    It is the probability that two draws from one rule agree. The limit is reached slowly, with corrections in
    1 / ln v: see `mean_participation_ratio` for finite v. ValueError for beta < 0.
    M. Mezard and A. Montanari, Information, Physics, and Computation (Oxford, 2009), chapter 5.
    """
    _check_rule(2, beta)
    return 1 - BETA_FREEZING / beta if beta > BETA_FREEZING else 0.0


def degiuli_temperature(beta: float) -> float:
    """De Giuli's scaled temperature `x = 1 / (2 beta^2)` of the grammar.

    De Giuli draws lognormal weights with Var(ln M) = 1 / (2 eps), eps the deep temperature per weight (eps_d / N^3 for
    N symbols), and finds that grammars depend on `x = eps ln N`. Here Var(ln M) = beta^2 ln v and v = N. The freezing
    point beta = 2 is x = 1/8. ValueError for beta <= 0.
    E. DeGiuli, Phys. Rev. Lett. 122, 128301 (2019); E. De Giuli, arXiv:2606.28105.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f'beta={beta} has no temperature: use a finite number above 0')
    return 1 / (2 * beta**2)


def beta_of_degiuli_temperature(x: float) -> float:
    """The inverse temperature `beta = 1 / sqrt(2 x)` at De Giuli's scaled temperature x. ValueError for x <= 0."""
    if not 0 < x < math.inf:
        raise ValueError(f'x={x} is not a valid temperature: use a finite number above 0')
    return 1 / math.sqrt(2 * x)


# ---------------------------------------------------------------------- a rule at finite v


def mean_log_partition(v: int, beta: float) -> float:
    """The mean of `ln Z` over grammars at finite v, accurate to about 1e-12 of itself.

    `E ln Z = integral dx [1(x < 0) - phi(x)^N] - gamma`, `phi(x) = E_g exp(-e^(x + sigma g))`, gamma Euler's constant,
    since `ln Z = integral dt/t (e^-t - e^(-t Z))` and the N = v^2 weights are independent. In nats. ValueError for
    v < 2 or beta < 0.
    """
    return _rule_integrals(v, beta)[0]


def mean_participation_ratio(v: int, beta: float) -> float:
    """The mean of `sum_bc M[a, b, c]^2` over grammars at finite v, accurate to about 1e-12 of itself.

    `E sum p^2 = N integral dx E_g[u^2 e^-u] phi(x)^(N-1)` with `u = e^(x + sigma g)` and phi as in
    `mean_log_partition`, since `1 / Z^2 = integral dt t e^(-t Z)`. ValueError for v < 2 or beta < 0.
    """
    return _rule_integrals(v, beta)[1]


def mean_rule_entropy(v: int, beta: float) -> float:
    """The mean over grammars of the entropy of one rule at finite v, accurate to about 1e-12 of ln Z.

    `E S = E ln Z - sigma^2 (1 - E sum p^2)`: the mean energy `sigma E sum_i p_i g_i` is `sigma^2 E sum_i (p_i - p_i^2)`
    by Gaussian integration by parts. What is subtracted is an integral of its own,
    `1 - E sum p^2 = E sum_(i != j) p_i p_j = N (N - 1) integral dx E_g[u e^-u]^2 phi(x)^(N-2)`, since sigma^2 would
    multiply the rounding of a participation ratio near 1. In nats, between 0 and 2 ln v. ValueError for v < 2 or
    beta < 0.
    """
    log_partition, _, others = _rule_integrals(v, beta)
    return max(0.0, log_partition - beta**2 * math.log(v) * others)


def _rule_integrals(v: int, beta: float) -> tuple[float, float, float]:
    """`E ln Z`, `E sum p^2` and `1 - E sum p^2` of a rule, by the trapezoidal rule in x = ln t."""
    _check_rule(v, beta)
    N, sigma = float(v) ** 2, beta * math.sqrt(math.log(v))
    # phi^N is a step that falls with the largest of N energies, whose spread is sigma / sqrt(2 ln N), as exp(-e^x) does
    # where that is less than 1.
    step = _STEP * max(1.0, sigma / math.sqrt(2 * math.log(N)))
    # N E(1 - e^-u) < N e^(x + sigma^2 / 2), and beyond this many standard deviations there is none of N energies.
    reach = math.sqrt(2 * (_TAIL + math.log(N)))
    low = -_TAIL - math.log(N) - min(sigma**2 / 2, reach * sigma)
    x = step * torch.arange(math.floor(low / step), math.ceil((5 + 10 * sigma) / step), dtype=torch.float64)
    missing, first, second = _averages(x, sigma, N)
    log_phi = torch.log1p(-missing.clamp(max=1))
    power = N * log_phi
    left, right = x < 0, x > 0
    # At x = 0 the step function 1(x < 0) counts as 1/2, so that the rule is exact for it.
    log_partition = 0.5 - power[~left & ~right].exp().sum() - torch.expm1(power[left]).sum() - power[right].exp().sum()
    participation = (second * torch.exp((N - 1) * log_phi)).sum() * N
    others = (first.square() * torch.exp((N - 2) * log_phi)).sum() * N * (N - 1)
    return (log_partition * step).item() - _EULER_GAMMA, (participation * step).item(), (others * step).item()


def _averages(x: Tensor, sigma: float, N: float) -> tuple[Tensor, Tensor, Tensor]:
    """`E_g[1 - e^-u]`, `E_g[u e^-u]` and `E_g[u^2 e^-u]` for u = e^(x + sigma g), at each x.

    For sigma above 1 by the trapezoidal rule in y = x + sigma g, in which the integrands have the width 1 whatever
    sigma is: `E_g[1 - e^-u] = integral dy e^(y - e^y) Q((y - x) / sigma)`, by parts, Q the upper tail of the normal
    law, and `E_g[u^n e^-u] = integral dy e^(n y - e^y) density((y - x) / sigma) / sigma`.
    """
    if sigma < 1:
        reach = math.ceil(_GAUSSIAN_RANGE / _STEP)
        g = _STEP * torch.arange(-reach, reach + 1, dtype=torch.float64)
        # Beyond the clamp e^-u is zero in any case; u^2 must not be infinite.
        u = (x[:, None] + sigma * g).clamp(max=100).exp()
        weights, decay = torch.softmax(-(g**2) / 2, 0), torch.exp(-u)
        return -torch.expm1(-u) @ weights, (u * decay) @ weights, (u**2 * decay) @ weights
    y = torch.arange(-_TAIL - math.log(N), 5, _STEP, dtype=torch.float64)
    z = (y - x[:, None]) / sigma
    tail = torch.special.erfc(z / math.sqrt(2)) / 2
    density = torch.exp(-(z**2) / 2) / (math.sqrt(2 * math.pi) * sigma)
    first, second = (torch.exp(n * y - y.exp()) * _STEP for n in (1, 2))
    return tail @ first, density @ first, density @ second


def _check_rule(v: int, beta: float) -> None:
    if v < 2:
        raise ValueError(f'v={v} is not a valid vocabulary size: use 2 symbols or more')
    if not 0 <= beta < math.inf:
        raise ValueError(f'beta={beta} is not a valid inverse temperature: use a finite number, 0 or more')


# ---------------------------------------------------------------------- the decay of correlations


def transition_matrices(rules: Tensor) -> tuple[Tensor, Tensor]:
    """The Markov chains down the left and the right branches of the tree.

    `P_L[a, b] = sum_c T[a, b, c]` and `P_R[a, c] = sum_b T[a, b, c]`, each `(v, v)` float64 with rows summing to one,
    for rules `T (v, v, v)`, which are normalised in float64.
    """
    left, right = rules.sum(2, dtype=torch.float64), rules.sum(1, dtype=torch.float64)
    return left / left.sum(1, keepdim=True), right / right.sum(1, keepdim=True)


def second_eigenvalue(matrix: Tensor) -> float:
    """The second largest modulus among the eigenvalues of a stochastic matrix `(v, v)`.

    The largest is 1. The second is the factor by which a long chain forgets its start at each step.
    """
    return torch.linalg.eigvals(matrix.double()).abs().sort(descending=True).values[1].item()


def correlation_decay(rules: Tensor, i: int, j: int) -> float:
    """By how much the correlation of leaves i and j is smaller than that of two siblings, from eigenvalues.

    `|lambda_L|^(left steps) |lambda_R|^(right steps)`, the steps being counted on the two paths from the children of
    the lowest common ancestor down to i and j, lambda_L and lambda_R being the second eigenvalues of the transition
    matrices of `rules (v, v, v)`. Leaves are counted from 0; an ancestor at height h leaves 2 (h - 1) steps.

    It is the exact rate, up to a bounded factor, where each path keeps to one side (the first and the last leaf of a
    tree, or the two leaves in its middle) and h is large; on mixed paths it is an estimate, because the two matrices
    do not commute. ValueError for i = j or negative positions.
    """
    if i == j or min(i, j) < 0:
        raise ValueError(f'i={i}, j={j} are not two leaves: use two different positions, 0 or more')
    height = (i ^ j).bit_length()
    below = (1 << (height - 1)) - 1
    right_steps = (i & below).bit_count() + (j & below).bit_count()
    left_steps = 2 * (height - 1) - right_steps
    left, right = transition_matrices(rules)
    return second_eigenvalue(left) ** left_steps * second_eigenvalue(right) ** right_steps


def random_second_eigenvalue(v: int, beta: float) -> float:
    """The size of the second eigenvalue of the transition matrices of a random grammar.

    `lambda = sqrt(v Var P[a, b]) = sqrt((v^2 Y - 1) / (v (v + 1)))`, Y = `mean_participation_ratio(v, beta)`; about
    `sqrt(v^(beta^2) - 1) / v` for beta < 1. It is exactly the root mean square over grammars of |d P| / |d| for any
    difference d of two distributions: two leaves lose a factor of about lambda^2 of their correlation for each level
    between them and their common ancestor. The eigenvalues of P other than 1 fill a disc of this radius as v grows
    where the sum of squared weights is self-averaging (beta < 1); above that lambda is an order of magnitude.
    ValueError for v < 2 or beta < 0.
    C. Bordenave, P. Caputo and D. Chafai, Probab. Theory Relat. Fields 152, 751 (2012): random Markov matrices.
    """
    return math.sqrt(max(0.0, v**2 * mean_participation_ratio(v, beta) - 1) / (v * (v + 1)))


# ---------------------------------------------------------------------- the Random Hierarchy Model


def rhm_covariance(v: int, m: int, height: int, s: int = 2) -> float:
    """The root mean square covariance of two leaves of the RHM with their lowest common ancestor at a height h.

    `sqrt((1 - f) / (v^3 m^(2 h - 1)))` with `f = m / v^(s - 1)`: the root of the mean square of
    `P(x_i = b, x_j = c) - P(x_i = b) P(x_j = c)` over symbols b, c and over grammars, asymptotically in v and m;
    h = 1 for siblings. ValueError for sizes out of range. Cagnetta and Wyart 2024.
    """
    _check_hierarchy(v, m, height, s)
    return math.sqrt((1 - m / v ** (s - 1)) / (v**3 * m ** (2 * height - 1)))


def rhm_sample_sizes(v: int, m: int, L: int, s: int = 2) -> list[float]:
    """The numbers of sequences `P_1..P_L` from which next-token predictors learn the levels of the RHM.

    `P_h = v m^(2 h - 1) / (1 - f)` with `f = m / v^(s - 1)`: with more sequences than P_h, the covariance of two leaves
    with a common ancestor at height h exceeds the noise `1 / sqrt(v^2 P)` of its estimate from P sequences. Infinite
    where every tuple is a production (f = 1) and leaves are independent. ValueError for sizes out of range.
    Cagnetta and Wyart 2024.
    """
    _check_hierarchy(v, m, L, s)
    f = m / v ** (s - 1)
    return [v * m ** (2 * height - 1) / (1 - f) if f < 1 else math.inf for height in range(1, L + 1)]


def _check_hierarchy(v: int, m: int, height: int, s: int) -> None:
    if v < 2 or s < 2:
        raise ValueError(f'v={v}, s={s} make no hierarchy: use 2 or more of each')
    if not 1 <= m <= v ** (s - 1):
        raise ValueError(f'm={m} productions do not fit v={v} and s={s}: use 1 to v^(s-1) = {v ** (s - 1)}')
    if height < 1:
        raise ValueError(f'height {height} is not above the leaves: use 1 or more')
