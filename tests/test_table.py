"""A table's rows become tasks by group: disjoint splits, scales of the training groups, raw units
in and out.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from cases import SINUSOID, config
from services import S3, command

from metatrain import bundle, figures, schema, storage
from metatrain.core import Context, InputError, Ticket
from metatrain.data import row_files
from metatrain.data.rows import divide
from metatrain.models.mlp import MLP
from metatrain.tasks import Table
from metatrain.tasks.regressions import ridge, support_mean

GROUPS, SIZE = 20, 12


def frame(seed: int = 0, groups: int = GROUPS) -> pd.DataFrame:
    """Prices that depend on rooms and area in another way in each district."""
    random = np.random.default_rng(seed)
    parts = []
    for i in range(groups):
        rooms, area = random.integers(1, 9, SIZE), random.normal(80, 20, SIZE)
        price = 1000 * (300 + 40 * random.normal() + 30 * rooms + 2 * random.normal() * (area - 80))
        names = {
            "district": f"d{i:02d}",
            "rooms": rooms,
            "area": area,
            "street": "Elm St",
            "price": price,
        }
        parts.append(pd.DataFrame(names))
    return pd.concat(parts).sample(frac=1, random_state=seed).reset_index(drop=True)


@pytest.fixture
def houses(tmp_path: Path) -> pd.DataFrame:
    found = frame()
    found.to_csv("houses.csv", index=False)
    return found


def table(**fields: Any) -> Table:
    return Table(
        **{"data": "houses.csv", "group": "district", "target": "price", "queries": 4} | fields
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def districts(family: Table, rows: pd.DataFrame, y: torch.Tensor) -> list[list[str]]:
    """[T, N] the district of each drawn row, by its price."""
    prices = rows["price"].to_numpy()
    found = [family.predictions(part).numpy() for part in y]
    return [
        [rows["district"][int(np.abs(prices - price).argmin())] for price in part] for part in found
    ]


def test_a_task_is_a_group_and_its_rows_are_distinct(houses: pd.DataFrame) -> None:
    family = table()
    task = family.sample(generator(), 40, "train")
    assert [list(leaf.shape) for leaf in task] == [[40, 5, 2], [40, 5, 1], [40, 4, 2], [40, 4, 1]]
    assert {leaf.dtype for leaf in task} == {torch.float32}
    y = torch.cat([task.support_y, task.query_y], 1)
    for group, prices in zip(districts(family, houses, y), y, strict=True):
        assert len(set(group)) == 1
        assert len(prices.unique()) == 9
    x = torch.cat([task.support_x, task.query_x], 1).flatten(0, 1)
    raw = x.double() * torch.tensor(family.resolved().deviations[:2]) + torch.tensor(
        family.resolved().means[:2]
    )
    near = [(houses[["rooms", "area"]] - row).abs().sum(1).min() for row in raw.numpy()]
    assert max(near) < 1e-3  # and each is a row of the file


def test_splits_share_no_group_and_do_not_depend_on_shots(houses: pd.DataFrame) -> None:
    found: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for family in (table(), table(shots=1, queries=1)):
            task = family.sample(generator(), 200, split)
            groups = {group for part in districts(family, houses, task.query_y) for group in part}
            assert found.setdefault(split, groups) == groups
    assert [len(groups) for groups in found.values()] == [12, 4, 4]
    assert len(set.union(*found.values())) == 20


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ((0.6, 0.2, 0.2), [6, 2, 2]),
        ((1.0, 0.0, 0.0), [10, 0, 0]),
        ((0.0, 0.0, 1.0), [0, 0, 10]),
        ((0.0, 0.25, 0.75), [0, 2, 8]),
        ((0.98, 0.01, 0.01), [8, 1, 1]),
        ((0.33, 0.33, 0.34), [4, 3, 3]),
    ],
)
def test_shares_divide_all_groups(splits: tuple[float, float, float], sizes: list[int]) -> None:
    parts = divide(10, splits)
    assert [len(parts[split]) for split in ("train", "val", "test")] == sizes
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(10))
    for groups in range(4):
        assert sorted(torch.cat(list(divide(groups, splits).values())).tolist()) == list(
            range(groups)
        )


def test_groups_are_divided_by_their_names_and_not_by_their_order_in_the_file(
    houses: pd.DataFrame,
) -> None:
    houses.sort_values("price").to_csv("sorted.csv", index=False)
    for split in ("train", "val", "test"):
        first, second = (table(data=data)._rows for data in ("houses.csv", "sorted.csv"))
        assert first.names == second.names
        assert torch.equal(first.splits[split], second.splits[split])


def test_the_scale_is_that_of_the_training_groups(houses: pd.DataFrame) -> None:
    family = table()
    task = family.sample(generator(), 300, "train")
    train = {group for part in districts(family, houses, task.query_y) for group in part}
    used = houses[houses["district"].isin(train)][["rooms", "area", "price"]]
    assert family.resolved().means == pytest.approx(used.mean().to_list())
    assert family.resolved().deviations == pytest.approx(used.std(ddof=0).to_list())
    moved = houses.copy()  # what other groups hold changes nothing
    moved.loc[~moved["district"].isin(train), ["rooms", "area", "price"]] *= 100.0
    moved.to_csv("moved.csv", index=False)
    assert table(data="moved.csv").resolved().means == pytest.approx(family.resolved().means)
    everything = family.examples(used)
    assert everything.mean(0).abs().max() < 1e-5
    assert everything.std(0, correction=0).sub(1).abs().max() < 1e-5
    assert family.targets(used["price"]).square().mean() == pytest.approx(1.0, abs=1e-5)


def test_a_constant_column_has_deviation_one(houses: pd.DataFrame) -> None:
    houses.assign(rooms=0.1).to_csv("houses.csv", index=False)
    family = table()
    assert (family.resolved().means[0], family.resolved().deviations[0]) == (0.1, 1.0)
    assert family.sample(generator(), 5, "test").query_x[..., 0].abs().max() == 0


def test_the_same_generator_draws_the_same_rows_and_nothing_else_decides(
    houses: pd.DataFrame,
) -> None:
    first = table().sample(generator(3), 6, "test")
    torch.manual_seed(1)
    row_files.opened.cache_clear()
    again, other = (
        table().resolved().sample(generator(3), 6, "test"),
        table().sample(generator(4), 6, "test"),
    )
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first.query_y, other.query_y)


def test_a_file_is_read_once_until_it_changes(houses: pd.DataFrame) -> None:
    row_files.opened.cache_clear()
    for family in (table(), table(shots=2), table().resolved(), table(features=("rooms",))):
        family.check("train")
    assert row_files.opened.cache_info().misses == 1
    before = table().resolved()
    (houses.assign(price=houses["price"] + 1)).to_csv("houses.csv", index=False)
    os.utime("houses.csv", ns=(1, 1))
    assert table().resolved().means[-1] == pytest.approx(before.means[-1] + 1)


def test_parquet_and_addresses_give_the_same_tasks(houses: pd.DataFrame, s3: S3) -> None:
    category = houses.assign(district=houses["district"].astype("category"))
    category.to_parquet("houses.parquet")
    storage.write("s3://bucket/houses.csv", Path("houses.csv").read_bytes())
    drawn = [
        table(data=data).sample(generator(), 4, "val")
        for data in (
            "houses.csv",
            "houses.parquet",
            "s3://bucket/houses.csv",
            str(Path("houses.csv").absolute()),
        )
    ]
    for task in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0], task, strict=True))


def test_features_are_by_default_what_is_numeric(houses: pd.DataFrame) -> None:
    more = houses.assign(sold=houses["rooms"] > 4, when="2024-01-01", zip=list(range(len(houses))))
    more.to_csv("houses.csv")  # with pandas' numbers of rows
    assert table().resolved().features == ("rooms", "area", "zip")
    more.set_index(more.index * 2).to_parquet("houses.parquet")
    assert table(data="houses.parquet").resolved().features == ("rooms", "area", "zip")
    assert table(features=["area", "zip"]).resolved().features == ("area", "zip")


def test_group_names_of_a_csv_are_text(houses: pd.DataFrame) -> None:
    """07 is not 7, and NA is Namibia."""
    names = {f"d{i:02d}": name for i, name in enumerate(["07", "7", "NA", "nan", "1.0", "true"])}
    houses.replace({"district": names}).to_csv("houses.csv", index=False)
    assert set(names.values()) < set(table()._rows.names)


def test_odd_but_sound_files_are_read(houses: pd.DataFrame) -> None:
    text = Path("houses.csv").read_text()
    quoted = text.replace("Elm St", '"Elm\nSt, 1"')
    for odd in (
        "﻿" + text,
        "\n\n" + text,
        text.replace("\n", "\r\n"),
        text.replace("\n", "\n\n"),
        quoted,
    ):
        Path("odd.csv").write_text(odd, newline="")
        assert torch.equal(table(data="odd.csv")._rows.values, table()._rows.values)
    long = houses.assign(street="x" * 100)
    long.loc[3, "street"] = "y" * 3_000_000  # longer than what Arrow reads at once
    long.to_csv("odd.csv", index=False)
    assert torch.equal(table(data="odd.csv")._rows.values, table()._rows.values)
    money = houses.assign(price=[Decimal(f"{price:.2f}") for price in houses["price"]])
    money.to_parquet("money.parquet")
    assert table(data="money.parquet").resolved().means == pytest.approx(table().resolved().means)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert len(text) < 600
    assert "\n" not in text
    assert text.isprintable()
    assert ": " in text
    assert re.search(r"[a-z0-9'?)]$", text)
    return text


HEADER = "district,rooms,area,price\n"
ROWS = "".join(f"{'abcdef'[i % 6]},{i % 7},{i * i % 11}.5,{i}\n" for i in range(120))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "houses.csv is empty"),
        (b" \n\n ", "houses.csv is empty"),
        (b"\xef\xbb\xbf", "houses.csv is empty"),
        (HEADER.encode(), "no rows"),
        ((HEADER + ROWS).replace(",", ";").encode(), "separates its columns by ';'"),
        ((HEADER + ROWS).replace(",", "\t").encode(), r"separates its columns by '\\t'"),
        ((HEADER + ROWS).replace(".5", ",5").encode(), "Row #2: Expected 4 columns, got 5"),
        (("A title\n" + HEADER + ROWS).encode(), "Row #2: Expected 1 columns, got 4"),
        ((HEADER.replace("area", "rooms") + ROWS).encode(), "several columns named 'rooms'"),
        ((HEADER + ROWS).encode("utf-16"), r"neither Parquet nor UTF-8 text \(byte 0\)"),
        ((HEADER + ROWS).encode("utf-16-le"), "zero bytes"),
        ((HEADER + ROWS).replace("a,", "ä,").encode("latin-1"), r"neither Parquet nor UTF-8 text"),
        (b"PK\x03\x04\xff\xfe" * 50, "neither Parquet nor UTF-8 text"),
        (b"PAR1", "cannot read houses.csv as CSV or Parquet"),
        (b"PAR1" + b"x" * 100 + b"PAR1", "cannot read houses.csv as CSV or Parquet"),
        ((HEADER + ROWS + 'a,"1,2,3').encode(), "cannot read houses.csv|not numeric"),
        (
            ("x" * 3_000_000).encode(),
            "family.group names 'district', which is no column|cannot read",
        ),
        (
            (HEADER.replace("price", "Price") + ROWS).encode(),
            r"family.target names 'price', .* did you mean 'Price'\?",
        ),
        ((HEADER.replace("district", " district") + ROWS).encode(), r"did you mean ' district'\?"),
        ((HEADER.replace("price", "\x1b[31m") + ROWS).encode(), r"\\x1b\[31m"),
        (
            (HEADER + ROWS.replace(",3\n", ',"1,234"\n')).encode(),
            "'price' .* is not numeric, it holds text such as '1,234'",
        ),
        ((HEADER + ROWS.replace(",3\n", ",1_000\n")).encode(), "text such as '1_000'"),
        ((HEADER + ROWS.replace(",3\n", ",?\n")).encode(), r"text such as '\?'"),
        (
            (HEADER + ROWS.replace(",3\n", ",\n").replace(",4\n", ",NaN\n")).encode(),
            r"2 of 120 rows \(2 missing\)",
        ),
        (
            (HEADER + ROWS.replace(",3\n", ",inf\n").replace(",4\n", ",\n")).encode(),
            r"\(1 missing, 1 infinite\)",
        ),
        (
            (HEADER + ROWS.replace(",3\n", ",1e999\n")).encode(),
            r"'price' .* 1 of 120 rows \(1 infinite\)",
        ),
        (
            (HEADER + ROWS.replace(",1.5,", ",,")).encode(),
            r"column 'area' of houses.csv has no finite number in \d+ of",
        ),
        (
            (HEADER + re.sub(",[0-9]+\n", ",true\n", ROWS)).encode(),
            "'price' .* it holds true and false",
        ),
        (
            (HEADER + re.sub(",[0-9]+\n", ",2024-01-02\n", ROWS)).encode(),
            "'price' .* it holds date32",
        ),
        ((HEADER + re.sub(",[0-9]+\n", ",\n", ROWS)).encode(), "'price' .* it holds no values"),
        (
            (HEADER + ROWS.replace("b,", ",")).encode(),
            "'district' of houses.csv is empty in 20 of 120 rows",
        ),
        (
            (HEADER + ROWS.replace(",3\n", ",1e300\n")).encode(),
            "'price' .* cannot|'price' .* too large",
        ),
        (
            (HEADER + "a,1,2,3\n").encode(),
            "no group of houses.csv is left to train on|the train split .* has 0 groups",
        ),
        (b"district,price\na,1\nb,2\n", "no numeric column but 'price'"),
    ],
)
def test_files_are_refused_in_one_sentence_that_says_why(content: bytes, reason: str) -> None:
    Path("houses.csv").write_bytes(content)
    with pytest.raises(InputError, match=reason) as refused:
        table().check("train")
    one_sentence(refused.value)
    with pytest.raises(InputError):
        table().resolved()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data": "none.csv"}, "there is no file 'none.csv'"),
        ({"data": ""}, "a path is ''"),
        ({"data": "folder"}, "no regular file"),
        ({"data": "pipe"}, "no regular file"),
        ({"data": "http://example.invalid/houses.csv"}, "is a page's address"),
        ({"group": "distrct"}, r"family.group names 'distrct', .* did you mean 'district'\?"),
        (
            {"target": "xyz"},
            "family.target names 'xyz', .* the columns are 'district', 'rooms', 'area', 'street', "
            "'price'",
        ),
        ({"features": ["room"]}, r"family.features names 'room', .* did you mean 'rooms'\?"),
        ({"features": ["rooms", "price"]}, "family.features has 'price', which is family.target"),
        ({"features": ["district"]}, "family.features has 'district', which is family.group"),
        ({"features": ["rooms", "rooms"]}, "'rooms' several times"),
        ({"features": []}, "family.features is empty"),
        (
            {"features": ["street"]},
            "'street' of houses.csv is not numeric, it holds text such as 'Elm St'",
        ),
        ({"group": "price"}, "both 'price'"),
        (
            {"shots": 9},
            r"has 0 groups by 'district' with 13 rows, .* \(12 with fewer rows are left out\)",
        ),
        (
            {"group": "street"},
            "has 0 groups by 'street'|no group of houses.csv is left to train on",
        ),
        ({"splits": (0.05, 0.5, 0.45)}, "has 1 groups by 'district'"),
        ({"checksum": "0" * 64}, "not the file that this was trained on"),
    ],
)
def test_keys_are_refused_in_one_sentence_that_says_why(
    houses: pd.DataFrame, fields: dict[str, Any], reason: str
) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(InputError, match=reason) as refused:
        table(**fields).check("train")
    one_sentence(refused.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"shots": 0}, "shots is 0, expected at least 1"),
        ({"queries": -1}, "queries is -1, expected at least 1"),
        ({"splits": [0.5, 0.2, 0.2]}, "sum to 1"),
        ({"splits": [1.5, -0.5, 0.0]}, "sum to 1"),
        ({"means": [0.0]}, "means and deviations"),
        ({"features": ["rooms"], "means": [0.0, 0.0], "deviations": [1.0, 0.0]}, "above 0"),
        (
            {"features": ["rooms"], "means": [0.0, 0.0], "deviations": [1.0]},
            "one for each of features",
        ),
        ({"features": ["rooms"], "means": [0.0, float("nan")], "deviations": [1.0, 1.0]}, "finite"),
        ({"colour": "red"}, "colour is not a key"),
    ],
)
def test_recipes_are_refused_for_values_that_cannot_be(fields: dict[str, Any], reason: str) -> None:
    family = {
        "name": "table",
        "data": "houses.csv",
        "group": "district",
        "target": "price",
    } | fields
    with pytest.raises(InputError, match=reason):
        config(SINUSOID | {"family": family})


def test_small_groups_are_left_out_and_counted(houses: pd.DataFrame) -> None:
    few = houses.drop(
        houses.index[houses["district"].isin(["d00", "d01", "d02", "d03", "d04"])][::2]
    ).reset_index(drop=True)
    few.to_csv("houses.csv", index=False)
    assert (
        table(shots=1, queries=1).describe()
        == "table houses.csv price by district (12/4/4 groups) 1-shot 1 queries"
    )
    family = table()
    counts = [int(n) for n in re.findall(r"\d+", family.describe())[:3]]
    assert sum(counts) == 15
    drawn = {
        g
        for part in districts(family, few, family.sample(generator(), 300, "train").query_y)
        for g in part
    }
    assert len(drawn) == counts[0]
    assert not drawn & {"d00", "d01", "d02", "d03", "d04"}


def test_an_evaluation_may_not_change_what_the_scale_was_measured_with(
    houses: pd.DataFrame,
) -> None:
    """Nor move a group that was trained on into the test split."""
    trained = table().resolved()
    replace(trained, shots=2).check("test")
    for changes in (
        {"target": "area", "features": ("rooms", "price")},
        {"splits": (0.2, 0.2, 0.6)},
        {"group": "street"},
    ):
        with pytest.raises(InputError, match="recorded with") as refused:
            replace(trained, **changes).check("test")
        one_sentence(refused.value)
    houses.assign(price=1.0).to_csv("houses.csv", index=False)
    os.utime("houses.csv", ns=(2, 2))
    with pytest.raises(InputError, match="not the file that this was trained on"):
        replace(trained).check("test")
    replace(trained, checksum=None).check("test")


def test_raw_rows_are_taken_in_all_that_people_hold_them_in(houses: pd.DataFrame) -> None:
    family = table().resolved()
    rows = houses.head(7)[["price", "area", "street", "rooms"]]  # not in the order of the features
    x = family.examples(rows)
    assert x.shape == (7, 2)
    assert x.dtype == torch.float32
    array = rows[["rooms", "area"]].to_numpy(dtype=float)
    expected = (array - np.array(family.means[:2])) / np.array(family.deviations[:2])
    assert x.numpy() == pytest.approx(expected, abs=1e-6)
    ways: list[Any] = [
        rows.to_dict("list"),
        rows.to_dict("records"),
        rows.convert_dtypes(),
        {name: torch.tensor(rows[name].to_numpy()) for name in ("area", "rooms")},
        array,
        array.tolist(),
        [tuple(row) for row in array],
        (row for row in array),
        [torch.tensor(row, requires_grad=True) for row in array],
        torch.tensor(array),
        [[Decimal(str(value)) for value in row] for row in array.tolist()],
        pa.Table.from_pandas(rows),
        rows[["rooms", "area"]].to_records(index=False),
        np.ma.masked_array(array),
    ]
    for raw in ways:
        assert torch.allclose(family.examples(raw), x, atol=1e-6), type(raw)
    one = rows.iloc[0]
    assert torch.equal(family.examples({"rooms": one["rooms"], "area": one["area"]}), x[:1])
    y = family.targets(rows["price"])
    assert y.shape == (7, 1)
    prices = rows["price"].to_numpy()
    for raw in (
        rows,
        rows[["price"]],
        prices,
        prices[:, None],
        prices.tolist(),
        torch.tensor(prices),
        iter(prices),
    ):
        assert torch.equal(family.targets(raw), y)
    back = family.predictions(y)
    assert back.shape == (7,)
    assert back.numpy() == pytest.approx(prices, rel=1e-6)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "no rows"),
        (np.zeros((0, 2)), "no rows"),
        ({"rooms": [], "area": []}, "no rows"),
        ([1.0, 2.0], r"expected N rows of 2 values \('rooms', 'area'\), got the shape \[2\]"),
        (np.zeros((3, 3)), r"got the shape \[3, 3\]"),
        (np.zeros((2, 2, 2)), r"got the shape \[2, 2, 2\]"),
        (5.0, "got one value"),
        ("houses.csv", "got one value"),
        (None, "got one value"),
        ([[1, 2], [3]], r"got the shape \[2\]|one length"),
        ([[1, 2], [3, "4"]], "column 'area' holds '4' in row 2, which is a number as text"),
        ([[1, True]], "column 'area' holds True"),
        (np.array([["1", "2"]]), "column 'rooms' holds '1'"),
        (np.array([[True, False]]), "column 'rooms' holds True"),
        (np.array([["2024-01-01", "2024-01-02"]], dtype="datetime64[D]"), "which is no number"),
        (np.array([[1 + 2j, 0]]), r"column 'rooms' holds \(1\+2j\)"),
        ([[1, None], [2, 3]], r"column 'area' has no finite number in 1 of 2 rows \(1 missing\)"),
        ([[1, float("nan")], [float("inf"), 3]], r"column 'rooms' .* \(1 infinite\)"),
        (np.ma.masked_array([[1.0, 2.0]], mask=[[False, True]]), r"column 'area' .* \(1 missing\)"),
        ([[10**400, 1]], "float64"),
        ([[1e300, 1]], "too far"),
        ({"rooms": [1]}, "no column 'area': the columns are 'rooms'"),
        ({"rooms": [1], "Area": [1]}, r"no column 'area': did you mean 'Area'\?"),
        ({"rooms": [1, 2], "area": [1]}, r"'rooms' \[2\], 'area' \[1\]"),
        ([{"rooms": 1}, {"rooms": 2}], "no column 'area'"),
        ([{"rooms": 1, "area": 2}, {"rooms": 2}], r"column 'area' .* 1 of 2 rows \(1 missing\)"),
        (pd.DataFrame(np.zeros((2, 2))), "no column 'rooms'"),
        (pd.DataFrame({"rooms": ["3 rooms"], "area": [1.0]}), "column 'rooms' holds '3 rooms'"),
        (
            pd.DataFrame({"rooms": pd.array([1, None], dtype="Int64"), "area": [1.0, 2.0]}),
            "column 'rooms'",
        ),
        (pd.DataFrame([[1, 2, 3]], columns=["rooms", "area", "area"]), "one value for each"),
    ],
)
def test_raw_rows_are_refused_in_one_sentence_that_says_why(
    houses: pd.DataFrame, raw: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        table().examples(raw)
    one_sentence(refused.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (np.zeros((3, 2)), r"expected N values, got the shape \[3, 2\]"),
        (["1"], "column 'price' holds '1'"),
        ([None, 1.0], r"1 of 2 rows \(1 missing\)"),
        ([], "no rows"),
        (3.0, "got one value"),
        (pd.DataFrame({"prize": [1.0]}), r"no column 'price': did you mean 'prize'\?"),
    ],
)
def test_raw_targets_are_refused_in_one_sentence_that_says_why(
    houses: pd.DataFrame, raw: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        table().targets(raw)
    one_sentence(refused.value)
    with pytest.raises(InputError, match=r"\[N, 1\]"):
        table().predictions(torch.zeros(3))


def test_baselines_are_the_mean_and_a_ridge_regression_of_the_support_rows(
    houses: pd.DataFrame,
) -> None:
    from sklearn.linear_model import Ridge

    task = table(shots=6).sample(generator(), 5, "train")
    for t in range(5):
        x, y, query, truth = (leaf[t].double().numpy() for leaf in task)
        assert float(support_mean(task)[t]) == pytest.approx(
            ((truth - y.mean()) ** 2).mean(), rel=1e-4
        )
        fitted = Ridge(alpha=1.0).fit(x, y[:, 0]).predict(query)
        assert float(ridge(task)[t]) == pytest.approx(
            ((truth[:, 0] - fitted) ** 2).mean(), rel=1e-3
        )


def test_the_third_baseline_is_fitted_to_all_rows_of_the_training_groups(
    houses: pd.DataFrame,
) -> None:
    from sklearn.linear_model import Ridge

    family = table()
    drawn = districts(family, houses, family.sample(generator(), 100, "train").support_y)
    rows = houses[houses["district"].isin({name for task in drawn for name in task})]
    x, y = family.examples(rows).double().numpy(), family.targets(rows["price"]).double().numpy()
    fitted, task = Ridge(alpha=1.0).fit(x, y[:, 0]), family.sample(generator(1), 5, "test")
    found = family.bind(MLP(), ("none",), "batched").baselines(task)["ridge_on_training_groups"]
    for t in range(5):
        predicted = fitted.predict(task.query_x[t].double().numpy())
        expected = ((task.query_y[t, :, 0].double().numpy() - predicted) ** 2).mean()
        assert float(found[t]) == pytest.approx(expected, rel=1e-3)


FAMILY = {
    "name": "table",
    "data": "houses.csv",
    "group": "district",
    "target": "price",
    "queries": 5,
}
SMALL: dict[str, Any] = SINUSOID | {
    "name": "houses",
    "family": FAMILY,
    "outer": {"steps": 150, "tasks_per_step": 10, "tasks_per_ticket": 10, "lr": 0.003},
    "evaluation": {"tasks": 100, "tasks_per_ticket": 50},
}


@pytest.mark.usefixtures("pictures")
def test_a_run_learns_and_its_bundle_needs_no_file(houses: pd.DataFrame) -> None:
    Path("houses.yaml").write_text(json.dumps(SMALL))
    done = command("train", "houses.yaml", "--set", "output=run")
    assert done.returncode == 0, done.stderr
    assert "table houses.csv price by district (12/4/4 groups) 5-shot 5 queries" in done.stdout
    result = json.loads(Path("run/result.json").read_text())
    text = json.dumps(result)
    assert '"support_mean"' in text
    assert '"ridge_on_support_rows"' in text
    score = float(re.search(r"mse=([0-9.]+)", done.stdout).group(1))
    assert 0.02 < score < float(re.search(r"support mean +([0-9.]+)", done.stdout).group(1))
    assert Path("run/figures/example.png").stat().st_size > 10_000

    trained = table(queries=5)
    x, y = trained.examples(houses), trained.targets(houses["price"])
    Path("houses.csv").unlink()
    recipe, _ = bundle.load("run/bundle")
    family = recipe.family
    assert isinstance(family, Table)
    assert family.features == ("rooms", "area")
    assert family.checksum is not None
    assert schema.parse(type(recipe), schema.dump(recipe), "again") == recipe
    assert torch.equal(family.examples(houses), x)
    assert torch.equal(family.targets(houses["price"]), y)
    assert family.predictions(y).numpy() == pytest.approx(houses["price"].to_numpy(), rel=1e-6)
    assert family.bind(MLP(hidden=(4,)), ("none",), "reference").inputs == (2,)
    assert family.describe() == "table houses.csv price by district 5-shot 5 queries"
    assert family.resolved() is family
    with pytest.raises(InputError, match="there is no file"):
        family.check("test")


def test_a_run_is_refused_before_it_begins_for_what_its_evaluation_may_not_change(
    houses: pd.DataFrame,
) -> None:
    Path("houses.yaml").write_text(
        json.dumps(SMALL | {"evaluation": {"tasks": 10, "family": {"splits": [0.2, 0.2, 0.6]}}})
    )
    done = command("train", "houses.yaml", "--set", "output=run")
    assert done.returncode == 2, done.stderr
    assert "recorded with" in done.stderr
    assert not Path("run").exists()


def test_the_picture_shows_prices_before_and_after(houses: pd.DataFrame) -> None:
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    figure = figures.agreement(
        truth, [(0, truth * 2), (3, truth)], ["d1", "d2"], "price", "a title"
    )
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["d1", "d2"]
    assert (first.get_xlabel(), first.get_ylabel()) == ("true price", "predicted price")
    drawn = {line.get_label(): line for line in second.get_lines()}
    assert list(drawn) == ["no error", "before adaptation", "after 3 adaptation steps"]
    assert drawn["before adaptation"].get_ydata().tolist() == [6.0, 8.0]
    assert drawn["after 3 adaptation steps"].get_xdata().tolist() == [3.0, 4.0]
    (alone,) = figures.agreement(
        truth[:1], [(0, truth[:1]), (1, truth[:1])], ["d1"], "price", "one group"
    ).axes
    assert alone.get_title() == "d1"


def test_the_picture_is_of_different_groups_in_raw_units(houses: pd.DataFrame) -> None:
    family = table()
    problem = family.bind(MLP(hidden=(4,)), ("none",), "reference")

    def adapt(task: Any) -> list[tuple[int, Any]]:
        params = {
            name: p.expand(len(task.query_x), *p.shape)
            for name, p in problem.init(generator()).items()
        }
        return [(0, params), (1, params)]

    figure = family.picture(problem, adapt, Context(Ticket("score", "test", 0, 0), generator()))
    names = [axes.get_title() for axes in figure.axes]
    assert len(set(names)) == 3
    for name, axes in zip(names, figure.axes, strict=True):
        (points,) = [line for line in axes.get_lines() if line.get_label() == "before adaptation"]
        group = houses[houses["district"] == name.removeprefix("district ")]["price"].to_numpy()
        assert all(np.abs(group - price).min() < 1 for price in points.get_xdata())
