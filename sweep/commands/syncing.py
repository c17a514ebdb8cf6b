"""sync: what the ledger has and the W&B server hasn't, sent run after run from a machine with a network.

The upload is made from events.jsonl and record.json, not by replaying W&B's offline folders: the ledger is
the truth and W&B its mirror. Offline folders of attempts overlap (each begins again at its checkpoint), and
`wandb sync` would append one behind the other with shifted steps; events.jsonl is cut back by the run itself,
so it holds every step once, a run without any offline folder can be sent as well, and system statistics are
the one thing that stays behind. Each upload begins behind the last step that the server says it has, so doing
it again, or after dying half-way, repeats nothing.

    <run>/wandb_synced.json      per server and project: the last step and the record that it confirmed
    <root>/<sweep>/sync.lock     held while a sync runs; a second one, such as cron's next, leaves at once
"""

import netrc
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sweep.arguments import Arguments
from sweep.asked import asked_by_fingerprint
from sweep.commands.session import Session, open_session
from sweep.evaluations import evaluations_by_run, without_evaluations
from sweep.spec import Plan, RunSpec, Status
from sweep.upload import News, is_confirmed, mirrored_for_sync, news_of, upload
from train.errors import UserError
from train.files import only_one, read_json, write_json_atomic
from train.tracking_values import Asked, one_line
from train.tracking_wandb import explained, mark_synced, set_environment

MIN_INTERVAL_S = 0.1  # between the beginnings of two uploads: at most 10 new runs a second
NUM_FAILURES = 3  # in a row, then the server is left in peace
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
SYNCED = "wandb_synced.json"
_MISTAKES = ("api key", "no entity", "lets you not write")  # parts of lines about the user's mistakes


def sync(arguments: Arguments) -> int:
    """Exit code 0 when the server has everything, 1 when something is left; UserError for a mistake."""
    session = open_session(arguments, allow_unresolved=True)
    saved = session.folder.plan()
    if saved is not None and not says_tracking(arguments) and _same_runs(saved, session.plan):
        session = replace(session, plan=saved)  # to the project that its workers were told
    return sync_session(session)


def says_tracking(arguments: Arguments) -> bool:
    """Whether the command line says where to: else the sweep's own plan does."""
    return any(override.lstrip("+").startswith("tracking") for override in arguments.overrides)


def _same_runs(one: Plan, other: Plan) -> bool:
    return [spec.fingerprint for spec in one.runs] == [spec.fingerprint for spec in other.runs]


def sync_session(session: Session) -> int:
    """`sync` of a sweep that is open already."""
    set_environment()
    with only_one(session.folder.path / "sync.lock") as is_mine:
        if not is_mine:
            print("another sync of this sweep is at work; nothing to do")
            return 0
        require_api_key()
        return _Sync(session).run()


def require_api_key() -> None:
    """UserError if W&B would have to ask for one. Neither W&B nor its server is asked: it costs nothing."""
    if not any(os.environ.get(name) for name in _KEYS) and not _has_login():
        raise UserError(
            "W&B has no API key",
            "WANDB_API_KEY or a login on this machine",
            "run `wandb login`, or keep the runs on disk with tracking=wandb_offline",
        )


def _has_login() -> bool:
    """Whether `wandb login` left an entry, which it writes for the user called user."""
    for path in (os.environ.get("NETRC") or "~/.netrc", "~/_netrc"):
        with suppress(OSError, netrc.NetrcParseError, RuntimeError):
            if any(entry[0] == "user" for entry in netrc.netrc(os.path.expanduser(path)).hosts.values()):
                return True
    return False


class NotConfirmedError(Exception):
    """The server took everything and doesn't show it yet."""


