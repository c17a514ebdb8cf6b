"""On a real SLURM: cancel some runs or all; one message, however many look; one sweep in two places in turns."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from slurm_scenes import NUM_STEPS, Scene, scene
from slurm_sweeps import TRAINER, toy_session

from sweep.arguments import Arguments
from sweep.commands import cancelling, clustering, elsewhere
from sweep.controller import Controller, Interrupts
from sweep.errors import LaunchError
from sweep.launch import Launch
from sweep.notify import VARIABLE, Notifier, NotifyConfig
from sweep.show import make_view
from sweep.slots import holders
from sweep.spec import Status

pytestmark = pytest.mark.integration
HERE = Path(__file__).resolve().parent


def cancel(it: Scene, monkeypatch, **words) -> int:
    """`python -m sweep ... cancel` as it is, but for the question and the trainer."""
    arguments = Arguments("cancel", **words)
    monkeypatch.setattr(cancelling, "open_session", lambda *_, **__: toy_session(it.tender, arguments))
    monkeypatch.setattr(clustering, "tender_of", lambda session: it.tender)
    return cancelling.cancel(arguments)


def test_some_runs_are_cancelled_and_taken_up_again(slurm, tmp_path, monkeypatch, capsys):
    it = scene(tmp_path, "some", num_runs=5)
    it.begin()
    running, _ = it.running()[0]
    planned = it.plan.runs[-1]
    seeds = f"seed={running.config.seed},{planned.config.seed}"
    with pytest.raises(LaunchError, match=r"would stop 1 running run of toy, and nobody can be asked here"):
        cancel(it, monkeypatch, filters=(seeds,))
    assert it.tender.ledger.status(running.fingerprint).status is Status.RUNNING
    assert cancel(it, monkeypatch, filters=(seeds,), yes=True) == 0
    said = capsys.readouterr().out
    assert "waiting for 1 worker to save and give back" in said
    assert "cancelled 2 runs" in said
    it.until(it.is_over)
    states = it.tender.ledger.statuses(spec.fingerprint for spec in it.plan.runs)
    kinds = {name: state.failure.kind for name, state in states.items() if state.failure}
    assert kinds == {running.fingerprint: "cancelled", planned.fingerprint: "cancelled"}
    assert it.num_steps(planned) == 0
    assert 0 < it.num_steps(running) < NUM_STEPS, "it stopped, with its state saved"
    for spec in (running, planned):
        assert it.tender.ledger.retry(spec.fingerprint)
    it.finish()
    it.check(0)


def test_all_workers_are_stopped_and_waited_for(slurm, tmp_path, monkeypatch, capsys):
    it = scene(tmp_path, "all", num_runs=6)
    it.begin()
    assert cancel(it, monkeypatch, yes=True) == 0
    said = capsys.readouterr().out
    assert "on nodes to save their state" in said
    assert "given back with a checkpoint. Continue with: " in said
    assert not it.running(0)
    it.until(lambda: not [task for task in it.tasks() if task.is_waiting or task.state == "RUNNING"])
    it.tender.tend(is_asked=True)
    it.finish()
    it.check(0)


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_one_message_from_watchers_cron_and_the_last_worker(slurm, tmp_path, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.texts = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/services/a-secret-word"
    monkeypatch.setenv(VARIABLE, address)  # jobs have it, too
    it = scene(tmp_path, "told", num_runs=4, step_s=0.1)
    lookers = [Notifier(it.tender.folder.path, NotifyConfig()) for _ in range(2)]
    try:
        it.send()
        while not it.is_over():
            for one in lookers:
                one.tell(it.tender.ledger.statuses(spec.fingerprint for spec in it.plan.runs))
        for _ in range(3):  # watch, watch and a line in cron
            lookers.append(Notifier(it.tender.folder.path, NotifyConfig()))
            for one in lookers:
                one.tell(it.tender.ledger.statuses(spec.fingerprint for spec in it.plan.runs))
        it.until(lambda: not [task for task in it.tasks() if task.is_working])
        assert server.texts == [{"text": "toy: 4 of 4 runs finished"}]  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
    written = [
        path for path in it.root.rglob("*") if path.is_file() and b"a-secret-word" in path.read_bytes()
    ]
    assert written == []


def test_a_sweep_moves_to_this_machine_while_a_job_holds_a_run(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(elsewhere, "LOOK_EVERY_S", 1.0)
    monkeypatch.setenv("TOY_STEP_S", "0.1")
    it = scene(tmp_path, "moves", num_runs=5, step_s=1.0, max_jobs=1)
    it.begin()
    _, pid = it.running()[0]
    said: list[str] = []
    look = elsewhere.Elsewhere(toy_session(it.tender, Arguments("run")), said.append)
    launch = Launch(root=str(it.root), sweep=it.plan.name, num_slots=1, trainer=TRAINER)

    def on_look(states):
        look(states)
        if sum(state.status is Status.FINISHED for state in states.values()) == 4:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the others are done; now its job dies

    view = make_view(it.tender.ledger)
    folder = it.tender.folder
    ending = Controller(
        it.plan, it.tender.ledger, folder, launch, view, Interrupts(), poll_s=0.2, on_look=on_look
    ).run()
    view.close()
    assert ending.num(Status.FINISHED) == 5
    assert any("1 run is with jobs of a cluster and left alone" in line for line in said), said
    assert any(line.startswith("lost toy-") and "(killed)" in line for line in said), said
    it.check(1)


def test_a_sweep_moves_to_the_cluster_when_this_machines_workers_are_dead(slurm, tmp_path):
    it = scene(tmp_path, "back", num_runs=4, step_s=0.2)
    command = [sys.executable, str(HERE / "toy_sweep.py"), str(it.root), "4", "2"]
    process = subprocess.Popen(
        command, env={**os.environ, "TOY_STEP_S": "0.5"}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    it.until(lambda: it.running(2))
    process.kill()
    process.wait()
    for holder in holders(it.root).values():
        os.kill(holder.owner.pid, signal.SIGKILL)
    began = time.monotonic()
    it.finish(60)  # not after the five minutes that a foreign worker's silence would take
    assert time.monotonic() - began < 60
    it.check(2)
    assert it.losses().count("killed") == 2
