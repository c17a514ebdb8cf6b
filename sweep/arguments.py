"""The command line of `python -m sweep`, before Hydra: an action, a run, overrides. Standard library only.

Hydra accepts `+grid=X` or `grid=X`, depending on the defaults list, but never both; and it knows no bare
words. So argv is normalised here, and --help answers without importing Hydra at all.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from train.errors import UserError

ACTIONS = (
    "run",
    "plan",
    "status",
    "watch",
    "why",
    "logs",
    "cancel",
    "retry",
    "rerun",
    "evaluate",
    "df",
    "sync",
    "collect",
    "repair",
    "pilot",
)
ACTIONS_ON_RUNS = ("status", "why", "logs", "cancel", "retry", "rerun")
FILTERS = ("model", "dataset", "prompt_weight", "response_weight", "seed", "stage", "class")

HELP = """\
python -m sweep +grid=NAME [ACTION [RUN]] [KEY=VALUE ...]

Plan a grid of loss weights, merge what is the same experiment, train what is missing. Safe to repeat.

Actions (the default is run)
  run           train what is missing, here and now; Ctrl-C keeps checkpoints, the same line continues
  plan          show what would be trained and what it costs, without training
  pilot         train a few runs for a few minutes, so that the rest can be forecast; nothing is wasted
  status [RUN]  what is planned, running, finished, failed
  watch         the same, refreshed until all is done
  why RUN       why a run failed, is lost or would be trained again
  logs RUN      a run's output (-f: follow it)
  cancel        stop the sweep's workers gracefully; the same line continues later
  cancel RUN, cancel KEY=VALUE ...   only such runs, until retry: model, dataset, prompt_weight,
                response_weight, seed, stage, class said after the word cancel; several values: a,b
  retry [RUN]   try failed runs again
  rerun RUN     train a finished run again, beside the first, and compare every number
  collect       on a cluster: one look, lost runs sent again, the report of what is there
  repair        on a cluster: claims of dead jobs and orphaned submissions put right; starts nothing
  evaluate      only measure benchmarks (eval=NAME) on finished runs; trains nothing, resumes per benchmark
  df            every cell with its numbers as a data frame: report/cells.csv and .parquet
  sync          send what W&B lacks, from a machine with a network; safe to repeat, and from cron
  confirm       train fresh seeds at the report's recommended pair, (0, 1) and (1, 1): the gain to quote;
                confirm plan, confirm status, confirm watch, ... look after those runs
  RUN is a run id or a part that only one of them has. status, why and logs need no grid.

Overrides
  +grid=wit_5x5                a question: a file of conf/grid
  model=NAME dataset=NAME      files of conf/model and conf/dataset; with model=local: model.path=/folder
  train=NAME eval=NAME         a recipe and a protocol; train.learning_rate=3e-4 changes one number of it
  grid.seeds=[0,1,2]           other seeds; also grid.models=[a,b] and grid.datasets=[a,b]
  'grid.axes={train.learning_rate: [1e-3, 3e-3]}'     cross the grid with any other key
  grid.collapse=none           train every cell, even those that only differ in the weights' scale
  root=outputs name=NAME       where results lie, and under which name
  launcher.slots=4             workers at once; launcher=slurm submits them to a cluster and returns
Options
  --config-dir DIR             a folder of your own YAML files, laid out like conf/
  -f, --follow (logs)    -y, --yes (no questions)    -h, --help
  WEIGHT_SWEEP_WEBHOOK=https://... in the environment gets a message when a sweep is over

Examples
  python -m sweep +grid=smoke_2x2
  python -m sweep +grid=wit_5x5 plan
  python -m sweep +grid=wit_5x5 model=local model.path=/models/mine dataset=local dataset.path=/data/x.jsonl

