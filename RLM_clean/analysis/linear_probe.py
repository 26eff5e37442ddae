"""A linear probe: multinomial logistic regression on whitened features, towards classes or distributions over them.

G. Alain and Y. Bengio, Understanding intermediate layers using linear classifier probes, arXiv:1610.01644 (2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The penalty on the squared weights of a probe. It has no unit, because they act on whitened activations.
L2 = 1e-3
# Directions whose variance is below this fraction of the largest one are rounding errors.
_LEAST_VARIANCE = 1e-10
# A fit ends when all entries of the gradient (nats) are smaller, or after this many iterations.
_GRADIENT = 1e-5
_MAX_ITERATIONS = 300


@dataclass
class Probe:
    """A linear classifier: logits `(x - center) @ weight + bias`, in float64.

    The columns of `whitening (d, rank)` make features white: `z = (x - center) @ whitening` has unit covariance on the
    features of the fit.
    """

    center: Tensor
    weight: Tensor
    bias: Tensor
    whitening: Tensor

    def log_probs(self, features: Tensor) -> Tensor:
        """`ln q(class | features)`, `(N, classes)`, from `(N, d)`."""
        return torch.log_softmax((features.double() - self.center) @ self.weight + self.bias, -1)


def fit_probe(features: Tensor, targets: Tensor, num_classes: int, l2: float = L2) -> Probe:
    """Multinomial logistic regression from `features (N, d)` to classes: the minimum of a convex function,

        -(1/N) sum_r sum_a p_r(a) ln q_r(a) + (l2/2) |W|^2,     q_r = softmax(z_r W + b).

    `targets` are classes `(N,)` or distributions over them `(N, num_classes)`; p_r is one-hot for a class. The features
    are whitened first: z has mean zero and unit covariance, and directions without variance are left out. The probe
    therefore does not depend on the basis and the scale of the features. The penalty on the weights corresponds to the
    prior N(0, 1/(N l2)) of each of them; the biases b have none.

    The minimum is found by full-batch L-BFGS from zero weights, without randomness (D. C. Liu and J. Nocedal, Math.
    Program. 45, 503, 1989). Raises ValueError for sizes that do not fit.
    """
    if len(features) != len(targets) or len(features) < 2:
        raise ValueError(f'{len(features)} features do not fit {len(targets)} targets: give as many, 2 or more')
    if targets.dim() == 1:
        targets = torch.nn.functional.one_hot(targets, num_classes)
    if targets.shape[1] != num_classes:
        raise ValueError(f'targets over {targets.shape[1]} classes do not fit num_classes={num_classes}')
    x, p = features.double(), targets.double()
    center = x.mean(0)
    whitening = _whitening(x - center)
    z = (x - center) @ whitening
    weight = torch.zeros(z.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias = p.mean(0).clamp(min=1e-9).log().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn='strong_wolfe',
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_q = torch.log_softmax(z @ weight + bias, -1)
        value = -(p * log_q).sum() / len(p) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(center, whitening @ weight.detach(), bias.detach(), whitening)


def _whitening(x: Tensor) -> Tensor:
    """The matrix `(d, rank)` that makes the covariance of centred features the identity."""
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    kept = variances > _LEAST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return directions[:, kept] / variances[kept].sqrt()
