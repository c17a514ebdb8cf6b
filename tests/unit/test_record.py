"""Records and failures survive their trip through JSON; foreign ones are not believed."""

import errno
import json

import pytest
import torch

from train.errors import DataError, ModelError
from train.failures import NonFiniteLossError, failure_from_exception, failure_kind
from train.files import to_json
from train.metrics import METRICS, SELECTION_PREFERENCE, selection_metric
from train.record import Failure, RunRecord, record_from_dict, record_to_dict

RECORD = RunRecord(
    run_id="a",
    fingerprint="f" * 32,
    outcome="failed",
    stage="sft",
    metrics={"test_response_nll": 1.5},
    counts={"train_rows": 3},
    failure=Failure(kind="code", message="boom"),
)


def test_a_record_survives_json():
    assert record_from_dict(json.loads(to_json(record_to_dict(RECORD)))) == RECORD


@pytest.mark.parametrize("change", [{"version": 999}, {"version": None}, {"surprise": 1}])
def test_a_foreign_record_is_not_believed(change):
    assert record_from_dict(record_to_dict(RECORD) | change) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("x"), "data"),
        (ModelError("x"), "model"),
        (NonFiniteLossError(3, ["a"]), "nan_loss"),
        (MemoryError(), "host_oom"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "cuda_oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "host_oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (OSError(errno.EACCES, "no"), "code"),
        # real: torch.save, safetensors and a tensor of four petabytes on a machine that has no room
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "disk_full"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "disk_full"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "host_oom",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "code"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node_fail"),
        (
            RuntimeError("NCCL Error 2: unhandled system error (run with NCCL_DEBUG=INFO for details)"),
            "node_fail",
        ),
        (KeyError("out of memory"), "code"),
        (ValueError("x"), "code"),
    ],
)
def test_failures_are_classed(error, kind):
    assert failure_kind(error) == kind


def test_what_an_error_was_raised_from_counts():
    error = RuntimeError("the archive is broken")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failure_kind(error) == "disk_full"


def test_a_failure_names_the_last_frame_and_keeps_one_line():
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError as error:
        failure = failure_from_exception(error)
    assert "test_record.py" in failure.last_frame
    assert failure.message.startswith("RuntimeError: ")
    assert "\n" not in failure.message
    assert "Traceback" in failure.traceback


def test_selection_uses_validation_only_and_every_metric_has_unit_and_direction():
    assert all(name.startswith("validation_") for name in SELECTION_PREFERENCE)
    assert all(metric.unit and metric.better in ("higher", "lower", "none") for metric in METRICS.values())
    assert (
        selection_metric(["test_exact_answer", "validation_response_nll"])
        is METRICS["validation_response_nll"]
    )
    assert selection_metric(["test_exact_answer"]) is None