Exit codes: 0 done; 1 some runs failed; 2 a mistake in the input, said in one line; 130 interrupted.
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """One command line. `overrides` are Hydra's, with the grid always written as +grid=NAME.

    filters: which runs to cancel, as KEY=VALUE; they stand after the word cancel.
    """

    action: str = "run"
    run: str | None = None
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    follow: bool = False
    yes: bool = False
    help: bool = False
    confirms: bool = False  # the action is about the runs that confirm, not about the grid's
    filters: tuple[str, ...] = ()


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """The command line as a value; UserError names an unknown word and the nearest known one."""
    words: list[str] = []
    overrides: list[str] = []
    config_dirs: list[str] = []
    settings: dict[str, str] = {}
    flags: set[str] = set()
    filters: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word.startswith("-"):
            _read_option(word, rest, config_dirs, flags)
        elif "=" not in word and not word.startswith("~"):
            words.append(word)
        else:
            key, _, value = word.partition("=")
            if key in ("action", "run", "yes", "follow"):
                settings[key] = value
            elif key in FILTERS and "cancel" in (*words[:2], settings.get("action")):
                filters.append(word)
            elif key.lstrip("+") == "grid":
                overrides.append(f"+grid={_grid_name(value)}")
            else:
                overrides.append(word)
    flags |= {name for name in ("yes", "follow") if _read_flag(name, settings)}
    confirms = settings.get("action") == "confirm" or ("action" not in settings and words[:1] == ["confirm"])
    if confirms:
        words = words[1:] if settings.pop("action", None) is None else words
    action, run = _read_words(words, settings.get("action"), settings.get("run"))
    _check_one_grid(overrides)
    return Arguments(
        action,
        run,
        tuple(overrides),
        tuple(config_dirs),
        "follow" in flags,
        "yes" in flags,
        "help" in flags or "help" in words,
        confirms,
        tuple(filters),
    )


def _read_option(word: str, rest: Iterator[str], config_dirs: list[str], flags: set[str]) -> None:
    names = {
        "-f": "follow",
        "--follow": "follow",
        "-h": "help",
        "--help": "help",
        "-y": "yes",
        "--yes": "yes",
    }
    name, equals, value = word.partition("=")
    if name in ("--config-dir", "-cd"):
        folder = value if equals else next(rest, "")
        if not folder:
            raise UserError(
                "--config-dir has no folder", "a folder laid out like conf/", "add --config-dir /folder"
            )
        config_dirs.append(folder)
    elif word in names:
        flags.add(names[word])
    elif name in ("-m", "--multirun"):
        raise UserError(f"{word} is Hydra's own sweep", "a grid", "say +grid=NAME instead; see --help")
    else:
        raise UserError(
            f"unknown option {word}",
            f"one of {', '.join([*names, '--config-dir'])}",
            _did_you_mean(name, [*names, "--config-dir"]),
        )


def _read_words(words: list[str], action: str | None, run: str | None) -> tuple[str, str | None]:
    words = [word for word in words if word != "help"]
    if action is None:
        action = words.pop(0) if words else "run"
    if action not in ACTIONS:
        known = ", ".join((*ACTIONS, "confirm"))
        raise UserError(f"unknown action {action}", f"one of {known}", _suggest_for_word(action))
    if words and run is None and action in ACTIONS_ON_RUNS:
        run = words.pop(0)
    if words:
        raise UserError(
            f"unexpected word {words[0]}",
            "KEY=VALUE after the action",
            _did_you_mean(words[0], ACTIONS) or "remove it",
        )
    if run is None and action in ("why", "logs", "rerun"):
        raise UserError(
            f"{action} has no run", "a run id or its beginning", f"say {action} RUN; status lists them"
        )
    return action, run


def _suggest_for_word(word: str) -> str:
    return (
        _did_you_mean(word, (*ACTIONS, "confirm"))
        or f"is it a grid? say +grid={word}; --help lists the actions"
    )


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""


def _grid_name(value: str) -> str:
    name = value.strip("'\"").removesuffix(".yaml")
    if not name or name.startswith("[") or "," in name:
        raise UserError(
            f"+grid={value} names no grid", "the name of one file of conf/grid", "say +grid=wit_5x5"
        )
    return name


def _check_one_grid(overrides: Sequence[str]) -> None:
    grids = [override for override in overrides if override.startswith("+grid=")]
    if len(set(grids)) > 1:
        raise UserError(
            f"{' and '.join(grids)} ask two questions at once", "one grid", "run one command for each"
        )
    if len(grids) > 1:
        raise UserError(f"{grids[0]} is said twice", "one grid", "say it once")


def _read_flag(name: str, settings: dict[str, str]) -> bool:
    value = settings.get(name, "false").lower()
    if value not in ("true", "false"):
        raise UserError(f"{name}={settings[name]} has the wrong type", "true or false", f"say {name}=true")
    return value == "true"
