"""What a sweep prints at its end opens in a browser and shows what a person compares: names, values, the metric."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import SINUSOID, command

pytestmark = pytest.mark.ray

WAIT_MS = 60_000


@pytest.mark.usefixtures("ray_cluster")
def test_the_printed_page_shows_the_trials_side_by_side(
    mlflow_server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: .ci/run installs it")
    from playwright.sync_api import sync_playwright

    uri, _ = mlflow_server
    rates = [0.0123, 0.0321, 0.0456]
    recipe = SINUSOID | {"validation": {"every_steps": 10, "tasks": 10}, "tracking": {"uri": uri}}
    sweep = {
        "name": "seen",
        "recipe": "recipe.yaml",
        "space": {"algorithm.inner_lr": {"grid": rates}},
        "search": "grid",
    }
    for name, content in (("recipe", recipe), ("sweep", sweep)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    done = command("tune", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    (page,) = (line.split()[-1] for line in done.stdout.splitlines() if line.startswith("side by side: "))
    assert page.startswith(f"{uri}/#/compare-runs?runs=")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            shown = browser.new_page()
            shown.goto(page)
            for text in ("seen-00", "seen-01", "seen-02", *map(str, rates), "val/mse_after"):
                shown.get_by_text(text, exact=True).first.wait_for(timeout=WAIT_MS)
            assert "Comparing 3 Runs" in shown.inner_text("body")
        finally:
            browser.close()