class _Sync:
    """One pass over the plan's runs."""

    def __init__(self, session: Session) -> None:
        self.session, self.ledger = session, session.ledger
        saved = session.folder.plan()
        self.live = {
            spec.fingerprint for spec in (saved.runs if saved else ()) if spec.config.tracking.mode == "wandb"
        }
        self.plan, self.evaluations = without_evaluations(session.plan), evaluations_by_run(session.plan)
        self.asked = asked_by_fingerprint(self.plan)
        self.num_there = self.num_sent = self.num_points = 0
        self.problems: list[str] = []
        self._next_start, self._sweep_ids = 0.0, {}

    def run(self) -> int:
        """Send what is new, in the plan's order."""
        num_failures, waiting = 0, 0
        with tempfile.TemporaryDirectory(prefix="sync-", ignore_cleanup_errors=True) as scratch:
            for spec in self.plan.runs:
                news = self._news(spec)
                if news is None:
                    waiting += 1
                    continue
                try:
                    self._sync_run(spec, news, Path(scratch))
                    num_failures = 0
                except NotConfirmedError as error:  # sent, and slow to be seen: no reason to stop
                    self.problems.append(f"{spec.run_id}: {error}")
                except Exception as error:
                    num_failures += 1
                    self._note(spec, error)
                if num_failures == NUM_FAILURES:
                    self.problems.append("the server fails again and again: the rest waits for the next sync")
                    break
        return self._end(waiting)

    def _news(self, spec: RunSpec) -> News | None:
        """What can be told of the run; None if nothing yet, or if its worker tells it live."""
        state = self.ledger.status(spec.fingerprint)
        if state.status is Status.RUNNING and spec.fingerprint in self.live:
            return None
        news = news_of(self.ledger, spec, self.evaluations.get(spec.fingerprint))
        return news if news.events or news.digest else None

    def _sync_run(self, spec: RunSpec, news: News, scratch: Path) -> None:
        folder = self.ledger.folder(spec.fingerprint)
        synced, target = dict(read_json(folder / SYNCED) or {}), target_name(spec)
        known = synced.get(target, {})
        sweeps = list(dict.fromkeys([*known.get("sweeps", ()), self.session.plan.name]))
        state = {"step": news.last_step, "digest": news.digest, "sweeps": sweeps}
        if {key: known.get(key) for key in state} == state:
            self.num_there += 1
            return
        time.sleep(max(0.0, self._next_start - time.monotonic()))
        self._next_start = time.monotonic() + MIN_INTERVAL_S
        mirrored = mirrored_for_sync(spec, self.asked[spec.fingerprint], news.record, sweeps)
        settings = {"sweep_id": self._sweep_id(spec)} if spec.config.tracking.sweeps_ui else {}
        sent, path = upload(mirrored, news, scratch, **settings)
        if not is_confirmed(path, news):
            raise NotConfirmedError("sent, but the server doesn't show everything yet")
        write_json_atomic(folder / SYNCED, {**synced, target: {**state, "path": path}})
        if news.record is not None and news.record.outcome == "finished":
            mark_synced(folder)
        self.num_sent, self.num_points = self.num_sent + 1, self.num_points + sent
        print(
            f"{spec.run_id}: {sent} of {len(news.events)} points sent"
            f"{', and the record' if news.digest else ''}",
            flush=True,
        )

    def _sweep_id(self, spec: RunSpec) -> str:
        """W&B's id for this sweep: registered once, so that its runs are listed under Sweeps, too."""
        import wandb

        path, target = self.session.folder.path / "wandb_sweep.json", target_name(spec)
        known = dict(read_json(path) or {})
        if target not in known:
            weights = sorted({cell.cell.prompt_weight for cell in self.session.plan.cells})
            others = sorted({cell.cell.response_weight for cell in self.session.plan.cells})
            known[target] = wandb.sweep(
                {
                    "name": self.session.plan.name,
                    "method": "grid",
                    "parameters": {
                        "prompt_weight": {"values": weights},
                        "response_weight": {"values": others},
                    },
                },
                project=spec.config.tracking.project,
                entity=spec.config.tracking.entity,
            )
            write_json_atomic(path, known)
        return known[target]

    def _note(self, spec: RunSpec, error: Exception) -> None:
        text = explained(error, mirrored_for_sync(spec, Asked(), None, []))
        if any(part in text.lower() for part in _MISTAKES):
            problem, _, fix = text.partition(": ")
            raise UserError(problem, "a server that takes the runs", fix) from error
        text = one_line(error) if "could not start" in text else text
        self.problems.append(f"{spec.run_id}: {text}")
        print(f"{spec.run_id}: not sent: {text}", flush=True)

    def _end(self, num_waiting: int) -> int:
        total = len(self.plan.runs)
        there = self.num_there + self.num_sent
        print(
            f"{there} of {total} runs are on W&B: {self.num_sent} sent now ({self.num_points} points), "
            f"{self.num_there} were there; {num_waiting} have nothing to send yet or are live"
        )
        if not self.problems:
            return 0
        print(
            f"{len(self.problems)} problems, the last: {self.problems[-1]}\nrun the same line again to go on"
        )
        return 1


def target_name(spec: RunSpec) -> str:
    """Server, entity and project: what has been sent to one hasn't been sent to another."""
    tracking = spec.config.tracking
    return f"{os.environ.get('WANDB_BASE_URL', 'default')} {tracking.entity or ''}/{tracking.project}"
