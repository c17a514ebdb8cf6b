"""Products by oneDNN: PyTorch's own numbers, the same bits alone and in a stack, and only where they pay."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

from train import products
from train.products import Linear, are_faster, use_faster_products
from train.stacked.modules import StackedLinear

HAS_OPERATOR = products._multiplies()
needs_operator = pytest.mark.skipif(
    not HAS_OPERATOR, reason="this PyTorch has no oneDNN operator for float32"
)


@pytest.fixture
def amd(monkeypatch):
    """As on a processor where oneDNN is faster."""
    monkeypatch.setattr(products, "has_faster_products", lambda: True)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(bias):
    own, ours = nn.Linear(96, 160, bias=bias), nn.Linear(96, 160, bias=bias)
    ours.load_state_dict(own.state_dict())
    use_faster_products(ours)
    return own, ours


@needs_operator
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(280,), (7, 51), (600,), (320,)])
def test_results_and_gradients_are_those_of_a_linear_layer(amd, bias, shape):
    own, ours = layers(bias)
    assert type(ours) is Linear
    assert list(ours.state_dict()) == list(own.state_dict())
    x = random(*shape, 96)
    assert are_faster(x.reshape(-1, 96), ours.weight)
    gradients, results = [], []
    for layer in (own, ours):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(random(*shape, 160, seed=1))
        results.append(y.detach())
        gradients.append([leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    assert torch.allclose(*results, rtol=1e-5, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-4)


@needs_operator
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [49, 288, 307, 600])
def test_a_cell_of_a_stack_has_the_bits_of_a_layer_alone(amd, bias, num_rows):
    cells = [layers(bias)[1] for _ in range(3)]
    for number, cell in enumerate(cells):
        cell.weight.data = random(160, 96, seed=number)
    biases = nn.Parameter(torch.stack([cell.bias.data for cell in cells])) if bias else None
    stacked = StackedLinear(nn.Parameter(torch.stack([cell.weight.data for cell in cells])), biases)
    x, above = random(3 * num_rows, 96, seed=7), random(3 * num_rows, 160, seed=8)
    whole = x.clone().requires_grad_()
    together = stacked(whole)
    together.backward(above)
    for n, cell in enumerate(cells):
        rows = slice(n * num_rows, (n + 1) * num_rows)
        leaf = x[rows].clone().requires_grad_()
        alone = cell(leaf)
        alone.backward(above[rows])
        assert torch.equal(alone, together[rows])
        assert torch.equal(leaf.grad, whole.grad[rows])
        assert torch.equal(cell.weight.grad, stacked.weight.grad[n])


def test_what_is_small_or_not_float32_or_lowered_stays_with_pytorch(amd):
    weight = torch.zeros(160, 96)
    assert are_faster(torch.zeros(280, 96), weight)
    assert not are_faster(torch.zeros(40, 96), weight)
    assert not are_faster(torch.zeros(280, 96), torch.zeros(100, 96))
    assert not are_faster(torch.zeros(280, 96, dtype=torch.float64), weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not are_faster(torch.zeros(280, 96), weight)
        assert layers(True)[1](torch.zeros(280, 96)).dtype == torch.bfloat16


def test_nothing_changes_where_pytorchs_own_is_as_fast(monkeypatch):
    monkeypatch.setattr(products, "has_faster_products", lambda: False)
    model = tiny_model()
    use_faster_products(model)
    assert not any(type(module) is Linear for module in model.modules())
    assert not are_faster(torch.zeros(800, 96), torch.zeros(160, 96))
