"""Secrets in more than 200 forms, and a trainer that prints them all: `python secret_trainer.py ROOT ENDING`."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

ENDINGS = ("finishes", "fails", "is killed")
MARK = "Pl4ntedS3cret"  # part of every value whose form allows it
_WORDS = ("KEY", "TOKEN", "PASSWORD", "SECRET", "CREDENTIALS", "PASS", "PAT", "AUTH", "PASSPHRASE", "COOKIE")
_OWNERS = (
    "MY",
    "AWS",
    "DB",
    "SLACK",
    "OPENAI",
    "AZURE",
    "GITLAB",
    "CI_JOB",
    "NPM",
    "SMTP",
    "X",
    "db.main",
    "Redis",
)
_SCHEMES = ("https", "http", "postgres", "mysql", "redis", "amqp", "mongodb", "ssh", "ftp", "s3")


def plants() -> dict[str, str]:
    """Environment variables with a secret each, by name, by URL, by shape."""
    found: dict[str, str] = {}
    for owner in _OWNERS:
        for word in _WORDS:
            found[f"{owner}_{word}"] = f"{MARK}{len(found):04d}"
            found[f"{owner.lower()}_api_{word.lower()}"] = f"{MARK}{len(found):04d}"
    for scheme in _SCHEMES:
        found[f"{scheme.upper()}_PLACE"] = f"{scheme}://user:{MARK}{len(found):04d}@example.org:1234/path"
    shapes = {
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "deadbeef",
        "HF_TOKEN": "hf_" + MARK + "aB3" * 8,
        "HUGGING_FACE_HUB_TOKEN": "hf_" + MARK + "aB4" * 8,
        "GH_SOMETHING": "ghp_" + MARK + "aB3" * 8,
        "OPENAI_SOMETHING": "sk-" + MARK + "aB3" * 8,
        "WANDB_SOMETHING": "wandb_v1_" + MARK + "aB3" * 8,
        "JWT_SOMETHING": f"eyJhbGciOiJIUzI1.eyJ{MARK}.abcDEF",
        "AWS_SOMETHING": "AKIA" + "A1" * 8,
    }
    return found | shapes


def texts() -> list[str]:
    """What libraries say. A shell on the way here leaves out variables with a dot in their name."""
    said = []
    for name, value in plants().items():
        if name not in os.environ:
            continue
        said += [
            f"{name}={value}",
            f"export {name}='{value}'",
            f'{{"{name}": "{value}"}}',
            f"GET https://example.org/?{name}={value} failed",
            f"somewhere {value} appears",
            f"Authorization: Bearer {value}",
        ]
    return said


def make_trainer(root: str):
    """Prints all it knows in every way a process can; then ends as the environment says, `each` being all three.

    With TOY_CHATTERS something in the process goes on printing between runs.
    """
    from toy_trainer import train

    if os.environ.get("TOY_CHATTERS"):
        threading.Thread(target=_chatter, daemon=True).start()

    def run_one(spec, *, folder, attempt, should_stop, on_progress):
        print("\n".join(texts()), flush=True)
        print(dict(os.environ), file=sys.stderr, flush=True)
        os.write(2, "\n".join(texts()).encode() + b"\nsaid everything\n")
        ending = os.environ["TOY_ENDING"]
        ending = ENDINGS[spec.config.seed % 3] if ending == "each" else ending
        if ending == "fails":
            raise RuntimeError("; ".join(texts()))
        if ending == "is killed" and attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(spec, folder=folder, attempt=attempt, should_stop=should_stop, on_progress=on_progress)

    return run_one


def _chatter() -> None:
    while True:
        print(dict(os.environ), file=sys.stderr, flush=True)
        time.sleep(0.01)


def main(root: Path, ending: str) -> None:
    """A sweep of one run in one worker."""
    from toy_sweep import toy_plan

    from sweep.controller import Controller, Interrupts
    from sweep.folder import SweepFolder
    from sweep.launch import Launch
    from sweep.ledger import Ledger
    from sweep.show import make_view

    os.environ["TOY_ENDING"] = ending
    plan, ledger = toy_plan(1), Ledger(root)
    folder = SweepFolder(root, plan.name)
    folder.write_plan(plan)
    launch = Launch(root=str(root), sweep=plan.name, num_slots=1, trainer="secret_trainer:make_trainer")
    view = make_view(ledger)
    with Interrupts().listening() as interrupts:
        Controller(plan, ledger, folder, launch, view, interrupts, poll_s=0.1).run()
    view.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
