"""The webhook: one message for each thing that happens; a broken receiver costs a line; no address is written."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sweep.arguments import parse_arguments
from sweep.commands.session import command_line
from sweep.ledger import RunState
from sweep.notify import VARIABLE, Notifier, NotifyConfig, events, post
from sweep.spec import Status
from train.errors import ConfigError
from train.record import Failure

SECRET = "T0000/B0000/very-secret-word"


class Receiver(HTTPServer):
    """Answers with `status` and remembers what came."""

    def __init__(self, status=200):
        self.status, self.texts = status, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/services/{SECRET}"

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.texts.append(body)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


def finished():
    return RunState(status=Status.FINISHED, attempt=1)


def failed(kind="code", attempt=1):
    return RunState(status=Status.FAILED, attempt=attempt, failure=Failure(kind=kind, message="it broke"))


def states(*found):
    return {f"run{index}": state for index, state in enumerate(found)}


PLANNED = RunState(status=Status.PLANNED)


def test_events_are_the_end_and_each_doubling_of_failures():
    assert events("s", states(finished(), PLANNED), 3) == []
    (over,) = events("s", states(finished(), finished()), 3)
    assert over.text == "s: 2 of 2 runs finished"
    assert events("s", states(failed(), failed(), PLANNED), 3) == []
    (burst,) = events("s", states(failed(), failed(), failed("nan_loss"), *[PLANNED] * 9), 3)
    assert burst.text == "s: 3 of 12 runs failed (2 code, 1 nan_loss), such as it broke"
    (same,) = events("s", states(*[failed()] * 5, *[PLANNED] * 7), 3)
    (more,) = events("s", states(*[failed()] * 6, *[PLANNED] * 6), 3)
    assert same.key == burst.key != more.key
    assert events("s", states(*[failed("cancelled")] * 5, PLANNED), 3) == [], "somebody wanted that"
    (again,) = events("s", states(finished(), failed(attempt=3)), 3)
    (before,) = events("s", states(finished(), failed(attempt=1)), 3)
    assert again.key != before.key, "a retry ends anew"


def test_many_lookers_send_one_message(tmp_path):
    with Receiver() as receiver:
        config = NotifyConfig(webhook=receiver.address)
        lookers = [Notifier(tmp_path / "s", config) for _ in range(8)]
        threads = [threading.Thread(target=one.tell, args=(states(finished()),)) for one in lookers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lookers[0].tell(states(finished()))
        Notifier(tmp_path / "s", config).tell(states(finished()))
    assert receiver.texts == [{"text": "s: 1 of 1 runs finished"}]
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert SECRET not in written
    assert "secret" not in repr(config)


def test_a_receiver_that_refuses_costs_a_line_and_somebody_else_may_try(tmp_path):
    said = []
    with Receiver(status=503) as receiver:
        one = Notifier(tmp_path, NotifyConfig(webhook=receiver.address), said.append)
        one.tell(states(finished()))
        one.tell(states(finished()))
    assert len(receiver.texts) == 1, "once for each looker"
    assert said == ["no message to the webhook: its receiver says 503"]
    Notifier(tmp_path, NotifyConfig(webhook=receiver.address), said.append).tell(states(finished()))
    assert "refused" in said[1], "nobody listens there now"
    with Receiver() as better:
        for _ in range(2):
            Notifier(tmp_path, NotifyConfig(webhook=better.address), said.append).tell(states(finished()))
    assert len(better.texts) == 1
    assert SECRET not in "".join(said)


def test_a_receiver_without_an_answer_takes_a_bounded_time_and_may_have_got_it(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}/{SECRET}"
        began = time.monotonic()
        assert post(address, "x", timeout_s=0.2) == ("no answer within 0.2 s", True)
        assert time.monotonic() - began < 5.0
        monkeypatch.setattr("sweep.notify.post", lambda *_: ("no answer within 5 s", True))
        said = []
        for _ in range(2):
            Notifier(tmp_path, NotifyConfig(webhook=address), said.append).tell(states(finished()))
        assert len(said) == 1


def test_the_address_comes_from_the_environment_too_and_is_checked_without_being_quoted(monkeypatch):
    assert NotifyConfig().address == ""
    monkeypatch.setenv(VARIABLE, "https://example.org/x")
    assert NotifyConfig().address == "https://example.org/x"
    with pytest.raises(ConfigError) as refused:
        NotifyConfig(webhook=f"file:///{SECRET}")
    assert SECRET not in str(refused.value)
    arguments = parse_arguments(["+grid=smoke_2x2", f"notify.webhook=https://x.org/{SECRET}", "seed=1"])
    assert command_line(arguments, "status") == "python -m sweep +grid=smoke_2x2 seed=1 status"
