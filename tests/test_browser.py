"""MLflow's pages as a person sees them in a browser: results, a description, charts, and a sweep's
winner as best.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from cases import GLYPHS, SINUSOID
from services import command, drawing, mlflow_in, until

from cluster.tracking.pages import served
from cluster.tracking.place import Place, place_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.ray

WAIT_MS = 300_000
RATES = [0.0123, 0.0321, 0.0456]


class Seen(NamedTuple):
    """What there is to look at, and what looks at it."""

    browser: Browser
    uri: str
    trained: Path
    sweep: Path
    said: str  # by `metatrain tune`

    def page(self, place: Place, tab: str = "") -> Page:
        """The page that `metatrain ui` opens, or a tab of it, in a browser that has never been
        there.
        """
        with served(place, 0) as (address, _):
            shown = self.browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            shown.set_default_timeout(WAIT_MS)
            shown.goto(address.replace("?", f"{tab}?"))
            return shown


@pytest.fixture(scope="module")
def seen(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: .ci/run installs it")
    from playwright.sync_api import sync_playwright

    here = tmp_path_factory.mktemp("seen")
    with (
        mlflow_in(here) as (uri, _),
        drawing(),
        sync_playwright() as playwright,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(here)
        validation = {"validation": {"every_steps": 10, "tasks": 10}, "tracking": {"uri": uri}}
        evaluation = {
            "tasks": 8,
            "norm": ["transductive", "support+1"],
            "algorithm": {"inner_steps": 3},
        }
        glyphs = GLYPHS | validation | {"evaluation": evaluation}
        sweep = {
            "name": "seen",
            "recipe": "sinusoid.yaml",
            "space": {"algorithm.inner_lr": {"grid": RATES}},
            "search": "grid",
        }
        for name, content in (
            ("sinusoid", SINUSOID | validation),
            ("glyphs", glyphs),
            ("sweep", sweep),
        ):
            (here / f"{name}.yaml").write_text(yaml.safe_dump(content))
        tuned = command("tune", "sweep.yaml", "--set", "output=tuned")
        assert tuned.returncode == 0, tuned.stderr
        trained = command(
            "train", "glyphs.yaml", "--set", "output=trained"
        )  # the newest run: `metatrain ui` shows it
        assert trained.returncode == 0, trained.stderr
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield Seen(browser, uri, here / "trained", here / "tuned", tuned.stdout)
        browser.close()


def wait_for(page: Page, *texts: str) -> None:
    for text in texts:
        page.get_by_text(text, exact=True).first.wait_for()


def holds(page: Page, *texts: str) -> None:
    """Wait for texts that may lie in several elements."""
    until(lambda: all(text in page.inner_text("body") for text in texts))


def sections(page: Page) -> list[str]:
    """The lines that are followed by a count."""
    lines = [line.strip() for line in page.inner_text("body").splitlines() if line.strip()]
    return [line for line, count in pairwise(lines) if re.fullmatch(r"\(\d+\)", count)]


def right_of(element: Locator) -> float:
    """Where an element ends, once it is there."""
    element.wait_for()
    box = element.bounding_box()
    return box["x"] + box["width"] if box is not None else math.inf


def first_plot(page: Page) -> dict[str, Any]:
    """What the first plot shows; nothing if it is not drawn yet."""
    found: dict[str, Any] | None = page.evaluate(
        "document.querySelector('.js-plotly-plot')?.data?.[0]"
    )
    return found or {}


def test_the_list_of_runs_shows_results_without_a_click(seen: Seen) -> None:
    page = seen.page(Place(seen.uri))
    wait_for(page, "fewshot glyphs", "test/accuracy", "test/accuracy_ci95")
    (score, _) = json.loads((seen.trained / "result.json").read_text())["scores"]
    row = page.get_by_text(re.compile(r"^glyphs \d{4}-\d\d-\d\d \d\d:\d\d$")).first
    result = page.get_by_text(re.compile(f"^{re.escape(str(score['mean'])[:5])}")).first
    for visible in (row, result):
        until(lambda visible=visible: right_of(visible) < 1400)
    until(lambda: page.get_by_text("1 matching run").count() == 1)


def test_a_run_says_what_it_came_to_how_it_was_measured_and_how_to_load_it(seen: Seen) -> None:
    page = seen.page(place_of(seen.trained))
    wait_for(page, "before adaptation", "nearest neighbour on pixels")
    page.get_by_text("Show more", exact=True).click()
    (score, second) = json.loads((seen.trained / "result.json").read_text())["scores"]
    wait_for(
        page, f"{100 * score['mean']:.2f}% ± {100 * score['ci95']:.2f}", "accuracy (norm support+1)"
    )
    holds(
        page,
        f"{100 * second['mean']:.2f}% ±",
        score["protocol"],
        f"metatrain.load('{seen.trained}')",
        "mlflow.pyfunc.load_model('models:/m-",
        "glyphs.yaml",  # its source
        "glyphs/glyphs train",  # its data set
    )
    assert "metatrain writes" not in page.inner_text("body")


def test_charts_show_results_before_housekeeping(seen: Seen) -> None:
    page = seen.page(place_of(seen.trained), "/model-metrics")
    wait_for(page, "adaptation", "test/support_plus_1", "val")
    results = [
        "adaptation",
        "adaptation/support_plus_1",
        "test",
        "test/support_plus_1",
        "train",
        "val",
    ]
    until(lambda: sections(page) == [*results, "Model metrics"])
    assert page.get_by_text("lost_tickets").count() == 0
    until(lambda: first_plot(page).get("x") == [0, 1, 2, 3])  # inner steps
    page = seen.page(place_of(seen.trained), "/system-metrics")
    wait_for(page, "driver_share", "tasks_per_s")


def test_the_comparison_of_a_sweep_shows_the_winner_as_the_best(seen: Seen) -> None:
    (printed,) = (
        line.split()[-1] for line in seen.said.splitlines() if line.startswith("side by side: ")
    )
    place = place_of(seen.sweep)
    assert printed == f"{seen.uri}{place.page()}"
    page = seen.page(place)
    result = json.loads((seen.sweep / "result.json").read_text())
    wait_for(
        page,
        *(f"seen-0{i}{' (winner)' * (i == result['winner'])}" for i in range(3)),
        *map(str, RATES),
    )
    holds(page, "Comparing 3 Runs")
    until(lambda: len(first_plot(page).get("dimensions", [])) == 2)
    plot = first_plot(page)
    assert [axis["label"] for axis in plot["dimensions"]] == ["algorithm.inner_lr", "val/mse_after"]
    values = [trial["value"] for trial in result["trials"]]  # the best first
    assert plot["line"]["color"] == pytest.approx(values)
    assert values[0] == min(values) == plot["line"]["cmin"]  # blue is low
