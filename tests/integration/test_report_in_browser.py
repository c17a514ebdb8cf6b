"""The report as people see it: rendered by a real browser, with nothing fetched and nothing broken."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))

from hand_made import hand_made_plan, hand_made_table
from test_report import report_of

pytestmark = pytest.mark.integration

SMALL = (
    "dataset.num_train_rows=32",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=0",
    "train.epochs=1",
    "eval.max_new_tokens=4",
)


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    reason = "no Chromium on this machine"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def render(path, tmp_path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-quic",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            *options,
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


PHONE = """<!DOCTYPE html><body><iframe src="report.html" width="390" height="9000"></iframe><pre></pre><script>
document.querySelector("iframe").onload = (event) => {
  const page = event.target.contentDocument, too_wide = [], too_tall = [];
  for (const one of page.querySelectorAll("body *"))
    if (one.getBoundingClientRect().right > 391 && !one.closest(".scroll")) too_wide.push(one.outerHTML.slice(0, 80));
  for (const row of page.querySelector("table").rows)
    if (row.getBoundingClientRect().height > 140) too_tall.push(row.textContent.slice(0, 80));
  document.querySelector("pre").textContent = JSON.stringify(
    {width: page.documentElement.scrollWidth, planes: page.querySelectorAll("h2").length, too_wide, too_tall});
}</script></body>"""


def test_a_page_of_several_planes_fits_a_phone(tmp_path):
    browser()
    groups = [("llama_3_2_1b", "alpaca_cleaned"), ("gemma_2_2b", "tulu_v2_150k")]
    page = tmp_path / "report.html"
    page.write_bytes(report_of(hand_made_table(hand_made_plan(groups=groups))).files["report.html"])
    (tmp_path / "phone.html").write_text(PHONE, encoding="utf-8")
    dumped = render(
        tmp_path / "phone.html",
        tmp_path,
        "--dump-dom",
        "--allow-file-access-from-files",
        "--virtual-time-budget=8000",
    )
    told = json.loads(html.unescape(re.findall("<pre>(.*?)</pre>", dumped.stdout, re.DOTALL)[-1]))
    assert told["width"] <= 390
    assert told["planes"] > 4
    assert told["too_wide"] == []
    assert told["too_tall"] == []


def test_the_report_renders_whole_and_alone(tmp_path):
    browser()
    result = run_command("sweep", "+grid=smoke_2x2", "grid.seeds=[0,1]", f"root={tmp_path}", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    page = tmp_path / "smoke_2x2" / "report" / "report.html"
    source = page.read_text(encoding="utf-8")
    assert len(source) < 2_000_000
    for forbidden in ("http://", 'src="https://', "@import", "<script src"):
        assert forbidden not in source.replace("http://www.w3.org", ""), forbidden
    dumped = render(page, tmp_path, "--dump-dom", "--virtual-time-budget=2000")
    assert "exact answers" in dumped.stdout
    assert "CONSOLE" not in dumped.stderr, dumped.stderr
    pictures = {}
    for name, size in (("desk", "1200,2400"), ("phone", "390,2400")):
        picture = tmp_path / f"{name}.png"
        render(page, tmp_path, f"--screenshot={picture}", f"--window-size={size}", "--hide-scrollbars")
        pictures[name] = picture.read_bytes()
    from io import BytesIO

    from matplotlib import image

    for name, content in pictures.items():
        pixels = image.imread(BytesIO(content))[..., :3]
        assert pixels.std() > 0.05, f"the {name} page is blank"
