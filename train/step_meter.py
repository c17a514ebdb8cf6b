"""How fast a step went and what it took: numbers about the machine, for curves only, never for the record."""

import resource
import time

import torch
from torch import nn

from train.model import trainable_parameters

# Dense peak in operations per second, bfloat16, from the vendors' data sheets; by a part of its name.
_PEAK_BFLOAT16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


class StepMeter:
    """Measures from step to step; the first step counts from the meter's making."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.device = device
        self.operations_per_token = operations_per_token(model)
        self.peak = _peak(device) if precision == "bfloat16" else None
        self._last = time.monotonic()

    def numbers(self, num_tokens: int) -> dict[str, float]:
        """step_tokens_per_s; memory_gb at its highest; mfu where the device's peak is known."""
        now = time.monotonic()
        elapsed_s, self._last = max(now - self._last, 1e-9), now
        numbers = {"step_tokens_per_s": num_tokens / elapsed_s, "memory_gb": _memory_gb(self.device)}
        if self.peak is not None:
            numbers["mfu"] = numbers["step_tokens_per_s"] * self.operations_per_token / self.peak
        return numbers


def operations_per_token(model: nn.Module) -> int:
    """Operations of one training step per token: 2 per parameter forwards, 2 back, 2 for each one's gradient.

    Source   Kaplan et al., arXiv 2001.08361, section 2.1.
    Differs  Attention's own operations, which grow with the length, are left out.
    """
    trained = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    return 4 * sum(parameter.numel() for parameter in model.parameters()) + 2 * trained


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_BFLOAT16.items() if part in name), None)


def _memory_gb(device: torch.device) -> float:
    """The most that was ever held: by PyTorch on the device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
