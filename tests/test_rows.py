"""Any run adapts to numbers: in Python, and from CSV, Parquet and NPZ files by the command."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from cases import SINUSOID, config
from pyarrow import parquet
from services import Done, command

import metatrain
from cluster import run
from cluster.workers.plan import Plan
from cluster.workers.worker import Worker
from metatrain import bundle
from metatrain.core import InputError, Ticket, generator_for
from metatrain.inference import files
from metatrain.start import prepare


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "run"
    run.train(
        config(
            SINUSOID, output=str(folder), outer__steps=30, evaluation__algorithm={"inner_steps": 3}
        )
    )
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "run"
    head = {"name": "memory", "hidden": 8}
    recurrent = {"model": {"name": "mlp", "hidden": [8], "head": head}}
    recurrent |= {
        "family": {"name": "series", "shots": 4, "queries": 3},
        "algorithm": {"name": "recurrent"},
    }
    run.train(config(SINUSOID | recurrent, output=str(folder), outer__steps=1))
    return folder


HOUSES = {
    "room": [1.0, 2.0, 3.0, 4.0],
    "area": [10.0, 30.0, 20.0, 40.0],
    "price": [100.0, 300.0, 200.0, 410.0],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on houses of which the price is a multiple of the area, by district."""
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    area, room = generator.uniform(10, 50, 400), generator.integers(1, 6, 400)
    frame = {
        "district": np.repeat(np.arange(40), 10),
        "room": room,
        "area": area,
        "price": 10 * area + room,
    }
    pd.DataFrame(frame).to_csv(folder / "houses.csv", index=False)
    family = {
        "name": "table",
        "data": str(folder / "houses.csv"),
        "group": "district",
        "target": "price",
    }
    family |= {"shots": 4, "queries": 4}
    outer = {"steps": 150, "tasks_per_step": 20, "tasks_per_ticket": 20, "lr": 0.01}
    run.train(config(SINUSOID, family=family, outer=outer, output=str(folder / "run")))
    (folder / "houses.csv").unlink()
    return folder / "run"


def test_python_gives_what_the_evaluation_gives(sinusoid: Path) -> None:
    recipe, meta = bundle.load(str(sinusoid / "bundle"))
    worker = Worker(prepare(recipe), Plan("reference", "cpu", 1))
    worker.load(0, worker.layout.flatten(meta))
    ticket = Ticket("score", "test", 0, 0)
    found, _ = worker.compute(ticket)
    setting = recipe.setting("score")
    tasks = setting.family.sample(
        generator_for(setting.seed, ticket, "tasks"), setting.tasks_per_ticket, "test"
    )
    adapted = metatrain.load(sinusoid).adapt(tasks.support_x[0], tasks.support_y[0])
    assert adapted.classes is None
    assert adapted.steps == 3
    values = adapted.predict(tasks.query_x[0]).values
    assert values.shape == (5,)
    mse = (values.double() - tasks.query_y[0, :, 0]).square().mean()
    torch.testing.assert_close(mse, found.curves["none"]["mse"][0, -1])


