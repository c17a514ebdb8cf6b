"""What takes minutes to compile, and the CUDA kernel's arithmetic in Triton's interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration
UNIT = Path(__file__).parents[1] / "unit"

KERNEL = """
import torch
import train.linear_cross_entropy_triton as module
from train.linear_cross_entropy import softmax_gradient_eager

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 8e-3)):
    for softcap in (None, 3.0):
        logits, targets, nll = (torch.randn(5, 50) * 4).to(dtype), torch.randint(50, (5,)), torch.empty(5)
        expected = logits.float().clone()
        expected_nll = softmax_gradient_eager(expected, targets, softcap)
        module._softmax_gradient[(5,)](logits, logits.stride(0), targets, nll, 50, softcap or 1.0,
                                       HAS_CAP=softcap is not None, BLOCK=16)
        assert float((nll - expected_nll).abs().max()) < 1e-5
        assert float((logits.float() - expected).abs().max()) < tolerance
"""


def test_the_triton_kernel_computes_what_eager_does(project):
    pytest.importorskip("triton", reason="Triton isn't installed")
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("default")  # the compiler warns of PyTorch's own past
@pytest.mark.parametrize("packing", ["off", "on"])
def test_compiled_layers_give_the_same_run(tmp_path, monkeypatch, packing):
    monkeypatch.syspath_prepend(str(UNIT))
    from tiny import run_config, tiny_model, tiny_split

    from train.loop import Hooks, train_model
    from train.tracking import NullTracker

    def end(folder, **recipe):
        model = tiny_model()
        config = run_config(
            0.25, 1.0, optimizer="sgd", learning_rate=0.1, max_steps=2, warmup_ratio=0.0, **recipe
        )
        hooks = Hooks(lambda: False, lambda step, steps: None, NullTracker())
        train_model(
            model,
            tiny_split(),
            config,
            fingerprint="f" * 32,
            folder=folder,
            device=torch.device("cpu"),
            hooks=hooks,
        )
        assert all(layer._compiled_call_impl is None for layer in model.model.layers)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    start = torch.cat([parameter.detach().flatten() for parameter in tiny_model().parameters()])
    plain, compiled = (
        end(tmp_path / name, compile=is_compiled, packing=packing)
        for name, is_compiled in (("a", False), ("b", True))
    )
    assert float((plain - compiled).norm() / (plain - start).norm()) < 1e-6
