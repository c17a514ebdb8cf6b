"""What W&B costs: the wall time of a real run of a minute, with and without; CPU of 39 offline runs in two workers.

    PYTHONPATH=.:tests/integration python tests/bench/bench_wandb.py pair|pair_on_one_core [MODE]
    PYTHONPATH=.:tests/integration python tests/bench/bench_wandb.py many

A pair is the embedded experiment twice, without a mirror and with tracking=MODE (wandb_offline), in turns first;
each call measures one pair and adds it to the result file. The runs have 2,464 steps of 20 ms: many points for
their time, as a mirror costs by the point. Wall time is that of the command, start of Python and W&B's end included;
CPU is that of the mirror and wandb-core, who end with the run and are waited for. On one core, everything they take
is taken from the run. Both run ahead of everything else of the machine, in round
robin with their mirror (SCHED_RR, if the user may). `many`: toys that write what a real run writes, 250 steps
(wit_5x5's) of ten numbers. Results: tests/bench/results/.
"""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from costs import become_parent_of_orphans, go_ahead_of_others, wait_for_orphans
from scipy import stats

PROJECT = Path(__file__).resolve().parents[2]
RUN = (
    "objective.prompt_weight=0",
    "objective.response_weight=1",
    "seed=0",
    "train.epochs=44",
    "eval=likelihood",
)
NUM_RUNS, NUM_WORKERS, STEPS_OF_A_RUN = 39, 2, 250
NAMES = {"model_identity": "m", "dataset_identity": "d"}
LIMITS = {"percent": 2, "cpu_s_per_run": 1.5, "cpu_s_39_runs": 30}


def wait_for(process: subprocess.Popen) -> float:
    """Until it ends, its exit status left to be asked for; the seconds its main thread waited for a core."""
    waited_ns = 0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        waited_ns = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1])
        time.sleep(0.5)
    return waited_ns / 1e9


def real_run(mode: str, cores: set[int]) -> dict[str, float]:
    """One run by hand, as a user starts it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "train", *RUN, f"tracking={mode}", f"output={folder}/run"]
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        waited_s = wait_for(process)
        _, code, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = code
        assert code == 0, code
        mirror_cpu_s = wait_for_orphans()
        record = json.loads(Path(folder, "run", "record.json").read_text())
        assert "mirror" not in record["environment"], record["environment"]
        return {
            "wall_s": wall_s,
            "waited_s": waited_s,
            "training_s": record["training_s"],
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "mirror_and_core_cpu_s": mirror_cpu_s,
        }


def measure_pair(mode: str, cores: set[int], is_mirrored_first: bool) -> dict[str, Any]:
    """Both runs of a pair, one after the other."""
    modes = [mode, "none"] if is_mirrored_first else ["none", mode]
    load = os.getloadavg()[0]
    found = {name: real_run(name, cores) for name in modes}
    return {"first": modes[0], "load_before": load, "none": found["none"], "mirrored": found[mode]}


def slow_down(pairs: list[dict[str, Any]], key: str = "wall_s") -> dict[str, Any]:
    """Mean of the ratios (geometric) as a percentage, with its 95 % interval by Student's t over pairs."""
    logs = [math.log(pair["mirrored"][key] / pair["none"][key]) for pair in pairs]
    percent = [100 * math.expm1(fmean(logs))]
    if len(logs) > 1:
        reach = float(stats.t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
        percent += [100 * math.expm1(fmean(logs) + sign * reach) for sign in (-1, 1)]
    return {"mean_percent": round(percent[0], 2), "interval_95_percent": [round(x, 2) for x in percent[1:]]}


def toy_run(folder: Path, mode: str, seed: int) -> None:
    """A run that computes nothing and writes what a real one writes."""
    from toy_mirror import mirrored_plan

    from train.record import RunRecord
    from train.tracking import start_tracker
    from train.tracking_values import Asked, mirrored_run

    spec = mirrored_plan(seed + 1, mode).runs[seed]
    folder.mkdir(parents=True)
    mirrored = mirrored_run(spec.config, spec.run_id, spec.fingerprint, NAMES, None, Asked())
    tracker = start_tracker(spec.config, mirrored, folder)
    with open(folder / "events.jsonl", "w", buffering=1) as stream:
        for step in range(1, STEPS_OF_A_RUN + 1):
            time.sleep(0.004)
            event = {"step": step, **{f"number_{index}": step / (index + 1) for index in range(9)}}
            stream.write(json.dumps(event) + "\n")
            tracker.log(step, event)
    lack = tracker.finish(
        RunRecord(run_id=spec.run_id, fingerprint=spec.fingerprint, outcome="finished", stage="sft")
    )
    assert not lack, lack


def cpu_of_many(mode: str) -> float:
    """CPU seconds of two workers side by side and everything they start."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, str(Path(__file__).resolve()), "toys", root, mode]
        workers = [subprocess.Popen([*command, str(first)]) for first in range(NUM_WORKERS)]
        total_s = 0.0
        for worker in workers:
            _, code, usage = os.wait4(worker.pid, 0)
            worker.returncode = code
            assert code == 0, code
            total_s += usage.ru_utime + usage.ru_stime
        return total_s + wait_for_orphans()


def main(what: str, *words: str) -> None:
    if what == "toys":
        root, mode, first = words
        for seed in range(int(first), NUM_RUNS, NUM_WORKERS):
            toy_run(Path(root, f"{mode}-{seed}"), mode, seed)
        return
    go_ahead_of_others()
    become_parent_of_orphans()
    path = Path(__file__).parent / "results" / f"wandb_{platform.machine()}_{os.cpu_count()}cores.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {"limits": LIMITS, "cores": os.cpu_count(), "python": platform.python_version()}
    result["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    if what == "many":
        extra_s = cpu_of_many("wandb_offline") - cpu_of_many("none")
        result["many"] = {"cpu_s_39_runs": round(extra_s, 2), "cpu_s_per_run": round(extra_s / NUM_RUNS, 3)}
    else:
        mode = words[0] if words else "wandb_offline"
        cores = {min(os.sched_getaffinity(0))} if what == "pair_on_one_core" else os.sched_getaffinity(0)
        entry = result.setdefault(
            f"{mode}_on_{len(cores)}_{'core' if len(cores) == 1 else 'cores'}", {"pairs": []}
        )
        pair = measure_pair(mode, cores, len(entry["pairs"]) % 2 == 1)
        entry["pairs"].append(pair)
        print(json.dumps(pair))
        entry |= {
            "wall": slow_down(entry["pairs"]),
            "training": slow_down(entry["pairs"], "training_s"),
            "mirror_and_core_cpu_s": round(
                fmean(pair["mirrored"]["mirror_and_core_cpu_s"] for pair in entry["pairs"]), 2
            ),
        }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result | {"pairs": "..."}, indent=1)[-3000:])


if __name__ == "__main__":
    main(*sys.argv[1:])
