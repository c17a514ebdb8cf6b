"""Hydra's part: a configuration composed from conf/ and overrides, and every mistake as one line.

Hydra only composes. It doesn't launch, log, or make folders: its launchers must return finished results, and
its output folders would litter a mere plan. Importing this module doesn't import Hydra; composing does
(0.15 s). This is the only file that asks Hydra: `sweep.compose` builds on it, `python -m train` calls
`compose_run`.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from train.config import MANDATORY, RunConfig, defaults_tree, run_config_from_dict
from train.errors import ConfigError
from train.keys import leaf_keys, nearest_key
from train.naming import complete_names
from train.overrides import CONF, quoted
from train.secrets import holds_secret, scrub


@dataclass(frozen=True, slots=True)
class Override:
    """One KEY=VALUE. `value` is typed by Hydra's grammar: 1e-3 is a number, [a, b] a list."""

    text: str
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Composed:
    """A composed configuration, interpolations still in place, and the file chosen in each group."""

    config: Any  # omegaconf.DictConfig; Any keeps Hydra out of this module's import
    choices: Mapping[str, str]

    def plain(self, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Any]:
        """The wanted first-level keys as a plain tree, interpolations resolved."""
        return resolved(self.config, wanted)


def compose_run(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> RunConfig:
    """One run's configuration, as `python -m train` takes it; ConfigError for every mistake."""
    values = compose("train", parse_overrides(overrides), config_dirs).plain()
    complete_names(values)
    return run_config_from_dict(values)


def compose(
    config_name: str,
    overrides: Sequence[Override],
    config_dirs: Sequence[str] = (),
    schemas: Mapping[str, Mapping[str, Any]] | None = None,
) -> Composed:
    """The primary configuration `config_name` under overrides.

    schemas: further structs by the name that a defaults list calls them; run_schema is always there.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _check_choices(overrides, config_dirs)
    for name, tree in {"run_schema": _run_schema(), **(schemas or {})}.items():
        ConfigStore.instance().store(name=name, node=dict(tree))
    texts = [override.text for override in overrides]
    if config_dirs:
        places = ",".join(quoted(f"file://{Path(folder).expanduser().absolute()}") for folder in config_dirs)
        texts.append(f"hydra.searchpath=[{places}]")
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose(config_name, overrides=texts, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _explained(error, overrides, schemas or {}) from error
    choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items()}
    config.__dict__["_content"].pop("hydra")  # `del` would first have to lift read-only flags
    _refuse_secrets(OmegaConf.to_container(config, resolve=False))
    return Composed(config, choices)


def resolved(config: Any, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Any]:
    """An OmegaConf tree as a plain one; ConfigError for an interpolation that leads nowhere."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree: Any = (
            OmegaConf.to_container(config, resolve=True)
            if all(wanted(str(key)) for key in config)
            else {key: _resolved_part(config, key) for key in config if wanted(key)}
        )
        _refuse_secrets(tree)
        return tree
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        raise ConfigError(
            f"{key} can't be resolved: {_first_line(error)}",
            "a ${...} that names an existing key",
            "mend or quote it",
        ) from error


def _resolved_part(config: Any, key: str) -> Any:
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(config, key):
        return MANDATORY
    part = config[key]
    return OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part


def parse_overrides(texts: Sequence[str]) -> tuple[Override, ...]:
    """Overrides with their typed values; paths may hold any character without Hydra's quoting."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    overrides = []
    for text in texts:
        if holds_secret(text):
            raise _secret_in(text.partition("=")[0].lstrip("+~"))
    for text in map(_with_quotes, texts):
        try:
            parsed = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError(
                f"can't read {text!r}",
                "KEY=VALUE",
                "quote special characters, first for the shell: \"KEY='VALUE'\"",
            ) from error
        key = parsed.key_or_group
        if not key:
            raise ConfigError(f"{text} has no key", "KEY=VALUE", "put a key before the equals sign")
        if re.match(r"hydra\b", key):
            raise ConfigError(
                f"{text} is a setting of Hydra, which only composes here",
                "a key of the configuration",
                "remove it; --config-dir DIR adds a folder of files",
            )
        if parsed.is_sweep_override():
            listed = f"grid.{key}s" if key in ("model", "dataset") else f"'grid.axes={{{key}: [...]}}'"
            raise ConfigError(
                f"{text} gives several values",
                "one value",
                f"say {listed}=[...]" if key in ("model", "dataset") else f"say {listed}",
            )
        overrides.append(Override(text, key, parsed.value()))
    return tuple(overrides)


def config_options(group: str, config_dirs: Sequence[str] = ()) -> tuple[str, ...]:
    """The names that a group offers: its files in conf/ and in the user's own folders."""
    folders = [CONF / group, *(Path(folder).expanduser() / group for folder in config_dirs)]
    return tuple(sorted({path.stem for folder in folders for path in folder.glob("*.yaml")}))


