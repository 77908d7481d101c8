"""What MLflow loads of a run predicts as the run's own bundle does, and nothing of it is
pickled.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CASES, GLYPHS, SINUSOID, config
from PIL import Image
from services import store

import metatrain
from cluster.config import Tracking
from cluster.tracking import logged_model
from cluster.tracking.mlflow_tracker import MLflowTracker
from metatrain import bundle
from metatrain.core import InputError
from metatrain.inference import Learned
from metatrain.start import prepare
from metatrain.tasks import open_data

HOUSES = {
    "name": "table",
    "data": "houses.csv",
    "group": "district",
    "target": "price",
    "queries": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "images": GLYPHS,
    "table": SINUSOID | {"family": HOUSES},
    "numbers": SINUSOID,
    "series": CASES["recurrent"],
}


class Saved(NamedTuple):
    folder: Path
    bundle: Path
    example: pd.DataFrame

    def load(self) -> Any:
        from mlflow import pyfunc

        return pyfunc.load_model(str(self.folder))


def saved(tree: dict[str, Any], folder: Path) -> Saved:
    """A bundle that nothing was trained for, and its model as a run logs it."""
    from mlflow.models import Model

    recipe = config(tree).recipe()
    bundle.save(str(folder / "kept"), recipe, prepare(recipe).meta)
    learned = metatrain.load(str(folder / "kept"))
    example = logged_model.example_of(learned)
    logged_model.save(folder / "kept", learned, example, folder, Model())
    return Saved(folder / "model", folder / "kept", example)


@pytest.fixture
def houses(tmp_path: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "district": [f"d{i % 10}" for i in range(120)],
            "rooms": generator.integers(1, 9, 120),
            "area of it": generator.normal(100, 20, 120),
            "price": generator.normal(3e5, 1e5, 120),
        }
    )
    rows.to_csv("houses.csv", index=False)
    return rows


def table_of(kind: str, houses: pd.DataFrame) -> tuple[pd.DataFrame, Any, Any, Any]:
    """Labelled and unlabelled rows in no order, and the same as examples, targets and what is to be
    predicted.
    """
    if kind == "images":
        glyphs = open_data("glyphs")
        images = [
            Image.fromarray(glyphs.images[20 * c + i, 0].numpy())
            for c in range(5)
            for i in range(2)
        ]
        labels = [f"glyph {c}" if not i else None for c in range(5) for i in range(2)]
        rows = pd.DataFrame(
            {"label": labels, "image": [png(image) for image in images]}, index=range(7, 17)
        )
        return rows, images[::2], labels[::2], images[1::2]
    if kind == "table":
        rows = houses[houses["district"] == "d3"].copy()
        rows.loc[rows.index[1::2], "price"] = np.nan
        known, unknown = rows[::2], rows[1::2]
        return rows, known, known["price"], unknown
    inputs = 1 if kind == "numbers" else 2
    x = torch.randn(9, inputs, generator=torch.Generator().manual_seed(0)).double()
    rows = pd.DataFrame(x.numpy(), columns=[f"x{i}" for i in range(inputs)])
    rows["y"] = [0.1, 0.5, None, 0.3, None, None, 0.7, 0.2, None]
    known = rows["y"].notna().to_numpy()
    return rows, x[known], rows["y"][known], x[~known]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_as_the_bundle_does(kind: str, tmp_path: Path, houses: pd.DataFrame) -> None:
    model = saved(KINDS[kind], tmp_path)
    rows, examples, targets, asked = table_of(kind, houses)
    found = model.load().predict(rows)
    expected = metatrain.load(str(model.bundle)).adapt(examples, targets).predict(asked)
    assert list(found.index) == list(rows.index[rows.isna().any(axis=1)])
    if kind == "images":
        assert list(found["prediction"]) == expected.labels
        assert found["probability"].to_numpy() == pytest.approx(
            expected.probabilities.max(1).values.numpy(), abs=0
        )
    else:
        assert found["prediction"].to_numpy() == pytest.approx(np.asarray(expected), abs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_its_example_is_predicted_and_a_missing_column_is_refused(
    kind: str, tmp_path: Path, houses: pd.DataFrame
) -> None:
    from mlflow.exceptions import MlflowException

    model = saved(KINDS[kind], tmp_path)
    loaded = model.load()
    assert len(loaded.predict(loaded.input_example)) == logged_model.QUERIES
    for column in model.example:
        with pytest.raises(MlflowException, match=f"missing inputs.*{column}"):
            loaded.predict(model.example.drop(columns=column))


def test_it_is_code_and_plain_files(tmp_path: Path) -> None:
    model = saved(GLYPHS, tmp_path)
    files = {
        path.relative_to(model.folder).as_posix(): path
        for path in model.folder.rglob("*")
        if path.is_file()
    }
    assert set(files) == {
        *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "served.py"),
        *("input_example.json", "serving_input_example.json"),
        *(
            f"artifacts/bundle/{name}"
            for name in ("manifest.json", "meta.safetensors", "recipe.yaml")
        ),
    }
    assert "python_model" not in files["MLmodel"].read_text()  # the key of a pickled one
    wanted = files["requirements.txt"].read_text().splitlines()
    assert {line.partition("==")[0] for line in wanted} == set(logged_model.NEEDED)
    assert not [line for line in wanted if "/" in line or "@" in line or "+" in line]


@pytest.mark.parametrize(
    ("image", "label", "sentence"),
    [
        ("/etc/hostname", None, "image holds str, expected bytes"),
        (b"no image", None, "an image of 8 bytes cannot be read as an image"),
        (None, None, "image holds NoneType, expected bytes"),
        (b"", "again", "every row has its label"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_a_sentence(
    image: object, label: str | None, sentence: str, tmp_path: Path
) -> None:
    model = saved(GLYPHS, tmp_path)
    known = model.example[: -logged_model.QUERIES]
    row = pd.DataFrame({"image": [image], "label": [label]}, dtype=object)
    with pytest.raises(InputError, match=sentence):
        model.load().predict(pd.concat([known, row], ignore_index=True))


def test_rows_that_none_is_labelled_of_are_refused(tmp_path: Path) -> None:
    model = saved(SINUSOID, tmp_path)
    with pytest.raises(InputError, match="no row has its y"):
        model.load().predict(model.example.assign(y=np.nan))


def test_classes_of_ones_own_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(__file__).parent.parent / "recipes" / "own.py", tmp_path / "parabolas.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = saved(SINUSOID | {"family": {"name": "parabolas:Parabolas"}}, tmp_path)
    (tmp_path / "parabolas.py").unlink()
    monkeypatch.delitem(sys.modules, "parabolas")
    assert len(model.load().predict(model.example)) == logged_model.QUERIES
    assert Path(sys.modules["parabolas"].__file__ or "").is_relative_to(model.folder)
    sys.modules.pop("parabolas")


@pytest.mark.parametrize("name", ["rl2", "maml-navigation", "decisions"])
def test_what_has_no_labelled_examples_is_no_model(name: str, tmp_path: Path) -> None:
    recipe = config(CASES[name]).recipe()
    bundle.save(str(tmp_path / "kept"), recipe, prepare(recipe).meta)
    assert logged_model.record(None, "1", "run", tmp_path / "kept", 4) is None  # type: ignore[arg-type]


@pytest.mark.ray
def test_a_run_has_it_with_its_scores_and_a_failure_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    folder = tmp_path / "with a % and #"
    folder.mkdir()
    model = saved(SINUSOID | {"name": "a.b: c"}, folder)
    tracker = MLflowTracker(Tracking(), "a.b: c", [], None, {})
    tracker.model(model.bundle, 7)
    tracker.log(7, {"test/mse": 0.5, "val/mse_after": 0.4})
    tracker.finish("FINISHED")
    place, client = tracker.place(), MlflowClient()
    assert place is not None
    run = client.get_run(place.run_id)
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert (logged.name, logged.status.value, output.step) == ("a_b_c", "READY", 7)
    assert {metric.key: metric.value for metric in logged.metrics} == {"test/mse": 0.5}
    assert run.data.metrics == {"test/mse": 0.5, "val/mse_after": 0.4}
    expected = model.load().predict(model.example)
    for address in (f"models:/{logged.model_id}", f"runs:/{place.run_id}/{logged.name}"):
        pd.testing.assert_frame_equal(
            mlflow.pyfunc.load_model(address).predict(model.example), expected
        )
    tracker = MLflowTracker(Tracking(), "other", [], None, {})
    monkeypatch.setattr(logged_model, "save", lambda *_: 1 / 0)
    tracker.model(model.bundle, 7)
    tracker.log(7, {"test/mse": 0.5})
    tracker.finish("FINISHED")
    assert tracker.errors == 1
    assert client.get_run(tracker.run_id).data.metrics == {"test/mse": 0.5}
    states = [found.status.value for found in client.search_logged_models([place.experiment_id])]
    assert sorted(states) == ["FAILED", "READY"]


def test_tasks_without_an_example_to_adapt_to_are_no_example_of_a_model() -> None:
    """MLflow has the bundle as files then, and says so."""
    none = CASES["in-context"]["family"] | {"shots": [0, 0]}
    recipe = config(CASES["in-context"], evaluation__family=none).recipe()
    learned = Learned(recipe, prepare(recipe).meta, "here")
    with pytest.raises(InputError, match="no example to adapt to"):
        logged_model.example_of(learned)
