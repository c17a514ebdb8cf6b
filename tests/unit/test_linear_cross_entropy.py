"""The loss without full logits: loss and every gradient of the plain computation, on every kind of head."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from train.linear_cross_entropy import Head, Reference, frozen, weighted_linear_nll


def inputs(num: int = 37, width: int = 16, size: int = 50, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(size, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(size, (num,), generator=generator)
    coefficients = torch.tensor([0.2, 1.0, 0.5])[torch.arange(num) % 3] / num
    return hidden, weight, targets, coefficients


def plain_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = hidden @ head.weight_VH.t() * head.scale
    if head.bias_V is not None:
        logits = logits + head.bias_V
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


HEADS = [
    {},
    {"softcap": 3.0},
    {"scale": 0.3},
    {"bias_V": True},
    {"bias_V": True, "softcap": 5.0, "scale": 2.0},
]


@pytest.mark.parametrize(("settings", "chunk_rows"), [*itertools.product(HEADS, [1, 8, 37, 100])])
def test_loss_and_gradients_equal_the_plain_ones(settings, chunk_rows):
    hidden, weight, targets, coefficients = inputs()
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    if settings.get("bias_V"):
        leaves.append(torch.linspace(-1, 1, 50).requires_grad_())
        settings = settings | {"bias_V": leaves[2]}
    head = Head(weight, **settings)
    loss, nll, divergence = weighted_linear_nll(hidden, head, targets, coefficients, chunk_rows=chunk_rows)
    expected_nll = functional.cross_entropy(plain_logits(hidden, head), targets, reduction="none")
    expected = (expected_nll * coefficients).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(nll, expected_nll, rtol=1e-5, atol=1e-6)
    assert not nll.requires_grad
    assert not divergence.any()
    for ours, reference in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        assert difference(ours, reference) < 1e-6


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_divergence_from_a_reference_is_over_the_full_vocabulary(softcap):
    hidden, weight, targets, coefficients = inputs(dtype=torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    head = Head(weight, softcap=softcap)
    known = Reference(hidden.detach() + 0.3, frozen(head), torch.full((37,), 0.7 / 37))
    loss, _, divergence = weighted_linear_nll(
        hidden, head, targets, coefficients, reference=known, chunk_rows=10
    )
    log_p = plain_logits(hidden, head).log_softmax(-1)
    log_r = plain_logits(known.hidden_NH, known.head).log_softmax(-1)
    expected_divergence = (log_p.exp() * (log_p - log_r)).sum(-1)
    expected = (-log_p.gather(1, targets[:, None]).squeeze(1) * coefficients).sum() + (
        expected_divergence * known.coefficients_N
    ).sum()
    assert torch.allclose(divergence, expected_divergence)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, reference in zip(
        torch.autograd.grad(loss, [hidden, weight]),
        torch.autograd.grad(expected, [hidden, weight]),
        strict=True,
    ):
        assert difference(ours, reference) < 1e-7  # coefficients are float32


def test_a_tied_weight_gets_the_gradient_of_both_its_uses():
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ids, targets, coefficients = torch.arange(20), torch.arange(1, 21), torch.full((20,), 0.05)
    hidden = torch.tanh(weight[ids])
    ours = torch.autograd.grad(weighted_linear_nll(hidden, Head(weight), targets, coefficients)[0], weight)[0]
    loss = functional.cross_entropy(torch.tanh(weight[ids]) @ weight.t(), targets)
    assert difference(ours, torch.autograd.grad(loss, weight)[0]) < 1e-6


def test_a_frozen_head_computes_no_gradient_of_its_weight(monkeypatch):
    import train.linear_cross_entropy as module

    monkeypatch.setattr(module, "_add_product", lambda *_: pytest.fail("a product for a frozen weight"))
    hidden, weight, targets, coefficients = inputs()
    hidden.requires_grad_()
    weighted_linear_nll(hidden, Head(weight), targets, coefficients)[0].backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_no_tensor_of_all_logits_ever_exists():
    hidden, weight, targets, coefficients = inputs(num=64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        weighted_linear_nll(
            hidden.requires_grad_(), Head(weight.requires_grad_()), targets, coefficients, chunk_rows=8
        )[0].backward()
    assert largest <= max(weight.numel(), hidden.numel(), 8 * 50) < 64 * 50


def test_a_certain_mistake_keeps_its_exact_loss():
    """Where the target's probability underflows, nll is still logsumexp - logit."""
    hidden, weight = torch.eye(2, 4), torch.zeros(3, 4)
    weight[0, 0], weight[0, 1] = 300.0, 80.0
    _, nll, _ = weighted_linear_nll(hidden, Head(weight), torch.tensor([1, 2]), torch.ones(2))
    assert nll.tolist() == pytest.approx([300.0, 80.0])


def test_no_target_gives_zero_with_gradients_of_zero():
    hidden, weight, *_ = inputs()
    none = torch.zeros(0, dtype=torch.int64)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss, nll, _ = weighted_linear_nll(hidden[:0], Head(weight), none, none.float())
    loss.backward()
    assert (loss.item(), len(nll)) == (0.0, 0)
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_a_gradient_from_above_is_honoured_once():
    hidden, weight, targets, coefficients = inputs()
    hidden.requires_grad_()
    plain = weighted_linear_nll(hidden, Head(weight), targets, coefficients)[0]
    scaled = 3.0 * weighted_linear_nll(hidden, Head(weight), targets, coefficients)[0]
    first = torch.autograd.grad(plain, hidden)[0]
    assert torch.allclose(torch.autograd.grad(scaled, hidden, retain_graph=True)[0], 3 * first)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(scaled, hidden)


@pytest.mark.parametrize("num", [1, 2, 3, 256, 257, 259, 511, 513, 770])
def test_the_bits_do_not_depend_on_where_the_head_lies_in_memory(num):
    # A stack's heads lie in one tensor. Products of one to three rows have other bits there; no chunk has as few.
    hidden, weight, targets, coefficients = inputs(num, width=64, size=301)
    found = []
    for offset in range(4):
        memory = torch.empty(weight.numel() + offset)[offset:].view_as(weight).copy_(weight)
        memory, own = memory.detach().requires_grad_(), hidden.detach().requires_grad_()
        loss, nll, _ = weighted_linear_nll(own, Head(memory), targets, coefficients)
        loss.backward()
        found.append((loss.detach(), nll, memory.grad, own.grad))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_autocast_takes_16_bit_products_and_32_bit_sums():
    hidden, weight, targets, coefficients = inputs()
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, nll, _ = weighted_linear_nll(hidden, Head(weight), targets, coefficients)
        expected = functional.cross_entropy(
            functional.linear(hidden, weight).float(), targets, reduction="none"
        )
    loss.backward()
    assert nll.dtype == torch.float32
    assert torch.allclose(nll, expected)
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    exact = torch.autograd.grad(
        (functional.cross_entropy(hidden @ weight.t(), targets, reduction="none") * coefficients).sum(),
        [hidden, weight],
    )
    assert difference(hidden.grad, exact[0]) < 2e-2
    assert difference(weight.grad, exact[1]) < 2e-2
