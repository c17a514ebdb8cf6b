"""What W&B costs: CPU of 39 offline runs in two workers; the slow-down of a run of 60 s, offline and online.

    PYTHONPATH=.:tests/integration python tests/bench/bench_wandb.py [seconds]

Runs are toys that write what a real run writes: 250 steps (wit_5x5's) of ten numbers, or 60 s of 20 ms steps.
The slow-down is an upper bound that the load of the machine can't hide in: the time the training thread spent
in its tracker, plus the CPU of every other thread of its process, as if it had been taken from the run; and
the same plus the CPU of wandb-core, which has a core of its own where there is one. It is that of a worker's
second run; what the first one pays, the import of wandb and the start of wandb-core, is said apart.
Results: tests/bench/results/.
"""

import json
import os
import platform
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

NUM_RUNS, NUM_WORKERS, STEPS_OF_A_RUN = 39, 2, 250
NAMES = {"model_identity": "m", "dataset_identity": "d"}


def descendants(pid: int) -> list[int]:
    """The living processes below one."""
    children: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            children += [int(path.parent.name), *descendants(int(path.parent.name))]
    return children


def cpu_s(pid: int) -> float:
    """CPU of one process, its waited-for children included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def one_run(folder: Path, mode: str, seed: int, num_steps: int, step_s: float) -> float:
    """A run of steps that take `step_s`; the seconds its training thread spent in the tracker."""
    from toy_mirror import mirrored_plan

    from train.record import RunRecord
    from train.tracking import start_tracker
    from train.tracking_values import Asked, mirrored_run

    spec = mirrored_plan(seed + 1, mode).runs[seed]
    folder.mkdir(parents=True)
    clock = time.perf_counter
    started = clock()
    tracker = start_tracker(
        spec.config, mirrored_run(spec.config, spec.run_id, spec.fingerprint, NAMES, None, Asked()), folder
    )
    in_tracker = clock() - started
    with open(folder / "events.jsonl", "w", buffering=1) as stream:
        for step in range(1, num_steps + 1):
            time.sleep(step_s)
            event = {"step": step, **{f"number_{index}": step / (index + 1) for index in range(9)}}
            stream.write(json.dumps(event) + "\n")
            started = clock()
            tracker.log(step, event)
            in_tracker += clock() - started
    record = RunRecord(run_id=spec.run_id, fingerprint=spec.fingerprint, outcome="finished", stage="sft")
    started = clock()
    lost = tracker.finish(record)
    assert not lost, lost
    return in_tracker + clock() - started


def _cpu() -> dict[str, float]:
    """CPU so far: of this process, of its main thread, of wandb-core."""
    core_s = sum(map(cpu_s, descendants(os.getpid())))
    return {"process_s": time.process_time(), "main_thread_s": time.thread_time(), "core_s": core_s}


def worker(root: str, mode: str, seeds: list[int], num_steps: int, step_s: float, results) -> None:
    """Several runs in one process; its numbers. With `step_s` a short run first: what a worker pays once."""
    before = {"process_s": 0.0, "main_thread_s": 0.0, "core_s": 0.0}
    if step_s >= 0.02:
        one_run(Path(root) / f"{mode}-first", mode, 1, 20, 0.01)
        before = _cpu()
    wall, in_tracker = time.perf_counter(), 0.0
    for seed in seeds:
        in_tracker += one_run(Path(root) / f"{mode}-{seed}", mode, seed, num_steps, step_s)
    after = _cpu()
    once = before["process_s"] - before["main_thread_s"] + before["core_s"]
    results.put(
        {key: after[key] - before[key] for key in after}
        | {"wall_s": time.perf_counter() - wall, "in_tracker_s": in_tracker, "once_s": once}
    )


def measure(
    root: str, mode: str, shares: list[list[int]], num_steps: int, step_s: float
) -> list[dict[str, float]]:
    """Workers side by side."""
    context = get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=worker, args=(root, mode, share, num_steps, step_s, results))
        for share in shares
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    from wandb_server import WandbServer

    shares = [list(range(index, NUM_RUNS, NUM_WORKERS)) for index in range(NUM_WORKERS)]
    with tempfile.TemporaryDirectory() as root, WandbServer() as server:
        os.environ.update(server.variables)
        many = {
            mode: measure(root, mode, shares, STEPS_OF_A_RUN, 0.001) for mode in ("none", "wandb_offline")
        }
        long = {
            mode: measure(f"{root}/long", mode, [[0]], int(seconds / 0.02), 0.02)[0]
            for mode in ("wandb_offline", "wandb")
        }
    total = {mode: sum(item["process_s"] + item["core_s"] for item in found) for mode, found in many.items()}
    extra = total["wandb_offline"] - total["none"]
    result = {
        "what": "CPU of W&B over 39 offline runs in 2 workers; upper bound of the slow-down of a long run",
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "cpu_s_39_runs": round(extra, 2),
        "cpu_s_per_run": round(extra / NUM_RUNS, 3),
        "limit_cpu_s_39_runs": 30,
        "limit_cpu_s_per_run": 1.5,
    }
    for mode, item in long.items():
        others = item["process_s"] - item["main_thread_s"]
        slow = item["in_tracker_s"] + others + item["core_s"]
        result[f"long_{mode}"] = {
            "wall_s": round(item["wall_s"], 1),
            "in_tracker_s": round(item["in_tracker_s"], 3),
            "other_threads_cpu_s": round(others, 3),
            "wandb_core_cpu_s": round(item["core_s"], 3),
            "once_per_worker_cpu_s": round(item["once_s"], 3),
            "slow_down_by_its_process_percent": round(
                100 * (item["in_tracker_s"] + others) / item["wall_s"], 2
            ),
            "slow_down_if_wandb_core_shares_its_core_percent": round(100 * slow / item["wall_s"], 2),
            "limit_percent": 2,
        }
    date = time.strftime("%Y-%m-%d", time.gmtime())
    path = Path(__file__).parent / "results" / f"wandb_{platform.machine()}_{os.cpu_count()}cores_{date}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
