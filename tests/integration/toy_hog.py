"""Trainers of toys that hold real memory, and as much of it as `TOY_HOLDS_MB` says, for as long as they train."""

import os

import toy_trainer

from sweep.trainers import RunOne


def make_trainer(root: str) -> RunOne:
    """What `Launch.trainer` names. Seeds from TOY_HOGS_FROM on hold TOY_HOG_MB."""
    train = toy_trainer.make_trainer(root)

    def hold_and_train(spec, **arguments):
        is_hog = spec.config.seed >= int(os.environ.get("TOY_HOGS_FROM", "1000"))
        num_mb = int(os.environ["TOY_HOG_MB" if is_hog else "TOY_HOLDS_MB"])
        held = bytearray(os.urandom(2**20)) * num_mb  # touched, so that it is really held
        record = train(spec, **arguments)
        assert len(held) == num_mb * 2**20
        return record

    return hold_and_train
