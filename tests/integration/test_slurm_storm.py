"""Many faults in one sweep on a real SLURM, scheduled from a seed. Minutes: CLUSTER_FAULTS=20 says how many."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_slurm_faults import Scene, scene

from sweep.spec import Status

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
NUM_RUNS = 100


class Weather:
    """Faults, one after another; each says what it hit, or "" if nothing was there to hit."""

    def __init__(self, it: Scene, cluster, chance: random.Random) -> None:
        self.it, self.cluster, self.chance = it, cluster, chance
        self.log: list[str] = []

    def strike(self) -> None:
        name = self.chance.choice(
            [
                "kill",
                "scancel",
                "requeue",
                "preempt",
                "node_down",
                "controller",
                "accounting",
                "stop",
                "usr2",
                "slurmd",
            ]
        )
        if what := getattr(self, name)():
            self.log.append(f"{name} {what}")

    def kill(self) -> str:
        return self._signal(signal.SIGKILL)

    def stop(self) -> str:
        return self._signal(signal.SIGSTOP)

    def scancel(self) -> str:
        return self._command("scancel")

    def requeue(self) -> str:
        return self._command("scontrol", "requeue")

    def usr2(self) -> str:
        return self._command("scancel", "--signal=USR2")

    def preempt(self) -> str:
        node = self._node()
        if node:
            subprocess.run(
                [
                    "sbatch",
                    "--partition=main",
                    f"--nodelist={node}",
                    "--cpus-per-task=4",
                    "--output=/dev/null",
                    "--wrap=sleep 5",
                ],
                check=True,
                capture_output=True,
            )
        return node

    def node_down(self) -> str:
        node = self._node()
        if node:
            subprocess.run(
                ["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True
            )
            time.sleep(2.0)
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        return node

    def slurmd(self) -> str:
        node = self._node()
        if node:
            self.cluster.daemons.kill(f"slurmd.{node}")
            time.sleep(self.chance.uniform(1.0, 30.0))
            self.cluster.start_node(node)
        return node

    def controller(self) -> str:
        self.cluster.daemons.kill("slurmctld")
        time.sleep(2.0)
        self.cluster.start_controller()
        return "restarted"

    def accounting(self) -> str:
        self.cluster.daemons.stop("slurmdbd")
        time.sleep(3.0)
        self.cluster.start_accounting()
        return "restarted"

    def _signal(self, number: int) -> str:
        running = self.it.running(1)
        if not running:
            return ""
        spec, pid = self.chance.choice(running)
        os.kill(pid, number)
        return spec.run_id

    def _command(self, *words: str) -> str:
        running = self.it.running(1)
        if not running:
            return ""
        spec, _ = self.chance.choice(running)
        subprocess.run([*words, self.it.job_of(spec)], check=False, capture_output=True)
        return spec.run_id

    def _node(self) -> str:
        nodes = sorted({task.node for task in self.it.tasks() if task.state == "RUNNING"})
        return self.chance.choice(nodes) if nodes else ""


@pytest.mark.skipif(
    "CLUSTER_FAULTS" not in os.environ, reason="takes minutes: CLUSTER_FAULTS=20 says how many faults"
)
@pytest.mark.parametrize("seed", [int(word) for word in os.environ.get("CLUSTER_SEEDS", "0").split(",")])
def test_many_faults_in_one_sweep(slurm, tmp_path: Path, seed):
    num_faults, chance = int(os.environ["CLUSTER_FAULTS"]), random.Random(seed)
    it = scene(tmp_path, "storm", num_runs=NUM_RUNS, step_s=0.5, partition="low", max_jobs=8, hung_s=12.0)
    it.begin()
    weather = Weather(it, slurm, chance)
    deadline = time.monotonic() + 1300
    while len(weather.log) < num_faults:
        assert time.monotonic() < deadline
        time.sleep(chance.uniform(1.0, 4.0))
        if not it.running(1) and all(
            state.status is Status.FINISHED for state in it.tender.look().states.values()
        ):
            break
        weather.strike()
        try:
            it.tender.tend()
        except Exception as error:
            it.said.append(str(error))
    it.finish(600)
    it.check(num_steps_lost=num_faults)
    print("\n".join([*weather.log, *it.said]))
    assert len(weather.log) == num_faults, "the runs were over before the faults were"
