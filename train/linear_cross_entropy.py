"""The output layer and its loss in one function that never holds all logits.

Weights are known before the forward pass, so the gradient of a chunk is made right after its logits, in their
place, and the logits are forgotten: three products of the head's size instead of the four of a recomputing
kernel, two where the head is frozen. A target of coefficient 0 must not be passed in: its row then never
reaches the head. `train.heads` has the plain computation for models without a head to split.

    loss = sum_t c(t) nll(t) + sum_t d(t) KL(p_t || r_t),    p = softmax(cap(W h + b))

Letters: N targets, C those of one chunk, H width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# Fewest rows of a chunk on a CPU: the bits of products of one to three depend on where a matrix lies in memory.
FEWEST_ROWS = 16
CPU_CHUNK, CUDA_CHUNK = 256, 4096  # rows: large enough for full products; CPU's measured (tests/bench)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Who turns a chunk's logits into their gradient, in place; `takes_half`: also from 16-bit logits.

    gradient   logits (C, V), targets (C,), softcap -> nll (C,) float32, leaving d nll / d (uncapped logits)
    """

    name: str
    gradient: Callable[[Tensor, Tensor, float | None], Tensor]
    takes_half: bool


@dataclass(frozen=True, slots=True)
class Head:
    """An output layer: logits = cap(scale (W h) + b), cap(z) = softcap tanh(z / softcap).

    Shapes   weight (V, H); bias (V,). The weight may be tied to the input embedding or frozen.
    Source   softcap: Gemma 2, arXiv 2408.00118, section 2; scale: Cohere's logit_scale, Granite's
             1 / logits_scaling.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a divergence is measured from: the untouched model's states at the same positions, and its head.

    Shapes   hidden (N, H); coefficients (N,), the d above.
    """

    hidden_NH: Tensor
    head: Head
    coefficients_N: Tensor


