"""Where and with what a run was made: enough to explain a difference next year. No secrets: nothing is read
from the environment but what is named here."""

import functools
import importlib.metadata
import platform
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.files import read_json

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy")


@functools.cache
def git_state() -> dict[str, Any]:
    """The checkout's commit and whether it has changes; empty outside a checkout."""
    root = Path(__file__).parents[1]
    snapshot = read_json(root / "snapshot.json")  # a frozen copy of a checkout knows where it comes from
    if snapshot is not None:
        return {key: snapshot[key] for key in ("git_commit", "git_has_changes", "code") if key in snapshot}
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_has_changes": bool(changes.strip())}


def environment(device: Any) -> dict[str, Any]:
    """Host, device, versions and commit of this process."""
    import torch

    from train.products import has_faster_products

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "host": socket.gethostname(),
        "device": f"{device.type}: {name}",
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        **({"float32_products": "oneDNN"} if device.type == "cpu" and has_faster_products() else {}),
        **versions(_PACKAGES),
        **git_state(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package, "absent" without one."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
