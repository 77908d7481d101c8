"""`metatrain adapt` with a network that learned from made tables, and files of another table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from gradients import LINEAR, TABULAR, descending
from pyarrow import parquet
from services import Done, command

from metatrain import bundle, figures
from metatrain.core import InputError
from metatrain.inference import files, load, row_columns


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of networks for classes and for numbers."""
    folder = tmp_path_factory.mktemp("runs")
    for name, family, rate in (("classes", TABULAR, 5.0), ("numbers", LINEAR, 0.5)):
        learned = descending(family, rate)
        bundle.save(str(folder / name), learned.recipe, learned.meta)
    return folder


def cats(rows: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    kind = np.arange(rows) % 2
    return pd.DataFrame(
        {
            "weight": 4 + 2 * kind + 0.3 * generator.normal(size=rows),
            "coat": np.array(["short", "long"])[kind],
            "kind": np.array(["moggy", "norse"])[kind],
            "length": 30 + 5 * kind + generator.normal(size=rows),
        }
    )


def adapt(run: Path, support: str, *queries: str, target: str | None = "kind") -> Done:
    given = [] if target is None else ["--target", target]
    return command("adapt", str(run), "--support", support, "--query", *queries, *given)


def test_rows_of_csv_and_parquet_files_are_classified_by_columns_of_the_same_name(
    runs: Path,
) -> None:
    frame = cats()
    frame[:40].to_csv("known.csv")  # with the rows' numbers, which are no column
    rest = frame[40:].drop(columns="length").reset_index(drop=True)
    rest.loc[0, "weight"] = np.nan
    rest.loc[1, "coat"] = "curly"
    rest.loc[2, "kind"] = "lion"
    rest.loc[3, "kind"] = None
    rest = rest[["kind", "coat", "weight"]].assign(owner="who")
    parquet.write_table(pa.Table.from_pandas(rest), "rest.parquet")
    done = adapt(runs / "classes", "known.csv", "rest.parquet")
    assert done.returncode == 0, done.stderr
    result = json.loads(Path("adapted/predictions.json").read_text())
    rows = result["predictions"]
    assert [row["row"] for row in rows][::19] == ["rest.parquet row 1", "rest.parquet row 20"]
    assert set(rows[0]["probabilities"]) == {"moggy", "norse"}
    assert result["accuracy"] == 1
    for said in (
        "adapted to 40 rows of 2 classes",
        "accuracy: 100.0% of 18 rows",
        "not counted: rows of classes that the support set does not have (lion)",
        "predicted 'kind' from 2 columns, of which 'coat' have categories",
        "not used: 'length', which a file to predict lacks",
        "missing values: 1 text of 'coat' not in the rows adapted to",
        "written: adapted/predictions.json adapted/predictions.csv",
    ):
        assert said in done.stdout, done.stdout
    frame[40:].drop(columns="kind").to_csv("new.csv", index=False)
    done = adapt(runs / "classes", "known.csv", "new.csv")
    assert done.returncode == 0, done.stderr
    assert "accuracy" not in done.stdout


def test_numbers_are_predicted_in_units_of_the_target(runs: Path) -> None:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(60, 3)), columns=["a", "b", "c"])
    frame["d"] = 500 + 100 * (frame["a"] - frame["c"])
    frame[:40].to_csv("known.csv", index=False)
    frame[40:].to_csv("rest.csv", index=False)
    done = adapt(runs / "numbers", "known.csv", "rest.csv", target=None)  # the last column
    assert done.returncode == 0, done.stderr
    result = json.loads(Path("adapted/predictions.json").read_text())
    assert result["mean_squared_error"] < 0.2 * frame["d"][40:].var()
    assert "in units of d" in done.stdout


