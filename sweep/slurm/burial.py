"""The dead written down: why a claim ended, which node took it along, and which claims were never anybody's job."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sweep.attempts import tail
from sweep.claims import is_of_this_machine, owner_from_dict
from sweep.folder import SweepFolder
from sweep.ledger import Claim, Ledger, RunState
from sweep.outcomes import failed_record
from sweep.recovery import MAX_DOUBLINGS
from sweep.sharing import PACKED_OOM, undo_of_dead
from sweep.slurm.batches import folder_of
from sweep.slurm.evidence import failure_class, telling_line
from sweep.slurm.jobs import JobName, job_from_text, task_name
from sweep.slurm.reconcile import Death
from sweep.spec import RunSpec, Status
from train.files import read_json, write_json_exclusive
from train.record import Failure

ENDED = "ended"  # by the scheduler, for a reason that only it knows
_END_OF_A_RUN = re.compile(r"(finished|failed|interrupted|paused|somebody else finished) \S+ after [\d.]+ s")
NUM_NODE_FAILURES = 2  # after which a node is avoided


def classified(death: Death, ledger: Ledger, folder: SweepFolder) -> Death:
    """With its cause as far as it can be told: memory that several runs shared is nobody's own fault."""
    death = _explained(death, ledger, folder)
    job = job_from_text(death.job)
    if job is None or death.kind not in ("host_oom", "cuda_oom"):
        return death
    is_shared = undo_of_dead(folder, task_name(job), death.evidence)
    return replace(death, kind=PACKED_OOM) if is_shared else death


def _explained(death: Death, ledger: Ledger, folder: SweepFolder) -> Death:
    """With what the dead worker and its node printed taken into account, where SLURM only knows that it ended."""
    job = job_from_text(death.job)
    if death.kind not in ("killed", "preempted") or job is None:
        return death
    log = folder_of(folder) / job.batch / f"{job.key}_0_log.out"
    words = since_the_last_run(life_of(job, tail(log, 400)))
    text = "\n".join([*tail(ledger.attempt_path(death.fingerprint, death.attempt, "log"), 40), *words[-20:]])
    kind = failure_class("", text)
    if kind in ("code", "nan_loss"):  # a worker survives these: they are not what ended it
        kind = "killed"
    if death.kind == "preempted" and kind in ("killed", "cancelled"):
        return death
    line = telling_line(kind, text)
    evidence = f"{death.evidence}; it said: {line[:200]}" if line else death.evidence
    return replace(death, kind=kind, evidence=evidence)


def has_begun(output: Path) -> bool:
    """Whether a life of the job that printed this came to our code, which begins with its name."""
    try:
        return f"\njob {output.parent.name}:".encode() in b"\n" + output.read_bytes()
    except OSError:
        return True


def life_of(job: JobName, lines: Sequence[str]) -> list[str]:
    """What one life of a job printed: SLURM appends that of each to the same file, and each begins with its name."""
    starts = [
        index
        for index, line in enumerate(lines)
        if line.startswith(f"job {job.batch}:{job.key}.") and " on " in line
    ]
    mine = [index for index in starts if lines[index].startswith(f"job {job} on ")]
    begin = mine[0] if mine else 0
    return list(lines[begin : next((index for index in starts if index > begin), len(lines))])


def since_the_last_run(lines: Sequence[str]) -> list[str]:
    """Without what a worker said of its earlier runs: their ends are no evidence of how this one ended."""
    ends = [index for index, line in enumerate(lines) if _END_OF_A_RUN.match(line)]
    return list(lines[ends[-1] + 1 :]) if ends else list(lines)


def bury(death: Death, spec: RunSpec, ledger: Ledger, folder: SweepFolder) -> bool:
    """Give a dead claim up; False if it ended otherwise meanwhile. A run that no memory sufficed for has failed."""
    is_too_large = ledger.losses(spec.fingerprint).count("host_oom") >= MAX_DOUBLINGS
    if death.kind == "host_oom" and is_too_large:
        state = ledger.status(spec.fingerprint)
        if state.status is not Status.RUNNING or state.attempt != death.attempt:
            return False
        words = f"its memory was doubled {MAX_DOUBLINGS} times and did not suffice: {death.evidence}"
        failure = Failure(kind="host_oom", message=words)
        Claim(ledger, spec.fingerprint, death.attempt).fail(failed_record(spec, death.attempt, failure))
        return True
    if not ledger.give_up(death.fingerprint, death.attempt, death.kind, death.evidence):
        return False
    if death.kind == "node_fail" and death.node:
        mark_node(folder, death.node, f"{death.fingerprint[:12]}-{death.attempt}")
    return True


def mark_node(folder: SweepFolder, node: str, occasion: str) -> None:
    """Write down that a node took a run with it. occasion: a word of its own for each time."""
    folder_of(folder).mkdir(parents=True, exist_ok=True)
    write_json_exclusive(folder_of(folder) / f"bad-node-{occasion}.json", {"node": node})


def bad_nodes(folder: SweepFolder) -> list[str]:
    """The nodes that took two runs with them."""
    counts = Counter(
        str(values.get("node"))
        for values in map(read_json, sorted(folder_of(folder).glob("bad-node-*.json")))
        if values
    )
    return [node for node, number in sorted(counts.items()) if number >= NUM_NODE_FAILURES]


def settle_own(ledger: Ledger, states: Mapping[str, RunState]) -> int:
    """Write down which processes of this machine are gone: a node can't see them. How many those were.

    Without it a worker on a node would take their runs for living ones until their heartbeats are old.
    """
    num = 0
    for fingerprint, state in states.items():
        owner = state.owner
        if state.status is Status.LOST and owner and not owner.job and is_of_this_machine(owner):
            words = f"process {owner.pid} of {owner.host} is gone"
            path = ledger.attempt_path(fingerprint, state.attempt, "lost.json")
            if not path.exists():
                Claim(ledger, fingerprint, state.attempt).lose("killed", words)
                num += 1
    return num


def how_it_ended(ledger: Ledger, fingerprint: str, attempt: int) -> tuple[str, str]:
    """Class and words of an attempt that was lost or given back; "" and "" for one that ended otherwise."""
    hung, loss = (
        read_json(ledger.attempt_path(fingerprint, attempt, "hung.json")),
        ledger.loss(fingerprint, attempt),
    )
    if hung is not None and loss.get("kind") != "node_fail":
        return "hung", str(hung.get("evidence"))
    if loss:
        return str(loss.get("kind")), str(loss.get("evidence"))
    released = read_json(ledger.attempt_path(fingerprint, attempt, "released"))
    if released is None:
        return "", ""
    kind, _, words = str(released.get("reason") or "given back:").partition(":")
    if kind != ENDED:
        return kind, words.strip()
    owner = owner_from_dict(read_json(ledger.attempt_path(fingerprint, attempt, "json")))
    job = job_from_text(owner.job) if owner else None
    lines = _output_of(ledger, job) if job else []
    found = failure_class(
        "", "\n".join(line for line in lines if " DUE TO " in line or "ode failure" in line)
    )
    kind = found if found in ("node_fail", "preempted", "timeout") else "cancelled"
    return kind, "; ".join(filter(None, [words.strip(), telling_line(kind, "\n".join(lines))]))


def _output_of(ledger: Ledger, job: JobName) -> list[str]:
    """What a life of a job printed, whichever sweep of the root it worked for."""
    for log in ledger.root.glob(f"*/slurm/{job.batch}/{job.key}_0_log.out"):
        return life_of(job, tail(log, 400))
    return []
