"""What every test starts from: one thread, no user's settings, the shared real data if it is at hand."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads can be 20x slower on tiny models
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _name in list(os.environ):
    if _name.startswith(("WANDB_", "HYDRA_", "WEIGHT_SWEEP_")):
        del os.environ[_name]

import pytest  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real datasets and a real small checkpoint beside the checkout; skips with the reason where absent."""
    folder = Path(os.environ.get("SHARED_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the shared real data is not at hand: {folder} (set SHARED_DATA)")
    return folder
