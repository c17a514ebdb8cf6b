"""The architecture is a test: floors, purity, layout, and what may not be imported while planning."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = {"train": 0, "sweep": 1, "analysis": 2}
PURE = {  # may compute, may not touch the world
    "train/config.py",
    "train/metrics.py",
    "train/record.py",
    "train/fingerprint.py",
    "train/schedule.py",
    "train/seeds.py",
    "train/spans.py",
    "train/loss.py",
    "train/objective.py",
    "train/linear_cross_entropy.py",
    "train/batches.py",
    "train/attention.py",
    "train/embedded/scoring.py",
    "sweep/spec.py",
    "sweep/grid.py",
    "sweep/rays.py",
    "analysis/plane.py",
    "analysis/region.py",
    "analysis/kernels.py",
    "analysis/gaussian.py",
    "analysis/sampling.py",
    "analysis/surface.py",
    "analysis/optimum.py",
    "analysis/table.py",
}
WORLD = {
    "hydra",
    "submitit",
    "optuna",
    "wandb",
    "os",
    "pathlib",
    "subprocess",
    "socket",
    "time",
    "random",
    "shutil",
}
HEAVY = {"torch", "transformers", "wandb", "pandas", "scipy"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(project: Path) -> list[Path]:
    return [path for floor in FLOORS for path in sorted((project / floor).rglob("*.py"))]


def test_imports_only_point_down(project):
    for path in sources(project):
        floor = path.relative_to(project).parts[0]
        for name in imports(path):
            target = name.split(".")[0]
            if target in FLOORS:
                assert FLOORS[target] <= FLOORS[floor], f"{path.relative_to(project)} imports {name}"


def test_only_the_worker_reaches_the_trainer(project):
    for path in (project / "sweep").rglob("*.py"):
        if path.name != "trainers.py":
            assert not imports(path) & {"train.run", "train.loop", "train.model", "train.evaluate"}, path
    for path in (project / "analysis").rglob("*.py"):
        assert not imports(path) & {"train.run", "train.loop", "train.model", "train.evaluate"}, path


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_do_not_touch_the_world(project, name):
    found = {module.split(".")[0] for module in imports(project / name)}
    assert not found & WORLD, f"{name} imports {sorted(found & WORLD)}"


def test_the_top_level_is_exactly_the_agreed_one(project):
    tracked = subprocess.run(["git", "-C", str(project), "ls-files"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    agreed = {
        "pyproject.toml",
        "conf",
        "sweep",
        "train",
        "analysis",
        "tests",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    assert {top for top in tops if not top.startswith(".")} <= agreed


def test_packages_do_no_work_at_import(project):
    for floor in FLOORS:
        for path in (project / floor).rglob("__init__.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert [type(node) for node in body] == [ast.Expr], f"{path} holds more than a docstring"


def test_every_module_says_what_it_is_for(project):
    for path in sources(project):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_files_stay_rooms_not_warehouses(project):
    for path in sources(project):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 360, (
            f"{path}: what second thing does it do?"
        )


def test_no_paths_of_a_machine_in_the_project(project):
    pattern = re.compile(r"/(work|root|home)/[a-z.]")
    for path in [*sources(project), *(project / "conf").rglob("*.yaml"), project / "README.md"]:
        assert not pattern.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["+grid=wit_5x5", "action=plan"], ["+grid=wit_5x5", "action=status"]]
)
def test_planning_imports_nothing_heavy(project, tmp_path, arguments):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['sweep', *{arguments!r}, *([] if '--help' in {arguments!r} else ['root={tmp_path}'])]\n"
        "try:\n    runpy.run_module('sweep', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {sorted(HEAVY)!r} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "HEAVY []" in result.stdout


def test_train_works_with_sweep_and_analysis_deleted(project):
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('sweep', 'analysis'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import pkgutil, importlib, train\n"
        "for module in pkgutil.walk_packages(train.__path__, 'train.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, timeout=120)
