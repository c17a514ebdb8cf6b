"""A deterministic judge on loopback: real HTTP, an OpenAI-compatible endpoint, and every way one can fail."""

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def prefers_second(first: str, second: str) -> float:
    """The log-odds of a judge that likes many different words."""
    return 0.2 * (len(set(second.split())) - len(set(first.split())))


class Judge:
    """What the server does. `faults` answers a request in its place: (status, body, headers), or None."""

    def __init__(self) -> None:
        self.position_bias = 0.0  # log-odds for the answer shown first
        self.log_odds: Callable[[str, str], float] = prefers_second
        self.has_logprobs = True
        self.prose: Callable[[str], str | None] = lambda text: None
        self.faults: Callable[[int, str], tuple[int, str, dict[str, str]] | None] = lambda number, text: None
        self.delay_seconds = 0.0
        self.keys: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.starts: list[float] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, body: dict[str, Any]) -> Iterator[int]:
        with self._lock:
            self.requests.append(body)
            self.starts.append(time.monotonic())
            number = len(self.requests) - 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield number
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        outputs = re.findall(r'"output": """(.*?)"""', text, flags=re.S)
        said, tokens = self.prose(text), None
        if said is None and len(outputs) == 2:
            odds = self.log_odds(*outputs) - self.position_bias
            second = 1 / (1 + math.exp(-max(-20.0, min(20.0, odds))))
            said = "M" if second > 0.5 else "m"
            if self.has_logprobs and body.get("logprobs"):
                tokens = {"m": math.log(1 - second), "M": math.log(second), "I": -30.0}
        elif said is None:
            said = f"It is fine. Rating: [[{self._grade(text)}]]"
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}}
        if tokens:
            top = [{"token": token, "logprob": value} for token, value in tokens.items()]
            choice["logprobs"] = {"content": [{"token": said, "top_logprobs": top}]}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": len(said) // 4 + 1}
        return {"choices": [choice], "usage": usage}

    def _grade(self, text: str) -> int:
        return 1 + Counter(text)["e"] % 10


@contextmanager
def judge_server(judge: Judge) -> Iterator[str]:
    """The base URL of a running server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            judge.keys.add(self.headers.get("authorization", ""))
            with judge.counted(body) as number:
                time.sleep(judge.delay_seconds)
                fault = judge.faults(number, body["messages"][-1]["content"])
                status, text, headers = fault or (200, json.dumps(judge.answer(body)), {})
            if self.path != "/v1/chat/completions":
                status, text = 404, "no such path"
            data = text.encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