def test_examples_may_be_lists_arrays_tensors_series_or_generators(sinusoid: Path) -> None:
    learned = metatrain.load(sinusoid)
    x, y, new = [0.0, 1.0, 2.0], [1.0, 2.0, 1.0], [0.5, 1.5]
    expected = learned.adapt(x, y).predict(new).values
    frame = pd.DataFrame({"x": x, "y": y})
    for given_x, given_y, given_new in (
        (np.array(x), np.array(y), np.array(new)),
        (np.array(x)[:, None], np.array(y)[:, None], [[0.5], [1.5]]),
        (torch.tensor(x, dtype=torch.float64), torch.tensor(y), torch.tensor(new)),
        (frame["x"], frame["y"], pd.Series(new)),
        (frame[["x"]], frame[["y"]], tuple(new)),
        ((value for value in x), (value for value in y), (value for value in new)),
        ([0, 1, 2], [1, 2, 1], new),
    ):
        found = learned.adapt(given_x, given_y).predict(given_new)
        assert torch.equal(found.values, expected)
        assert np.asarray(found).tolist() == expected.tolist()
        assert len(found) == 2


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        ([0.0, 1.0], [1.0], "there are 2 examples and 1 targets"),
        ([], [], "there are no examples to adapt to: give one or more"),
        ([[0.0, 1.0]], [1.0], r"examples have the shape \[1, 2\], expected \[N, 1\]"),
        ([0.0], [[1.0, 2.0]], r"targets have the shape \[1, 2\], expected \[N, 1\]"),
        (["a"], [1.0], "examples must be numbers, got list"),
        ([math.nan], [1.0], "examples have values that are not finite"),
        ([1.0], [math.inf], "targets have values that are not finite"),
        ([1e30], [1.0], "adaptation to these 1 examples diverged"),
        (3.0, 1.0, r"examples have the shape \[\], expected \[N, 1\]"),
        ({1.0, 2.0}, [1.0, 2.0], "examples are a set, which has no order: give a list"),
        ([1.0, 2.0], {1.0, 2.0}, "targets are a set, which has no order: give a list"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), [1.0, 2.0], "examples have masked values"),
        ([True], [1.0], "examples are true and false"),
        ([1e39], [1.0], "examples have values that are not finite"),
    ],
)
def test_numbers_that_do_not_fit_are_one_sentence(
    sinusoid: Path, x: Any, y: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        metatrain.load(sinusoid).adapt(x, y)


def test_nothing_to_predict_is_one_sentence(sinusoid: Path) -> None:
    with pytest.raises(InputError, match="there is nothing to predict"):
        metatrain.load(sinusoid).adapt([0.0], [1.0]).predict([])


def test_a_series_is_read_in_its_order(series: Path) -> None:
    learned = metatrain.load(series)
    values = torch.randn(7, generator=torch.Generator().manual_seed(0))
    x, y = values.unfold(0, 2, 1)[:-1], values[2:]
    first, second = learned.adapt(x[:4], y[:4]), learned.adapt(x[:4].flip(0), y[:4].flip(0))
    assert first.steps == 4
    assert not torch.equal(first.predict(x[4:]).values, second.predict(x[4:]).values)


def test_a_table_takes_frames_and_gives_numbers_in_its_own_units(table: Path) -> None:
    learned = metatrain.load(table)
    few, new = pd.DataFrame(HOUSES).iloc[:3], pd.DataFrame({"area": [25.0, 35.0], "room": [2, 3]})
    found = learned.adapt(few, few["price"]).predict(new).values
    assert found.tolist() == pytest.approx([252, 353], abs=40)
    rows = [[row["room"], row["area"]] for row in new.to_dict("records")]  # the order of `features`
    assert torch.equal(learned.adapt(few, list(few["price"])).predict(rows).values, found)
    assert repr(learned.adapt(few, few["price"]).predict(new)).startswith("<2 predictions: 2")
    assert "table houses.csv price by district 4-shot" in learned.protocol


def adapt(trained: Path, support: Path, *query: Path) -> tuple[Done, Any, list[dict[str, str]]]:
    arguments = [item for path in query for item in ("--query", str(path))]
    done = command("adapt", str(trained), "--support", str(support), *arguments)
    if done.returncode:
        return done, None, []
    rows = list(csv.DictReader(Path("adapted/predictions.csv").read_text().splitlines()))
    return done, json.loads(Path("adapted/predictions.json").read_text()), rows


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_command_goes_from_a_table_to_predictions_for_a_new_group(
    table: Path, tmp_path: Path, ending: str
) -> None:
    few, new = (
        {name: values[:3] for name, values in HOUSES.items()},
        {"area": [25.0, 35.0], "room": [2, 3], "more": [0, 0]},
    )
    for name, rows in (("few", few), ("new", new), ("known", HOUSES)):
        frame = pa.table(rows)
        if ending == "csv":
            frame.to_pandas().to_csv(tmp_path / "x.csv", index=False)
            (tmp_path / "x.csv").rename(tmp_path / f"{name}.{ending}")
        else:
            parquet.write_table(frame, tmp_path / f"{name}.{ending}")
    done, written, rows = adapt(table, tmp_path / f"few.{ending}", tmp_path / f"new.{ending}")
    assert done.returncode == 0, done.stderr
    expected = metatrain.load(table).adapt(few, few["price"]).predict(new).values.tolist()
    assert [row["prediction"] for row in written["predictions"]] == expected
    assert [float(row["prediction"]) for row in rows] == expected
    assert [row["row"] for row in rows] == [f"new.{ending} row 1", f"new.{ending} row 2"]
    assert not Path("adapted/predictions.png").exists()
    assert done.stdout.splitlines()[0].split() == [
        "row",
        "prediction",
    ]  # no empty column of targets
    assert "adapted to 3 rows in" in done.stdout
    done, written, rows = adapt(
        table, tmp_path / f"few.{ending}", tmp_path / f"new.{ending}", tmp_path / f"known.{ending}"
    )
    assert [row["target"] for row in rows] == ["", "", "100.0", "300.0", "200.0", "410.0"]
    assert "root mean squared error over 4 rows, in units of price: " in done.stdout
    assert written["mean_squared_error"] < 1000
    assert Path("adapted/predictions.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_arrays_and_columns_of_other_families(
    sinusoid: Path, series: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "few.npz", x=[[0.0], [1.0]], y=[1.0, 2.0])
    np.savez(tmp_path / "new.npz", x=[[0.5]], y=[[2.0]])  # [N, 1], as the library has it
    done, written, _ = adapt(sinusoid, tmp_path / "few.npz", tmp_path / "new.npz")
    assert done.returncode == 0, done.stderr
    expected = metatrain.load(sinusoid).adapt([0.0, 1.0], [1.0, 2.0]).predict([0.5]).values.tolist()
    assert [row["prediction"] for row in written["predictions"]] == expected
    for few, new in (
        ("x,y\n0,1\n1,2\n", "x\n0.5\n"),
        ("y,x\n1,0\n2,1\n", "x\n0.5\n"),
        ("a,b\n0,1\n1,2\n", "a\n0.5\n"),
        (",a,b\n0,0,1\n1,1,2\n", ",a\n0,0.5\n"),  # with the rows' numbers, as pandas writes them
    ):
        (tmp_path / "few.csv").write_text(few)
        (tmp_path / "new.csv").write_text(new)
        done, written, _ = adapt(sinusoid, tmp_path / "few.csv", tmp_path / "new.csv")
        assert done.returncode == 0, done.stderr
        assert [row["prediction"] for row in written["predictions"]] == expected, few
    (tmp_path / "few.csv").write_text("before,last,next\n1,2,3\n2,3,4\n")
    (tmp_path / "new.csv").write_text("before,last\n3,4\n")
    done, written, _ = adapt(series, tmp_path / "few.csv", tmp_path / "new.csv")
    assert done.returncode == 0, done.stderr
    assert len(written["predictions"]) == 1


def test_predictions_that_are_not_finite_are_one_sentence(sinusoid: Path, tmp_path: Path) -> None:
    recipe, meta = bundle.load(str(sinusoid / "bundle"))
    large = {name: p.detach() * 100 for name, p in meta.model.items()}
    bundle.save(str(tmp_path / "large"), recipe, meta._replace(model=large))
    few, new = str(tmp_path / "few.npz"), str(tmp_path / "new.npz")
    far = np.array([[0], [1], [2**64 - 1]], np.uint64)
    np.savez(few, x=far, y=[0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="diverged in 3 inner steps"):
        files.predict(metatrain.load(sinusoid), few, [few], None)
    np.savez(few, x=far[:1], y=[0.0])
    np.savez(new, x=far.astype(float) * 1e18)
    with pytest.raises(InputError, match="no finite number for 2 of 3 rows"):
        files.predict(metatrain.load(tmp_path / "large"), few, [new], None)


def test_files_that_do_not_fit_are_one_sentence_and_leave_nothing(
    table: Path, sinusoid: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.csv"
    few.write_text("room,area,price\n1,10,100\n2,20,200\n")
    (tmp_path / "sine.csv").write_text("x,y\n0,1\n1,2\n")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    np.savez(tmp_path / "uneven.npz", x=[[0.0], [1.0], [2.0]], y=[1.0, 2.0])
    for trained, name, content, sentence in (
        (table, "new.csv", "room\n1\n", "'area'"),
        (table, "new.csv", "room,area\n1,ten\n", "'area'"),
        (table, "new.csv", "", "is empty"),
        (table, "new.csv", "room,area\n", "has column names but no rows"),
        (table, "new.npz", "junk", "new.npz is damaged"),
        (table, "pickled.npz", None, "cannot be read as NPZ"),
        (table, "nowhere.csv", None, "nowhere.csv"),
        (
            sinusoid,
            "new.csv",
            "0.5\n1.5\n2.5\n",
            "has numbers where the names of its columns should be",
        ),
        (sinusoid, "new.csv", "x,y\n1,high\n", "has targets that are no numbers"),
        (
            sinusoid,
            "uneven.npz",
            None,
            "has 3 examples and 2 targets: give each its target, or none",
        ),
        (
            sinusoid,
            "new.csv",
            "x,z\n1,2\n",
            "new.csv: examples have the shape [1, 2], expected [N, 1]",
        ),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        done, _, _ = adapt(
            trained, few if trained == table else tmp_path / "sine.csv", tmp_path / name
        )
        assert done.returncode == 2, (name, content, done.stdout)
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1
        assert sentence in done.stderr
        assert not Path("adapted").exists()
    for heads, hint in (
        ("room,area", ""),
        ("room,area,prices", "; its column 'prices' has almost that name"),
    ):
        (tmp_path / "bare.csv").write_text(f"{heads}\n1,10,3\n" if hint else f"{heads}\n1,10\n")
        done, _, _ = adapt(table, tmp_path / "bare.csv", few)
        assert (
            f"bare.csv has no targets (price), and adapting needs some: add them{hint}\n"
            in done.stderr
        )


OWN = '''
"""A family that tells which of two lines a point lies on."""
from dataclasses import dataclass
from typing import ClassVar
import torch
from metatrain.core import Task
from metatrain.metrics import ACCURACY, Metric, accuracy, cross_entropy
from metatrain.problems.supervised import Supervised

@dataclass(frozen=True, kw_only=True)
class Lines:
    metric: ClassVar[Metric] = ACCURACY
    name: str
    shots: int = 3
    queries: int = 3

    def sample(self, generator, count, split):
        y = torch.arange(2).repeat(count, self.shots + self.queries)
        side = torch.randint(2, (count, 1), generator=generator) * 2 - 1
        x = torch.rand(*y.shape, 2, generator=generator)
        x[..., 1] += side * (2 * y - 1)
        s = 2 * self.shots
        return Task(x[:, :s], y[:, :s], x[:, s:], y[:, s:])

    def bind(self, model, norm, path):
        return Supervised(model=model, inputs=(2,), outputs=2, loss=cross_entropy,
                          metrics={"accuracy": accuracy}, norm=norm, path=path, classes=True)

    def check(self, split): pass
    def resolved(self): return self
    def describe(self): return "lines"
    def picture(self, problem, adapt, context):
        from matplotlib.figure import Figure
        return Figure()
'''


def test_a_family_of_ones_own_adapts_to_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    settings = config(
        SINUSOID | {"family": {"name": "lines:Lines"}},
        output=str(tmp_path / "run"),
        outer__steps=20,
    )
    run.train(settings)
    learned = metatrain.load(tmp_path / "run")
    x = [[0.1, 1.2], [0.4, -0.9], [0.2, 1.4], [0.8, -0.7]]
    found = learned.adapt(x, ["up", "down", "up", "down"]).predict(x[:2])
    assert found.classes == ["down", "up"]
    assert found.probabilities.shape == (2, 2)
    with pytest.raises(InputError, match="tells 2 classes apart, got labels of 3"):
        learned.adapt(x, ["a", "b", "c", "a"])
    (tmp_path / "few.csv").write_text(
        "a,b,y\n0.1,1.2,up\n0.4,-0.9,down\n0.2,1.4,up\n0.8,-0.7,down\n"
    )
    done, written, rows = adapt(tmp_path / "run", tmp_path / "few.csv", tmp_path / "few.csv")
    assert done.returncode == 0, done.stderr
    assert written["accuracy"] == sum(row["prediction"] == row["class"] for row in rows) / 4
    assert f"accuracy: {100 * written['accuracy']:.1f}% of 4 rows" in done.stdout


SIX_LINES = """
import metatrain, pandas as pd
few, new = pd.read_csv("few.csv"), pd.read_csv("new.csv")
adapted = metatrain.load("run").adapt(few, few["target"])
predicted = adapted.predict(new).values
print(float(((predicted.numpy() - new["target"]) ** 2).mean()))
print(float(((few["target"].mean() - new["target"]) ** 2).mean()))
"""


@pytest.mark.ray
def test_a_real_table_is_predicted_better_than_by_the_mean_of_its_support_rows(
    tmp_path: Path,
) -> None:
    """scikit-learn's diabetes, grouped by age: the paired interval over held-out groups' tasks, and
    a new group.
    """
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True, scaled=False).frame.sort_values("age", kind="stable")
    frame["age_group"] = np.arange(len(frame)) // 21
    new_group = frame[frame["age_group"] == 10].drop(columns=["age_group", "age"])
    frame[frame["age_group"] != 10].drop(columns="age").to_csv("diabetes.csv", index=False)
    new_group[:5].to_csv("few.csv", index=False)
    new_group[5:].to_csv("new.csv", index=False)
    recipe = Path(__file__).parent.parent / "recipes" / "table.yaml"
    sets = [
        "family.data=diabetes.csv",
        "family.group=age_group",
        "tracking.uri=none",
        "output=run",
        "outer.steps=150",
    ]
    done = command("train", str(recipe), *(item for value in sets for item in ("--set", value)))
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(Path("run/result.json").read_text())["scores"]
    difference, width = score["differences"]["support_mean"]
    assert difference + width < 0
    assert re.search(
        rf"^support mean +\d+\.\d{{4}} +± \d\.\d{{4}} +{-difference:.4f} ± {width:.4f} better$",
        done.stdout,
        re.MULTILINE,
    )
    assert (
        done.stdout.splitlines()[-3]
        == "next: metatrain adapt run --support few.csv --query new.csv"
    )
    done, written, _ = adapt(Path("run"), Path("few.csv"), Path("new.csv"))
    assert done.returncode == 0, done.stderr
    (tmp_path / "numbers_of.py").write_text(SIX_LINES)
    ran = subprocess.run(
        [sys.executable, "numbers_of.py"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    ours, mean = map(float, ran.stdout.split())
    assert ours == pytest.approx(written["mean_squared_error"], rel=1e-5)
    assert ours < mean
