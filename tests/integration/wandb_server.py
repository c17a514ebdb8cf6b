"""A W&B server on the loopback interface that remembers everything and misbehaves when told to.

It speaks what the real wandb-core, wandb.Api and wandb-workspaces need: GraphQL, file_stream, uploads.
`fault` says what happens to each request until it is set back: "429", "500", "drop" (the socket closes),
"stall" (no answer), "garbage" (HTTP 200 with nonsense). `die()` closes the port, `live()` opens it again.
"""

import contextlib
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

from wandb_graphql import Graphql
from wandb_store import Refused, Run, Store

API_KEY = "0123456789abcdef0123456789abcdef01234567"
_OPERATION = re.compile(r"^(?:\s+|#[^\n]*(?:\n|$))*(mutation|query)\s+(\w+)", re.MULTILINE)
_STREAM = re.compile(r"^/files/([^/]+)/([^/]+)/([^/]+)/file_stream$")
STALL_S = 120.0


class WandbServer:
    """Use as a context manager. What it knows is in `store`; `variables` is a client's environment."""

    def __init__(self) -> None:
        self.store, self.lock = Store(), threading.RLock()
        self.fault: str | Callable[[str], str | None] | None = None
        self.bodies: list[bytes] = []  # everything ever sent here, for looking for secrets
        self._server: ThreadingHTTPServer | None = None
        self._released = threading.Event()
        self._bound = self._bind(0)  # from here on, as others look for free ports meanwhile
        self.port = self._bound.server_address[1]
        self.graphql = Graphql(self.store, self.url)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY, "WANDB_ERROR_REPORTING": "false"}

    def _bind(self, port: int) -> "_Server":
        """A server that holds the port, and refuses connections until it is activated."""
        server = _Server(("127.0.0.1", port), _Handler, bind_and_activate=False)
        server.owner = self
        server.server_bind()
        return server

    def live(self) -> None:
        """Listen (again); what was known is still known."""
        if self._server is None:
            self._released.clear()
            self._server = self._bound
            self._server.server_activate()
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def die(self) -> None:
        """Close the port, connections included: the next request is refused."""
        server, self._server = self._server, None
        if server is not None:
            self._released.set()
            server.shutdown()
            server.server_close()
            self._bound = self._bind(self.port)
            for connection in list(server.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "WandbServer":
        self.live()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._bound.server_close()

    @contextlib.contextmanager
    def failing(self, fault: "str | Callable[[str], str | None]") -> Iterator[None]:
        """Answer that way until the end of the block."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def fault_for(self, what: str) -> str | None:
        return self.fault(what) if callable(self.fault) else self.fault

    def wait_released(self) -> None:
        """A stalled request waits for the end of the server, or for long."""
        self._released.wait(STALL_S)


class _Server(ThreadingHTTPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 128
    owner: WandbServer

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.connections: set[socket.socket] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        owner = self.server.owner
        owner.bodies.append(body)
        if path == "/graphql":
            request = json.loads(body)
            found = _OPERATION.search(request["query"])
            operation = request.get("operationName") or (found[2] if found else "")
            if not self._fails(owner.fault_for(operation)):
                self._answer_graphql(operation, request.get("variables") or {})
        elif match := _STREAM.match(path):
            if not self._fails(owner.fault_for("file_stream")):
                self._take_stream(tuple(unquote(part) for part in match.groups()), json.loads(body))
        else:
            self._send(404, {})

    def _answer_graphql(self, operation: str, variables: dict[str, Any]) -> None:
        try:
            with self.server.owner.lock:
                data = self.server.owner.graphql.answer(operation, variables)
            self._send(200, {"data": data})
        except Refused as error:
            self._send(error.status, {"data": None, "errors": [{"message": error.message}]})
        except Exception as error:  # a crash here would make wandb-core try again for minutes
            self.server.owner.store.unknown.append(f"{operation}: {error!r}")
            self._send(200, {"data": None, "errors": [{"message": f"the test server broke: {error!r}"}]})

    def _take_stream(self, key: tuple[str, ...], body: dict[str, Any]) -> None:
        owner = self.server.owner
        with owner.lock:
            run = owner.store.runs.setdefault(key, Run(*key))  # type: ignore[arg-type]
            for name, part in (body.get("files") or {}).items():
                lines = run.lines.setdefault(name, {})
                for index, line in enumerate(part["content"]):
                    lines[part["offset"] + index] = line
                if name == "wandb-summary.json" and part["content"]:
                    run.summary = json.loads(part["content"][-1])
            run.is_preempting = bool(body.get("preempting")) or run.is_preempting
            if body.get("complete"):
                run.exit_code = body.get("exitcode")
                run.state = (
                    "finished" if not run.exit_code else "preempted" if run.is_preempting else "failed"
                )
                run.is_preempting = False
            else:
                run.state = "running"
        self._send(200, {"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        body, owner = self._body(), self.server.owner
        if not self._fails(owner.fault_for("upload")):
            with owner.lock:
                owner.store.uploads[unquote(urlparse(self.path).path).removeprefix("/upload/")] = body
            owner.bodies.append(body)
            self._send(200, {})

    def do_GET(self) -> None:
        self._send(404, {})

    do_HEAD = do_GET

    def _fails(self, fault: str | None) -> bool:
        """Misbehave, if that is what is wanted."""
        if fault is None:
            return False
        if fault == "stall":
            self.server.owner.wait_released()
        if fault in ("drop", "stall"):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "garbage":
            self._send(200, b"<html>come back after lunch</html>")
        else:
            self._send(int(fault), {"errors": [{"message": f"told to answer {fault}"}]})
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, status: int, value: Any) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Poll; whether it came true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
