"""What all benchmarks of one or several runs ask of their models, as one queue sorted by length.

The runs are cells of one plane: mostly they are asked the same, and are then asked at once.

Letters: N runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from train.benchmarks.interface import Backend, Benchmark, Output, Request
from train.benchmarks.outputs import Outputs

_SLAB = 256  # requests between two looks at whether to stop; a slab is batched by length within itself


class Stopped(Exception):
    """Asked to stop; what is done is on disk."""


class Backends(Protocol):
    """The models of N runs over one base."""

    def generate(self, places: Sequence[int], requests: Sequence[Sequence[Request]]) -> list[list[Output]]:
        """Of the runs at these places: requests[i][k] is what places[k] is asked, and all of requests[i] share
        temperature and limit; so does the result."""
        ...

    def of(self, place: int) -> Backend:
        """One run's model."""
        ...


@dataclass(frozen=True, slots=True)
class OneModel:
    """A run by itself."""

    backend: Backend

    def generate(self, places: Sequence[int], requests: Sequence[Sequence[Request]]) -> list[list[Output]]:
        """What the backend writes."""
        return [[output] for output in self.backend.generate([request for (request,) in requests])]

    def of(self, place: int) -> Backend:
        """The backend."""
        return self.backend


@dataclass(slots=True)
class Asking:
    """One run: its benchmarks, what it wrote before, and what each benchmark has got by key.

    should_stop   takes this run out; what it wrote is kept
    """

    benchmarks: Sequence[Benchmark]
    cache: Outputs
    should_stop: Callable[[], bool] = lambda: False
    outputs: dict[str, dict[str, Output]] = field(default_factory=dict)
    has_left: bool = False
    num_done: int = 0  # requests, of this session's
    num_total: int = 0

    def __post_init__(self) -> None:
        self.outputs = {benchmark.name: {} for benchmark in self.benchmarks}

    def asked(self) -> list[tuple[str, Request]]:
        """What its benchmarks ask now, by benchmark. A conversation takes several rounds."""
        return (
            []
            if self.has_left
            else [
                (benchmark.name, request)
                for benchmark in self.benchmarks
                for request in benchmark.requests(self.outputs[benchmark.name])
                if request.key not in self.outputs[benchmark.name]
            ]
        )

    def stays(self) -> bool:
        """Whether it is still wanted."""
        self.has_left = self.has_left or self.should_stop()
        return not self.has_left


def generate_all(
    runs: Sequence[Asking],
    backends: Backends,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int, int], None],
) -> None:
    """Fill the outputs of every run with everything that every benchmark asks for.

    on_progress   place of a run, how many of its requests are done, of how many
    """
    while any(asked := [run.asked() for run in runs]):
        queues = [
            {(name, request.key): request for name, request in _wanted(run, those)}
            for run, those in zip(runs, asked, strict=True)
        ]
        # Who is asked under the same names and in the same way is asked together, else one by one.
        ways = [
            {name: (one.temperature, -one.max_new_tokens) for name, one in queue.items()} for queue in queues
        ]
        for run, queue in zip(runs, queues, strict=True):
            run.num_total += len(queue)
        while waiting := [n for n, queue in enumerate(queues) if queue]:
            together = [n for n in waiting if ways[n] == ways[waiting[0]]]
            order = sorted(
                queues[together[0]].items(),
                key=lambda entry: (entry[1].temperature, -entry[1].max_new_tokens, -_length(entry[1])),
            )
            for start in range(0, len(order), _SLAB):
                if should_stop():
                    raise Stopped(
                        f"stopped after {sum(run.num_done for run in runs)} of "
                        f"{sum(run.num_total for run in runs)} outputs"
                    )
                staying = [n for n in together if runs[n].stays()]
                if not staying:
                    break
                slab = [[queues[n][key] for n in staying] for key, _ in order[start : start + _SLAB]]
                written = backends.generate(staying, slab)
                for place, n in enumerate(staying):
                    runs[n].cache.add([row[place] for row in slab], [row[place] for row in written])
                    runs[n].num_done += len(slab)
                    on_progress(n, runs[n].num_done, runs[n].num_total)
            for n in together:
                queues[n] = {}
        for run, those in zip(runs, asked, strict=True):
            for name, request in those if not run.has_left else ():
                run.outputs[name][request.key] = run.cache[request]


def _wanted(run: Asking, asked: Sequence[tuple[str, Request]]) -> list[tuple[str, Request]]:
    """What isn't known yet, each once."""
    once: dict[str, tuple[str, Request]] = {}
    for name, request in asked:
        if request not in run.cache:
            once[run.cache.name(request)] = (name, request)
    return list(once.values())


def _length(request: Request) -> int:
    return len(request.prompt) + sum(len(text) for _, text in request.messages)
