"""A causal language model as decoder and output layer, so that the loss can take the hidden states.

Nothing of the model is changed or copied: the decoder and the head are the model's own modules. Models
scale, cap or wrap their logits in ways nobody lists completely, so the split is tried on a few tokens first:
where decoder and head don't give the model's own logits, the plain computation over full logits is used
instead, and the record says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.linear_cross_entropy import EAGER, Head, Kernel, Reference, weighted_linear_nll
from train.loss import token_nll
from train.products import Linear

_PROBE_TOKENS = 5


@dataclass(frozen=True, slots=True)
class LossPath:
    """Who computes the loss: `kernel` None is the plain computation; `reason` says why it was chosen."""

    kernel: Kernel | None
    reason: str

    @property
    def name(self) -> str:
        return "naive" if self.kernel is None else self.kernel.name


def base_model(model: nn.Module) -> Any:
    """The transformers model inside adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def decoder_of(model: nn.Module) -> Any:
    """The module that gives hidden states; None if the model doesn't name one."""
    inner = base_model(model)
    return getattr(inner, getattr(inner, "base_model_prefix", "") or " ", None)


def head_of(model: nn.Module) -> Head | None:
    """The output layer with its model's scale and cap; None where it isn't one plain matrix (a LoRA)."""
    inner = base_model(model)
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if layer is None or type(layer) not in (nn.Linear, Linear):
        return None
    scale = float(getattr(inner.config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(inner.config, "logits_scaling", None) or 1.0)  # Granite
    return Head(layer.weight, layer.bias, scale, getattr(inner.config, "final_logit_softcapping", None))


def choose_path(model: nn.Module, asked: str, device: torch.device) -> LossPath:
    """The fastest exact way to this model's loss here; `asked` is train.head.

    Raises   nothing: what can't be split falls back to the plain computation, with its reason.
    """
    if asked == "naive":
        return LossPath(None, "asked for")
    reason = _cannot_split(model)
    if reason:
        return LossPath(None, reason)
    if device.type != "cuda" or asked == "eager":
        return LossPath(EAGER, "asked for" if asked == "eager" else "on CPU")
    from train.linear_cross_entropy_triton import fastest_kernel

    kernel, reason = fastest_kernel(head_of(model), device, asked)
    return LossPath(kernel, reason)


@torch.no_grad()
def _cannot_split(model: nn.Module) -> str:
    """Why decoder and head don't give this model's logits; empty if they do."""
    decoder, head = decoder_of(model), head_of(model)
    if decoder is None or head is None:
        return "no decoder and plain output layer to be found"
    was_training = model.training
    model.eval()
    try:
        ids_BT = torch.arange(_PROBE_TOKENS, device=head.weight_VH.device)[None] % head.weight_VH.shape[0]
        known = model(input_ids=ids_BT, use_cache=False).logits.float()
        hidden = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        split = hidden @ head.weight_VH.t() * head.scale + (0 if head.bias_V is None else head.bias_V)
        split = (split if head.softcap is None else head.softcap * torch.tanh(split / head.softcap)).float()
    finally:
        model.train(was_training)
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 3e-2
    is_same = split.shape == known.shape and torch.allclose(
        split, known, atol=tolerance, rtol=tolerance, equal_nan=True
    )
    return "" if is_same else "decoder and output layer don't give the model's logits"


def hidden_states(model: nn.Module, ids_BT: Tensor, extra: Mapping[str, Any]) -> Tensor:
    """The decoder's output, flat. Shapes: ids (B, T), result (B * T, H)."""
    return decoder_of(model)(input_ids=ids_BT, use_cache=False, **extra).last_hidden_state.flatten(0, 1)


def plain_weighted_nll(
    logits_NV: Tensor, targets_N: Tensor, coefficients_N: Tensor, reference: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`weighted_linear_nll` from logits; reference: the untouched model's logits (N, V), its coefficients."""
    nll_N = token_nll(logits_NV, targets_N)
    loss, divergence_N = (nll_N * coefficients_N).sum(), torch.zeros_like(nll_N)
    if reference is not None:
        log_p_NV = torch.log_softmax(logits_NV.float(), -1)
        divergence_N = (log_p_NV.exp() * (log_p_NV - torch.log_softmax(reference[0].float(), -1))).sum(-1)
        loss = loss + (divergence_N * reference[1]).sum()
    return loss, nll_N.detach(), divergence_N.detach()


__all__ = [
    "LossPath",
    "Reference",
    "base_model",
    "choose_path",
    "decoder_of",
    "head_of",
    "hidden_states",
    "plain_weighted_nll",
    "weighted_linear_nll",
]