def test_two_columns_of_numbers_are_a_plane_and_many_rows_a_curve(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    for name in ("boundary", "calibration"):
        draw = getattr(figures, name)

        def counting(*given: Any, name: str = name, draw: Any = draw, **more: Any) -> Any:
            drawn.append(name)
            return draw(*given, **more)

        monkeypatch.setattr(figures, name, counting)
    frame = cats().drop(columns="coat")
    frame[:20].to_csv("known.csv", index=False)
    frame[20:].to_csv("rest.csv", index=False)
    assert adapt(runs / "classes", "known.csv", "rest.csv").returncode == 0
    frame[20:].drop(columns="length").to_csv("less.csv", index=False)
    assert adapt(runs / "classes", "known.csv", "less.csv").returncode == 0
    assert drawn == ["boundary", "calibration"]


WRONG: list[tuple[str, str, str, str | None, str]] = [
    ("a,b,y\n1,2,u\n3,4,v\n", "a,b\n1,2\n", "classes", "z", "no column 'z'"),
    ("a,b,y\n1,2,u\n3,4,v\n", "c,d\n1,2\n", "classes", "y", "have no column in common besides 'y'"),
    ("a,y\n1,u\n3,\n", "a\n1\n", "classes", "y", "has no 'y' in 1 row, first in row 2"),
    ("a,y\n", "a\n1\n", "classes", "y", "has column names but no rows"),
    ("", "a\n1\n", "classes", "y", "known.csv is empty"),
    ("a,y\n1,u\n2,v\n", "", "classes", "y", "new.csv is empty"),
    ("a,y\n1,u\n2,u\n", "a\n1\n", "classes", "y", "all examples have the same label"),
    ("a,y\n1,u\n2,v\n3,w\n4,x\n5,z\n", "a\n1\n", "classes", "y", "tells 4 classes apart"),
    ("a,y\n1,u\n2,v\n3,u\n", "a\nx\n", "classes", "y", "new.csv: column 'a' holds 'x' in row 1"),
    ("a,y\n1,u\n2,v\n3,u\n?,v\n", "a\n1\n", "classes", "y", "known.csv: column 'a' holds '?'"),
    ("a,y\n1,u\n2,v\n", "a\n1e999\n", "classes", "y", "new.csv: column 'a' holds an infinite"),
    ("a,y\n1,u\n2,v\n", "a\n1\n", "numbers", "y", "known.csv: column 'target' holds 'u' in row 1"),
    ("a,y\n2020-01-01,u\n2020-01-02,v\n", "a\n1\n", "classes", "y", "'a' holds a date"),
    ("a,y\n1,2020-01-01\n2,2020-01-02\n", "a\n1\n", "classes", "y", "has a date as 'y' in row 1"),
    (
        ",".join(map("c{}".format, range(13))) + ",y\n" + "1," * 13 + "u\n" + "2," * 13 + "v\n",
        ",".join(map("c{}".format, range(13))) + "\n" + "1," * 12 + "1\n",
        "classes",
        "y",
        "the table has 13 columns (c0, c1, c2, c3, c4, ...), expected at most 12",
    ),
]


@pytest.mark.parametrize(("support", "query", "run", "target", "sentence"), WRONG)
def test_files_that_do_not_fit_are_one_sentence(
    runs: Path, support: str, query: str, run: str, target: str | None, sentence: str
) -> None:
    Path("known.csv").write_text(support)
    Path("new.csv").write_text(query)
    done = adapt(runs / run, "known.csv", "new.csv", target=target)
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr
    assert not Path("adapted").exists()


def test_dates_and_time_zones_that_python_does_not_have_are_one_sentence() -> None:
    numbers = pa.array([10**9, 2**62])
    for odd in (
        numbers[:1].cast(pa.int32()).cast(pa.date32()),
        numbers.cast(pa.timestamp("us")),
        numbers[:1].cast(pa.timestamp("us", tz="Nowhere/At_All")),
        numbers.cast(pa.duration("s")),
    ):
        parquet.write_table(pa.table({"a": odd}), "odd.parquet")
        with pytest.raises(InputError, match=r"^cannot read odd\.parquet as CSV or Parquet \("):
            row_columns.read("odd.parquet", "--query")


def test_the_column_in_which_pandas_numbers_rows_is_no_target(runs: Path) -> None:
    """Parquet has it last, of a frame whose rows were chosen."""
    some = pa.Table.from_pandas(cats()[["weight", "kind"]].sample(40, random_state=0))
    assert some.column_names[-1] == "__index_level_0__"
    parquet.write_table(some, "known.parquet")
    found = files.predict(load(runs / "classes"), "known.parquet", ["known.parquet"], None)
    assert set(found.rows[0]["probabilities"]) == {"moggy", "norse"}


def test_no_plane_is_drawn_of_values_that_are_too_far_apart(runs: Path) -> None:
    cats()[["weight", "length", "kind"]].to_csv("known.csv", index=False)
    Path("far.csv").write_text("weight,length\n1e308,30\n-1e308,30\n")
    found = files.predict(load(runs / "classes"), "known.csv", ["far.csv"], None)
    assert len(found.rows) == 2
    assert found.picture is None


def test_classes_that_are_texts_are_known_in_a_file_that_has_numbers_for_them(runs: Path) -> None:
    Path("known.csv").write_text("a,y\n1,1\n2,1\n5,x\n6,x\n9,2\n")
    Path("new.csv").write_text("a,y\n1.5,1\n2,\n9,2\n")
    found = files.predict(load(runs / "classes"), "known.csv", ["new.csv"], None)
    assert [row["class"] for row in found.rows] == ["1", None, "2"]
    assert found.result["accuracy"] is not None
