"""The benches' accounting, and the smallest sweep of bench_orchestration.py, in processes of their own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration


def run_python(project, text: str, *words: object) -> str:
    """In a process of its own: it becomes the parent of orphans, and waits for all of them."""
    begin = f"import sys; sys.path[:0] = [{str(project)!r}, {str(project / 'tests' / 'bench')!r}]; "
    return subprocess.check_output([sys.executable, "-c", begin + text, *map(str, words)], text=True)


def test_the_cost_of_a_command_holds_that_of_orphans_in_other_sessions(project):
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    text = (
        "import costs; costs.become_parent_of_orphans(); burn = sys.argv[1]; "
        "alone = costs.cost_of(['setsid', '-f', 'sleep', '0']); "
        "found = costs.cost_of(['setsid', '-f', sys.executable, '-c', burn]); "
        "print(alone.cpu_s, found.cpu_s)"
    )
    nothing_s, found_s = map(float, run_python(project, text, burn).split())
    assert nothing_s < 0.3
    assert found_s >= 0.5


def test_a_command_that_fails_says_its_last_words(project):
    text = (
        "import costs\ntry:\n    costs.cost_of([sys.executable, '-c', 'raise SystemExit(chr(33) * 3)'])\n"
        "except RuntimeError as error:\n    print(error)"
    )
    assert "ended with 1: !!!" in run_python(project, "\n" + text)


def test_five_cells_that_do_nothing_come_back_from_our_sweep(project, tmp_path):
    text = (
        "import costs, bench_orchestration as bench; from pathlib import Path; costs.become_parent_of_orphans(); "
        "cost = bench.measured('ours', Path(sys.argv[1], 'sweep'), Path(sys.argv[1]), 5); print(cost.cpu_s)"
    )
    assert float(run_python(project, text, tmp_path)) > 0.3
