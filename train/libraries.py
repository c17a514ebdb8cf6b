"""Libraries imported with the garbage collector off, and then out of its sight.

torch and transformers are 390 thousand objects that stay until the process ends. The collector walks them while they
are imported (0.6 s of CPU), again and again while a small model trains (up to a tenth of its time), and once more at
the end, where it frees them one by one (0.8 s). Frozen, they are left alone. What comes later, such as a model that
is replaced by another, is collected as ever.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def imported_to_stay() -> Iterator[None]:
    """For imports alone: what is there at the end is never collected. Once in the life of a process."""
    if gc.get_freeze_count():
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()


def load_libraries() -> None:
    """Import what loads and trains a causal language model."""
    with imported_to_stay():
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: F401