def weighted_linear_nll(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    coefficients_N: Tensor,
    *,
    reference: Reference | None = None,
    chunk_rows: int | None = None,
    kernel: Kernel | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of coefficient * nll, and each target's unweighted nll and divergence beside it.

    Shapes   hidden (N, H); targets (N,) int64; coefficients (N,) float32; results (), (N,), (N,) float32.
    Units    nats, nats per token.
    Exact    loss and gradients 1e-6 relative to the full-logits computation in float32. Softmax and sums are
             float32 whatever the logits; products run in autocast's type where it is on.
    Note     Only the first result carries a gradient, and it can be taken once: second derivatives and
             torch.func don't work; use train.loss for those. N = 0 gives 0 with gradients of zero.
    """
    kind = hidden_NH.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_NH.dtype
    plan = _Plan(
        head, reference, chunk_rows or (CUDA_CHUNK if kind == "cuda" else CPU_CHUNK), dtype, kernel or EAGER
    )
    num = len(targets_N)
    if kind == "cpu" and 0 < num < FEWEST_ROWS:
        hidden_NH, targets_N, coefficients_N, plan = _filled(hidden_NH, targets_N, coefficients_N, plan)
    loss, nll_N, divergence_N = _WeightedLinearNll.apply(  # type: ignore[misc]
        hidden_NH, head.weight_VH, head.bias_V, targets_N, coefficients_N, plan
    )
    return loss, nll_N[:num], divergence_N[:num]


def softmax_gradient_eager(logits_CV: Tensor, targets_C: Tensor, softcap: float | None) -> Tensor:
    """Turns float32 logits into d nll / d logits in place; returns nll.

    Shapes   logits (C, V); targets (C,); result (C,).
    Note     One pass over memory: softmax in place, then nll = -log p of the target. Where p is so small that
             its logarithm is lost (below e^-60), the exact one is made of the largest probability and logit.
    """
    capped_CV = None
    if softcap is not None:
        capped_CV = logits_CV.div_(softcap).tanh_().clone()
        logits_CV.mul_(softcap)
    at_targets = targets_C[:, None]
    target_logits_C, highest_C = logits_CV.gather(1, at_targets), logits_CV.amax(1)
    torch.softmax(logits_CV, dim=1, out=logits_CV)
    chances_C = logits_CV.gather(1, at_targets)
    # log p = logit - logsumexp, and logsumexp = highest logit - log of the highest probability
    by_logits_C = highest_C - logits_CV.amax(1).log() - target_logits_C.squeeze(1)
    nll_C = torch.where(chances_C.squeeze(1) > 1e-26, -chances_C.squeeze(1).log(), by_logits_C)
    logits_CV.scatter_add_(1, at_targets, torch.full_like(chances_C, -1.0))
    if capped_CV is not None:
        logits_CV.mul_(capped_CV.square_().neg_().add_(1.0))
    return nll_C


EAGER = Kernel("eager", softmax_gradient_eager, takes_half=False)


@dataclass(frozen=True, slots=True)
class _Plan:
    head: Head
    reference: Reference | None
    chunk_rows: int
    dtype: torch.dtype
    kernel: Kernel


class _WeightedLinearNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        coefficients_N: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            chunks = _Chunks(hidden_NH.detach(), weight_VH, bias_V, plan, ctx.needs_input_grad)
            loss, nll_N, divergence_N = chunks.run(targets_N, coefficients_N)
        ctx.gradients = chunks.gradients()
        ctx.mark_non_differentiable(nll_N, divergence_N)
        return loss, nll_N, divergence_N

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of weighted_linear_nll can be taken once; see train.loss")
        if gradient.device.type == "cuda" or gradient.item() != 1.0:  # no host wait on the device
            for tensor in gradients:
                if tensor is not None:
                    tensor.mul_(gradient.to(tensor.dtype))
        return (*gradients, None, None, None)


class _Chunks:
    """The chunks of one call; gradients of the requested inputs are filled as they go by."""

    def __init__(
        self,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        plan: _Plan,
        needs: tuple[bool, ...],
    ) -> None:
        self.plan, self.hidden_NH = plan, hidden_NH
        self.weight_VH, self.bias_V = weight_VH.detach().to(plan.dtype), bias_V
        self.to_hidden_NH = torch.empty_like(hidden_NH) if needs[0] else None
        self.to_weight_VH = (
            torch.zeros(weight_VH.shape, dtype=_wide(plan.dtype), device=weight_VH.device)
            if needs[1]
            else None
        )
        self.to_bias_V = torch.zeros_like(bias_V) if bias_V is not None and needs[2] else None
        self.weight_dtype = weight_VH.dtype

    def run(self, targets_N: Tensor, coefficients_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num, wide = len(targets_N), _wide(self.plan.dtype)
        nll_N = torch.zeros(num, dtype=wide, device=self.hidden_NH.device)
        divergence_N = torch.zeros_like(nll_N)
        logits_CV: Tensor | None = None
        for part in _parts(num, self.plan.chunk_rows):
            hidden_CH = (
                self.hidden_NH[part].to(self.plan.dtype) * self.plan.head.scale
                if self.plan.head.scale != 1.0
                else self.hidden_NH[part].to(self.plan.dtype)
            )
            logits_CV = self._logits(hidden_CH, logits_CV)
            coefficients_C = coefficients_N[part]
            if self.plan.reference is None:
                nll_N[part] = self.plan.kernel.gradient(logits_CV, targets_N[part], self.plan.head.softcap)
                self._spread(logits_CV, hidden_CH, part, coefficients_C)
            else:
                nll_N[part], divergence_N[part] = self._with_reference(
                    logits_CV, targets_N[part], coefficients_C, part
                )
                self._spread(logits_CV, hidden_CH, part, None)
        loss = (nll_N * coefficients_N).sum()
        if self.plan.reference is not None:
            loss = loss + (divergence_N * self.plan.reference.coefficients_N).sum()
        return loss, nll_N, divergence_N

    def _logits(self, hidden_CH: Tensor, buffer_CV: Tensor | None) -> Tensor:
        """Logits in the compute type's wide form, in the last chunk's memory where it fits."""
        num = len(hidden_CH)
        if buffer_CV is not None and num <= len(buffer_CV) and hidden_CH.dtype == buffer_CV.dtype:
            logits_CV = torch.mm(hidden_CH, self.weight_VH.t(), out=buffer_CV[:num])
        else:
            logits_CV = torch.mm(hidden_CH, self.weight_VH.t())
        if not self.plan.kernel.takes_half or self.plan.reference is not None:
            logits_CV = logits_CV.to(_wide(logits_CV.dtype))
        return logits_CV if self.bias_V is None else logits_CV.add_(self.bias_V.detach())

    def _spread(
        self, gradient_CV: Tensor, hidden_CH: Tensor, part: slice, coefficients_C: Tensor | None
    ) -> None:
        """From d / d logits to hidden states and weight; coefficients go on a product's small side."""
        gradient_CV = gradient_CV.to(self.plan.dtype)
        if self.to_hidden_NH is not None:
            to_hidden_CH = torch.mm(gradient_CV, self.weight_VH)
            if coefficients_C is not None:
                to_hidden_CH = to_hidden_CH * coefficients_C[:, None]
            if self.plan.head.scale != 1.0:
                to_hidden_CH = to_hidden_CH * self.plan.head.scale
            self.to_hidden_NH[part] = to_hidden_CH.to(self.to_hidden_NH.dtype)
        if self.to_weight_VH is not None:
            weighted_CH = hidden_CH if coefficients_C is None else hidden_CH * coefficients_C[:, None]
            _add_product(self.to_weight_VH, gradient_CV.t(), weighted_CH.to(self.plan.dtype))
        if self.to_bias_V is not None:
            shares_C = torch.ones_like(gradient_CV[:, 0]) if coefficients_C is None else coefficients_C
            self.to_bias_V += (shares_C.to(gradient_CV.dtype) @ gradient_CV).to(self.to_bias_V.dtype)

    def _with_reference(
        self, logits_CV: Tensor, targets_C: Tensor, coefficients_C: Tensor, part: slice
    ) -> tuple[Tensor, Tensor]:
        """Leaves c d nll + d d KL in place of the logits; d KL(p || r) / d z = p (log p - log r - KL)."""
        reference = self.plan.reference
        assert reference is not None
        softcap = self.plan.head.softcap
        slope_CV = None
        if softcap is not None:
            slope_CV = logits_CV.div_(softcap).tanh_().square().neg_().add_(1.0)
            logits_CV.mul_(softcap)
        log_p_CV = torch.log_softmax(logits_CV, dim=1)
        known_CV = _plain_logits(reference.hidden_NH[part], reference.head)
        log_ratio_CV = log_p_CV - torch.log_softmax(known_CV, dim=1)
        nll_C = -log_p_CV.gather(1, targets_C[:, None]).squeeze(1)
        p_CV = torch.exp(log_p_CV, out=logits_CV)
        divergence_C = (p_CV * log_ratio_CV).sum(1)
        pull_C = reference.coefficients_N[part]
        factor_CV = log_ratio_CV.sub_(divergence_C[:, None]).mul_(pull_C[:, None])
        factor_CV.add_(coefficients_C[:, None])
        gradient_CV = logits_CV.mul_(factor_CV)
        gradient_CV.scatter_add_(1, targets_C[:, None], -coefficients_C[:, None].to(gradient_CV.dtype))
        if slope_CV is not None:
            gradient_CV.mul_(slope_CV)
        return nll_C, divergence_C

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, weight and bias, in their own types."""
        to_weight_VH = None if self.to_weight_VH is None else self.to_weight_VH.to(self.weight_dtype)
        return self.to_hidden_NH, to_weight_VH, self.to_bias_V


def _parts(num: int, chunk_rows: int) -> Iterator[slice]:
    """Of `chunk_rows` each, the last one longer rather than of fewer than FEWEST_ROWS."""
    start = 0
    while start < num:
        end = start + chunk_rows
        end = num if end + min(FEWEST_ROWS, chunk_rows) > num else end
        yield slice(start, end)
        start = end


def _filled(
    hidden_NH: Tensor, targets_N: Tensor, coefficients_N: Tensor, plan: _Plan
) -> tuple[Tensor, Tensor, Tensor, _Plan]:
    """With targets that count for nothing, up to FEWEST_ROWS."""
    more = FEWEST_ROWS - len(targets_N)
    reference = plan.reference
    if reference is not None:
        hidden, pulls = pad(reference.hidden_NH, (0, 0, 0, more)), pad(reference.coefficients_N, (0, more))
        plan = dataclasses.replace(plan, reference=Reference(hidden, reference.head, pulls))
    return pad(hidden_NH, (0, 0, 0, more)), pad(targets_N, (0, more)), pad(coefficients_N, (0, more)), plan


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _add_product(sum_VH: Tensor, left_VC: Tensor, right_CH: Tensor) -> None:
    """sum += left @ right, accumulated in the sum's type."""
    if left_VC.dtype == sum_VH.dtype:
        sum_VH.addmm_(left_VC, right_CH)
    elif left_VC.device.type == "cuda":
        torch.addmm(sum_VH, left_VC, right_CH, out_dtype=torch.float32, out=sum_VH)
    else:
        sum_VH.add_(torch.mm(left_VC, right_CH))


def _plain_logits(hidden_CH: Tensor, head: Head) -> Tensor:
    """A frozen head's logits in float32 (float64 stays)."""
    logits_CV = torch.mm(hidden_CH, head.weight_VH.detach().to(hidden_CH.dtype).t()) * head.scale
    logits_CV = logits_CV.to(_wide(logits_CV.dtype))
    if head.bias_V is not None:
        logits_CV = logits_CV + head.bias_V.detach()
    return logits_CV if head.softcap is None else head.softcap * torch.tanh(logits_CV / head.softcap)


def frozen(head: Head) -> Head:
    """The head with copies of its tensors that nothing will change."""
    bias_V = None if head.bias_V is None else head.bias_V.detach().clone()
    return dataclasses.replace(head, weight_VH=head.weight_VH.detach().clone(), bias_V=bias_V)