def config_groups() -> tuple[str, ...]:
    """The groups of conf/: model, dataset, train, ..."""
    return tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir()))


def check_option(group: str, name: str, config_dirs: Sequence[str] = ()) -> None:
    """ConfigError with the list of what exists, unless `name` is a file of the group."""
    options = config_options(group, config_dirs)
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"add conf/{group}/{name}.yaml or --config-dir DIR"
        raise ConfigError(f"unknown {group} {name}", f"one of {', '.join(options)}", fix)


@cache
def _run_schema() -> dict[str, Any]:
    return defaults_tree(RunConfig)


def _check_choices(overrides: Sequence[Override], config_dirs: Sequence[str]) -> None:
    for folder in config_dirs:
        if not Path(folder).expanduser().is_dir():
            raise ConfigError(
                f"--config-dir {folder} is no folder", "a folder laid out like conf/", "check the path"
            )
    groups = config_groups()
    for override in overrides:
        if override.key not in groups or override.text.startswith("~"):
            continue
        if isinstance(override.value, str):
            check_option(override.key, override.value, config_dirs)
        elif not isinstance(override.value, list | dict):
            options = ", ".join(config_options(override.key, config_dirs))
            raise ConfigError(f"{override.text} names no file", f"one of {options}", "say it by name")


def _refuse_secrets(tree: Any) -> None:
    """ConfigError for a text that holds a secret: configurations are written down, copied and shown."""
    texts = dict(_texts(tree))
    if holds_secret(
        "\0".join(texts.values())
    ):  # 2 ms instead of 100; a text's neighbours may look like a secret
        for key, text in texts.items():
            if holds_secret(text):
                raise _secret_in(key)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(part, f"{key}.{name}" if key else str(name))


def _secret_in(key: str) -> ConfigError:
    return ConfigError(
        f"{scrub(key)} holds what looks like a secret",
        "secrets in environment variables only: a configuration is written down",
        "take it out; W&B, Hugging Face and jobs on a cluster read WANDB_API_KEY, HF_TOKEN and the like themselves",
    )


def _with_quotes(text: str) -> str:
    """Quotes for what people don't expect to need them: paths, and letters beyond ASCII."""
    key, equals, value = text.partition("=")
    is_path = key.endswith(".path") or key in ("root", "model.template")
    is_plain = value[:1] in ("'", '"') or "${" in value or value in ("null", "???")
    if not equals or is_plain or (value.isascii() if not is_path else not value):
        return text
    return text if value[:1] in ("[", "{") and not is_path else f"{key}={quoted(value)}"


def _explained(error: Exception, overrides: Sequence[Override], schemas: Mapping[str, Any]) -> ConfigError:
    text = str(error)
    missing = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
    if missing:
        key = missing.group(1)
        known = [*config_groups(), *leaf_keys(_run_schema())]
        known += [leaf for tree in schemas.values() for leaf in leaf_keys(tree)]
        near = nearest_key(key, known)
        if key in known:
            return ConfigError(
                f"can't apply {_override_of(key, overrides)}: {_first_line(error)}",
                f"{key}=VALUE",
                "say it without + or ~",
            )
        return ConfigError(
            f"unknown key {key}",
            "a key of the configuration",
            f"did you mean {near}?" if near else "see conf/ and train/config.py",
        )
    return ConfigError(
        f"the configuration doesn't compose: {' '.join(text.split())}",
        "YAML as in conf/",
        "check the file named and the overrides",
    )


def _override_of(key: str, overrides: Sequence[Override]) -> str:
    return next((override.text for override in overrides if override.key == key), key)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
