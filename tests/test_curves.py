"""The curves of benchmarks/curves.py: divided classes, points that are kept, pictures of points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import ROOT

import metatrain
from metatrain.core import InputError, Split
from metatrain.data.images import ImageStore, Scheme
from metatrain.metrics import ACCURACY

sys.path.append(str(ROOT / "benchmarks"))
import curves
import curves_pictures
from curves_pictures import Point

TINY: dict[str, Any] = {
    "family.data": "tiny",
    "family.ways": 2,
    "outer.steps": 1,
    "outer.tasks_per_step": 2,
    "outer.tasks_per_ticket": 2,
    "validation.every_steps": 0,
    "evaluation.tasks": 4,
    "model.filters": 8,
}
OWN: dict[Split, list[int]] = {"train": [*range(9)], "val": [9, 10], "test": [11, 12, 13]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with one data set: 14 classes of 4 images of 16x16 pixels."""
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    images = torch.randint(256, (56, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    ImageStore(
        name="tiny",
        images=images.to(torch.uint8),
        class_names=[str(i) for i in range(14)],
        sizes=torch.full((14,), 4),
        schemes=[Scheme(name="own", classes=OWN, rotations=dict.fromkeys(OWN, "none"))],
        synthetic=True,
    ).save()


def curve_in(folder: Path, **keys: Any) -> curves.Curve:
    return curves.Curve(ROOT / "recipes" / "demo.yaml", TINY | keys, folder)


def test_folds_divide_the_training_classes_and_leave_the_test_classes_out(tmp_path: Path) -> None:
    curve = curve_in(tmp_path)
    order = curves.shuffled(curve)
    assert sorted(order) == OWN["train"] != order
    parts: dict[Split, list[int]] = {"train": sorted(order[3:]), "test": sorted(order[:3])}
    with curves.divided(curve, parts, without="val") as keys:
        divided = metatrain.open_data(keys["family.data"]).scheme(keys["family.splits"])
        assert divided.classes == parts
    with curves.divided(curve, {"train": sorted(order[:2])}) as keys:
        classes = metatrain.open_data(keys["family.data"]).scheme(None).classes
        assert classes == OWN | {"train": sorted(order[:2])}
    assert metatrain.open_data("tiny").scheme(None).classes == OWN


@pytest.mark.ray
def test_a_point_is_computed_once_and_none_after_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = curve_in(tmp_path)
    picture = curves.compute("shots", curve, "1")
    result, run = tmp_path / "shots.json", tmp_path / "runs" / "base" / "result.json"
    before, trained = result.read_text(), run.stat().st_mtime_ns
    assert curves.compute("shots", curve, "1,2", limit=0) == picture == tmp_path / "shots.png"
    assert "are over: 2" in capsys.readouterr().out
    assert (result.read_text(), run.stat().st_mtime_ns) == (before, trained)
    curves.compute("shots", curve, "1,2")
    assert run.stat().st_mtime_ns == trained  # the same network, tested again
    assert result.read_text() != before
    with pytest.raises(InputError, match="is of another recipe"):
        curves.compute("shots", curve_in(tmp_path, seed=1), "1")
    with pytest.raises(InputError) as error:
        curves.compute("shots", curve, "one")
    assert error.value.got == "one"


def test_a_matrix_has_a_cell_for_each_pair_and_leaves_what_was_not_computed_empty() -> None:
    points = [Point("a", "a", 0.9, 0.01), Point("b", "a", 0.5, 0.02), Point("b", "b", 0.7, 0.03)]
    (axes,) = curves_pictures.matrix(points, ACCURACY, "run").axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {
        (0, 0): "90.00\n± 1.00%",
        (1, 0): "50.00\n± 2.00%",
        (1, 1): "70.00\n± 3.00%",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_a_line_is_drawn_in_the_order_of_x_and_folds_with_their_spread() -> None:
    points = [Point(5, "ours", 0.9, 0.1), Point(1, "ours", 0.5, 0.1), Point(1, "chance", 0.2)]
    (axes,) = curves_pictures.lines(points, ACCURACY, "shots", "run").axes
    line = axes.lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 5], [0.5, 0.9])
    assert sorted(text.get_text() for text in axes.get_legend().get_texts()) == ["chance", "ours"]
    parts = [Point(1, "", 0.5, 0.1), Point(2, "", 0.7, 0.1)]
    (axes,) = curves_pictures.folds(parts, ACCURACY, "run").axes
    (label,) = axes.get_legend().get_texts()
    assert label.get_text() == "mean 60.00%, standard deviation of parts 14.14"
