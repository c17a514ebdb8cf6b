"""The README against the program: every command in it parses and composes, every link and file exists."""

import re
import shlex

import pytest

from sweep.arguments import parse_arguments
from sweep.compose import compose_sweep

COMMAND = re.compile(r"python -m (?:sweep|analysis|train)\b[^`\n#|]*")
PLACEHOLDERS = {"NAME", "[KEY=VALUE", "RUN|logs"}


def commands(project) -> list[str]:
    text = (project / "README.md").read_text(encoding="utf-8")
    found = [match.group(0).strip().rstrip(".,;)") for match in COMMAND.finditer(text)]
    return [command for command in dict.fromkeys(found) if "NAME" not in command and "..." not in command]


def test_there_are_commands_to_check(project):
    assert len(commands(project)) >= 15


def test_every_command_of_the_readme_composes(project, tmp_path):
    for command in commands(project):
        module, *words = shlex.split(command.removeprefix("python -m "))
        if module == "train":
            continue  # tests/unit/test_run.py composes such lines
        if module == "analysis":
            words = [word for word in words if not word.startswith(("from=", "publish="))]
        arguments = parse_arguments(words)
        if any(word.startswith("+grid=") for word in arguments.overrides):
            sweep = compose_sweep(arguments)
            assert sweep.cells, command


def test_the_two_commands_are_one_line_each(project):
    lines = (project / "README.md").read_text(encoding="utf-8").splitlines()
    starts = [line for line in lines if line.startswith("python3 -m venv")]
    assert [line.split("&&")[-1].strip() for line in starts] == ["python -m sweep +grid=wit_5x5", "pytest"]
    assert all("pip install -e" in line for line in starts)


def test_the_grid_of_the_readme_is_a_grid(project, tmp_path):
    text = (project / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(# @package grid.*?)```", text, re.DOTALL)
    assert block is not None
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "short_responses.yaml").write_text(block.group(1))
    sweep = compose_sweep(parse_arguments(["+grid=short_responses", "--config-dir", str(tmp_path)]))
    # 4 product cells + 2 zip cells, 5 seeds, minus the excluded two, two learning rates
    assert len(sweep.cells) == 2 * (6 * 5 - 2)


@pytest.mark.parametrize(
    "pattern", [r"\]\((\.github/[^)]+)\)", r"`((?:train|sweep|analysis|conf)/[\w/]+\.(?:py|yaml))`"]
)
def test_every_file_the_readme_names_exists(project, pattern):
    names = re.findall(pattern, (project / "README.md").read_text(encoding="utf-8"))
    assert names
    for name in names:
        assert (project / name).exists(), name
