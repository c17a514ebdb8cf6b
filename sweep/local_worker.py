"""The life of a worker's process on this machine: its slot, its signals, what it may see and take."""

import contextlib
import os
import signal

from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.launch import ONLY_STAGE, available_cores
from sweep.ledger import MAX_ATTEMPTS, Ledger
from sweep.planes import Portion, fair_share
from sweep.sharing import ALONE, Shared, memory_of_this_task
from sweep.slots import devices_of, holders, take_slots
from sweep.spec import RunSpec
from sweep.trainers import TRAINER, load_trainer
from sweep.worker import NO_SLOT, Worker
from train.scrubbing import scrub_own_output


def work(
    root: str,
    sweep: str,
    slot: int,
    gpus: str = "",
    num_threads: int = 1,
    max_attempts: int = MAX_ATTEMPTS,
    trainer: str = TRAINER,
    pack: int = 1,
    num_slots: int = 1,
    ranks: int = 1,
    unit: str = "run",
) -> int:
    """The life of a worker process. Primitive arguments only: they are all that is pickled.

    gpus: the machine's devices, as CUDA_VISIBLE_DEVICES names them; the worker sees its slots' only.
    ranks: it trains runs of so many processes, and no others.
    pack: runs at once in this slot, 0 to measure; it has its share of the cores and the memory of num_slots.
    trainer: module:function, called with the root once there is a run to train, gives a RunOne.
    """
    job = os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
    locks = take_slots(root, sweep, slot, job, ranks, max(num_slots, slot + 1))
    if locks is None:
        print(f"slot {slot} is taken", flush=True)
        return NO_SLOT
    scrub_own_output()
    stop = Flag()
    _detach(stop)
    devices = devices_of(locks, [device for device in gpus.split(",") if device], num_slots, ranks)
    os.environ.update(
        CUDA_VISIBLE_DEVICES=",".join(devices),
        WEIGHT_SWEEP_NAME=sweep,
        OMP_NUM_THREADS=str(num_threads),
        MKL_NUM_THREADS=str(num_threads),
    )
    only_stage = os.environ.get(ONLY_STAGE, "")
    ledger, folder, name = (
        Ledger(root, max_attempts),
        SweepFolder(root, sweep),
        f"{os.uname().nodename}-{slot}",
    )

    def is_ours(spec: RunSpec) -> bool:
        return spec.config.num_ranks == ranks and only_stage in ("", spec.config.stage)

    def share(num_left: float) -> int:
        others = [holder for holder in holders(root).values() if holder.sweep != sweep]
        return fair_share(num_left, num_slots - len(others))

    def make_worker(index: int = 0, shared: Shared = ALONE) -> Worker:
        is_alone = shared is ALONE
        return Worker(
            ledger,
            folder,
            stop,
            name=name if is_alone else f"{name}.{index}",
            make_run_one=lambda: load_trainer(trainer)(root),
            may_claim=is_ours,
            may_wait=True,
            gpus=len(devices) if is_alone else 0,
            cores=num_threads * ranks if is_alone else 0,
            gpus_used=len(devices),
            shared=shared,
            portion=Portion(share, whole=unit == "plane") if is_alone and ranks == 1 else None,
        )

    if pack == 1 or ranks > 1 or only_stage:
        return make_worker().run()
    from sweep.packs import Pack, Place

    cores = max(num_threads, available_cores() // num_slots)
    place = Place(memory_gb=memory_of_this_task(num_slots), cores=cores, gpus=len(devices))
    return Pack(
        ledger,
        folder,
        stop,
        task=name,
        class_name="local",
        number=pack or None,
        place=place,
        num_threads=num_threads,
        make_worker=make_worker,
        is_ours=is_ours,
    ).run()


def _detach(stop: Flag) -> None:
    """Neither Ctrl-C in the terminal nor a dying ssh session ends a worker; SIGTERM asks it to stop."""
    with contextlib.suppress(PermissionError):  # already a session of its own
        os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signal_number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(
            signal_number, lambda number, _: stop.set(f"cancelled: heard {signal.Signals(number).name}")
        )
