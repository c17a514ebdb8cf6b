"""What a process prints loses its secrets on the way to the disk, through a process that outlives one that is killed.

Scrubbing a log when its run is over leaves the words of a run that was killed, and of one under way, as they are.
Here a helper of a few megabytes, one for each process that prints, reads pipes and writes what it read without
secrets: line by line, private keys whole. Nobody signals it (a session of its own); it ends when all pipes are closed.
"""

import atexit
import contextlib
import faulthandler
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from train.secrets import mask_file, scrubber

_CHUNK = 1 << 16
_LONGEST = 1 << 20  # a line of more bytes, or a private key without an end, is written as far as it came
_MESSAGE = struct.Struct("<cI")  # what, and which pipe, by number
_OPEN, _FLUSH = b"o", b"f"
_PATIENCE_S = 60.0  # for a helper that is being started, or swapped in
_BEGIN, _END = b"-----BEGIN ", b"-----END "


@contextlib.contextmanager
def scrubbed_file(path: Path) -> Iterator[int]:
    """A file descriptor to print to; at the end all that was printed is appended to the file, scrubbed."""
    file, helper = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), _helper()
    try:
        number, pipe = helper.open(file)
    finally:
        os.close(file)
    try:
        yield pipe
    finally:
        os.close(pipe)
        helper.flush(number)


def scrub_own_output() -> Callable[[], None]:
    """From now on whatever this process and its children print is scrubbed, and now what is in its files already.

    The answer, when called, waits until all is written. A crash in a library says so, too.
    """
    faulthandler.enable()
    numbers, helper = [], _helper()
    for streams in ((1, 2),) if os.path.sameopenfile(1, 2) else ((1,), (2,)):
        _mask_earlier_words(streams[0])
        number, pipe = helper.open(streams[0])
        for stream in streams:
            os.dup2(pipe, stream)
        os.close(pipe)
        numbers.append(number)

    def drain() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for number in numbers:
            helper.flush(number)

    return drain


def _mask_earlier_words(stream: int) -> None:
    """Of whoever had this output before us: a job's setup lines, Python while it started."""
    with contextlib.suppress(OSError):
        path = Path(os.readlink(f"/proc/self/fd/{stream}"))
        if path.is_file():
            mask_file(path)


class _Helper:
    """Our end of the helper process."""

    def __init__(self) -> None:
        self._owner, self._is_lost, self._num_pipes, self._lock = os.getpid(), False, 0, threading.Lock()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_PATIENCE_S)
        places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "train.scrubbing"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(self._end)

    def open(self, destination: int) -> tuple[int, int]:
        """A new pipe to that file: its number and the end to write to."""
        source, pipe = os.pipe()
        with self._lock:
            self._num_pipes += 1
            number = self._num_pipes
            socket.send_fds(self._socket, [_MESSAGE.pack(_OPEN, number)], [source, destination])
        os.close(source)
        return number, pipe

    def flush(self, number: int) -> None:
        """Wait until what was written to a pipe is in its file; a helper that is gone can't be waited for."""
        try:
            with self._lock:
                self._socket.sendall(_MESSAGE.pack(_FLUSH, number))
                self._socket.recv(1)
        except OSError:
            self._is_lost = True

    def _end(self) -> None:
        """It outlives us, to write what is left, and is nobody's to wait for: Python would warn of it."""
        if self._owner == os.getpid():
            self._socket.close()
            self._process.returncode = self._process.poll() or 0

    def serves(self) -> bool:
        """Whether this process may ask it: a forked child must not talk over its parent."""
        return self._owner == os.getpid() and not self._is_lost and self._process.poll() is None


_HELPERS: list[_Helper] = []  # the last serves


def _helper() -> _Helper:
    if not _HELPERS or not _HELPERS[-1].serves():
        _HELPERS.append(_Helper())
    return _HELPERS[-1]


class _Stream:
    """In the helper: one pipe and its file."""

    def __init__(self, source: int, destination: int, scrub: Callable[[str], str]) -> None:
        self.source, self._destination, self._scrub, self._held = source, destination, scrub, b""
        os.set_blocking(source, False)

    def read(self) -> bool:
        """Pass on what is there, whole lines only; False at the end."""
        while True:
            try:
                content = os.read(self.source, _CHUNK)
            except BlockingIOError:
                return True
            if not content:
                return False
            self._held += content
            end = max(self._held.rfind(b"\n"), self._held.rfind(b"\r")) + 1
            key = self._held.rfind(_BEGIN, 0, end)
            if key >= 0 and _END not in self._held[key:]:
                end = key
            if len(self._held) > _LONGEST:
                end = len(self._held)
            self._write(self._held[:end])
            self._held = self._held[end:]

    def flush(self) -> None:
        """Pass on all that was printed so far."""
        self.read()
        self._write(self._held)
        self._held = b""

    def close(self) -> None:
        self.flush()
        os.close(self.source)
        os.close(self._destination)

    def _write(self, content: bytes) -> None:
        if not content:
            return
        content = self._scrub(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError):  # a full disk costs words, not the run
            while content:
                content = content[os.write(self._destination, content) :]


def main() -> None:
    """The helper: pipes and their files come over the socket that is its standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    control, scrub = socket.socket(fileno=0), scrubber()
    streams: dict[int, _Stream] = {}
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            if key.fileobj is not control:
                number = int(key.data)
                if not streams[number].read():
                    selector.unregister(key.fileobj)
                    streams.pop(number).close()
            elif not _hear(control, selector, streams, scrub):
                selector.unregister(control)


def _hear(
    control: socket.socket,
    selector: selectors.BaseSelector,
    streams: dict[int, _Stream],
    scrub: Callable[[str], str],
) -> bool:
    """One message of whoever prints; False if there is nobody any more."""
    try:
        content, files, _, _ = socket.recv_fds(control, _MESSAGE.size, 2)
    except OSError:
        return False
    if len(content) < _MESSAGE.size:
        return False
    what, number = _MESSAGE.unpack(content)
    if what == _OPEN:
        streams[number] = _Stream(files[0], files[1], scrub)
        selector.register(files[0], selectors.EVENT_READ, number)
    else:
        if number in streams:
            streams[number].flush()
        with contextlib.suppress(OSError):
            control.sendall(b"!")
    return True


if __name__ == "__main__":
    main()
