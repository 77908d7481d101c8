"""A run's data sets in MLflow: name, checksum, place, splits, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import CASES, GLYPHS, SINUSOID, config
from services import store

from cluster import run
from cluster.tracking import datasets
from metatrain.start import prepare
from metatrain.tasks import open_data


def entities(tree: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """The data sets of a run by the context that they are for."""
    found = datasets.inputs(prepare(config(tree, **overrides).recipe()).used())
    return {each.tags[0].value: each.dataset for each in found}


@pytest.fixture
def houses() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    rows = {"district": [f"d{i % 10}" for i in range(120)], "rooms": generator.integers(1, 9, 120)}
    pd.DataFrame(rows | {"price": generator.normal(0, 1, 120)}).to_csv("houses.csv", index=False)
    family = {
        "name": "table",
        "data": "houses.csv",
        "group": "district",
        "target": "price",
        "queries": 4,
    }
    return SINUSOID | {"family": family}


def test_images_are_named_by_their_splits_with_the_stores_checksum_and_counts() -> None:
    glyphs = open_data("glyphs")
    found = entities(GLYPHS)
    assert list(found) == ["training", "evaluation"]  # nothing is validated
    assert [each.name for each in found.values()] == ["glyphs/glyphs train", "glyphs/glyphs test"]
    assert {each.digest for each in found.values()} == {glyphs.checksum}
    profile = json.loads(found["evaluation"].profile)
    assert (profile["classes"], profile["images"], profile["shape"]) == (200, 4000, [1, 28, 28])
    assert profile["splits"] == {"train": 700, "val": 100, "test": 200}


def test_a_table_is_named_by_its_file_with_its_checksum_groups_and_rows(
    houses: dict[str, Any],
) -> None:
    found = entities(houses, validation={"every_steps": 1, "tasks": 2})
    assert [each.name for each in found.values()] == [
        "houses.csv train",
        "houses.csv val",
        "houses.csv test",
    ]
    profile = json.loads(found["training"].profile)
    assert found["training"].digest == profile["checksum"][: datasets.DIGEST]
    assert len(profile["checksum"]) == 64
    assert profile["splits"] == {
        "train": {"groups": 6, "rows": 72},
        "val": {"groups": 2, "rows": 24},
        "test": {"groups": 2, "rows": 24},
    }
    assert [
        column["name"] for column in json.loads(found["training"].schema)["mlflow_colspec"]
    ] == ["rooms", "price"]


@pytest.mark.parametrize("name", ["sinusoid", "recurrent", "rl2", "maml-navigation"])
def test_what_is_generated_has_a_digest_of_what_it_is_generated_by(name: str) -> None:
    first, again = entities(CASES[name]), entities(CASES[name])
    size = "episodes" if "episodes" in CASES[name]["family"] else "shots"
    other = entities(CASES[name], **{f"family__{size}": 7})
    family = CASES[name]["family"]["name"]
    assert [each.name for each in first.values()] == [f"{family} train", f"{family} test"]
    assert {each.source_type for each in first.values()} == {"generated"}
    assert first["training"].digest == again["training"].digest != other["training"].digest


@pytest.mark.parametrize(
    ("data", "kind", "source"),
    [
        ("omniglot", "imported", {"name": "omniglot"}),
        ("folder/of mine", "local", {"uri": "folder/of mine"}),
        ("s3://bucket/omniglot", "s3", {"uri": "s3://bucket/omniglot"}),
        ("s3://key:secret@bucket/x?region=eu", "s3", {"uri": "s3://***@bucket/x?region=***"}),
        ("s3://key:sec/re#t?@bucket/x", "s3", {"uri": "s3://***@bucket/x"}),
        ("https://me:hunter2@host/a", "https", {"uri": "https://***@host/a"}),
    ],
)
def test_where_data_lies_is_said_without_a_secret(
    data: str, kind: str, source: dict[str, str]
) -> None:
    assert datasets.place(data) == (kind, source)


@pytest.mark.ray
def test_a_run_in_mlflow_has_them_once_also_if_it_goes_on(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    settings = config(
        GLYPHS, tracking__uri=store(tmp_path), outer__steps=2, evaluation__tasks=4, output="g"
    )
    run.train(settings)
    run.train(
        config(
            GLYPHS, tracking__uri=store(tmp_path), outer__steps=3, evaluation__tasks=4, output="g"
        ),
        None,
        "g",
    )
    client = MlflowClient(store(tmp_path))
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    kept = {
        (each.dataset.name, each.dataset.digest, each.tags[0].value)
        for each in found.inputs.dataset_inputs
    }
    checksum = open_data("glyphs").checksum
    assert kept == {
        ("glyphs/glyphs train", checksum, "training"),
        ("glyphs/glyphs test", checksum, "evaluation"),
    }
    assert len(found.inputs.dataset_inputs) == 2
    models = [client.get_logged_model(each.model_id) for each in found.outputs.model_outputs]
    assert [(each.name, each.status.value) for each in models] == [
        ("glyphs", "READY")
    ] * 2  # at its end each time
    of = {
        (metric.dataset_name, metric.dataset_digest)
        for each in models
        for metric in each.metrics or ()
    }
    assert of == {("glyphs/glyphs test", checksum)}
