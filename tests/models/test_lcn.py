"""The locally connected network: a convolutional one whose weights are not shared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_models import grown, tokens

from RLM_clean.models import CNN, LCN, num_parameters


def test_with_equal_weights_at_all_positions_it_is_the_convolutional_network() -> None:
    for number in (7, 8):
        cnn, lcn = grown(CNN(7, number, 16, 3, num_outputs=3).double()), LCN(7, number, 16, 3, num_outputs=3).double()
        shapes = {name: tensor.shape for name, tensor in lcn.state_dict().items()}
        lcn.load_state_dict({name: tensor.expand(shapes[name]) for name, tensor in cnn.state_dict().items()})
        idx = tokens(7, 20, number)
        torch.testing.assert_close(lcn(idx), cnn(idx), rtol=1e-12, atol=1e-12)


def test_each_patch_has_weights_of_its_own() -> None:
    """Each patch of each layer by a product of its own."""
    model = grown(LCN(7, 8, 16, 3).double())
    idx = tokens(7, 20, 8)
    x = list(F.one_hot(idx, 7).double().unbind(1))
    for layer in model.hidden:
        pairs = [torch.cat(pair, 1) for pair in zip(x[::2], x[1::2], strict=True)]
        x = [(pair @ W.T + b).relu() for pair, W, b in zip(pairs, layer.weight, layer.bias, strict=True)]
    torch.testing.assert_close(model(idx), x[0] @ model.head.weight.T, rtol=1e-12, atol=1e-12)


def test_weights_at_different_positions_start_different() -> None:
    layer = LCN(7, 8, 16, 3).hidden[0]
    W = layer.get_parameter('weight')
    assert W.shape == (4, 16, 14)
    assert all(not torch.equal(W[i], W[j]) for i in range(4) for j in range(i))


def test_the_weights_are_counted() -> None:
    v, width = 7, 16
    patches = 4 * (2 * v * width + width) + (2 + 1) * (2 * width * width + width)
    assert num_parameters(LCN(v, 8, width, 3, num_outputs=5)) == patches + 5 * width
