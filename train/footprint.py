"""What a run takes of its device, measured while it trains: what several runs on one device are planned with."""

import time
from typing import Any

import torch

_CONTEXT_GB = 0.6  # of a process's CUDA context and libraries, which PyTorch's own counters leave out
_SAMPLE_EVERY_S = 1.0


class Footprint:
    """From its making to `numbers`; call `sample` now and then. Nothing is measured of a processor."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._shares: list[float] = []
        self._next, self._has_nvml = 0.0, device.type == "cuda"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Look how busy the device is, once a second at most; needs NVML (nvidia-ml-py)."""
        if not self._has_nvml or time.monotonic() < self._next:
            return
        try:
            self._shares.append(torch.cuda.utilization(self.device) / 100)
        except Exception:  # no nvidia-ml-py, or a driver that doesn't tell: memory alone then
            self._has_nvml = False
        self._next = time.monotonic() + _SAMPLE_EVERY_S

    def numbers(self) -> dict[str, Any]:
        """device_memory_gb at its peak (GiB), device_total_gb, and device_share where NVML tells; {} without CUDA.

        device_share is the share of time in which a kernel ran, on average over the samples but the first, which
        still saw the loading; where several runs share the device it is theirs together.
        """
        if self.device.type != "cuda":
            return {}
        peak = torch.cuda.max_memory_reserved(self.device) / 2**30 + _CONTEXT_GB
        total = torch.cuda.mem_get_info(self.device)[1] / 2**30
        shares = self._shares[1:] or self._shares
        share = {"device_share": sum(shares) / len(shares)} if shares else {}
        return {"device_memory_gb": peak, "device_total_gb": total, **share}
