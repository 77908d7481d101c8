"""Networks that learned from made tables read other tables: as scikit-learn's estimators."""

from __future__ import annotations

import pickle
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CASES, SINUSOID, config
from gradients import LINEAR, TABULAR, descending
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from metatrain.core import InputError
from metatrain.inference import Learned
from metatrain.inference.tables import column_orders
from metatrain.start import prepare


@pytest.fixture(scope="module")
def classes() -> Learned:
    return descending(TABULAR, 5.0)


@pytest.fixture(scope="module")
def numbers() -> Learned:
    return descending(LINEAR, 0.5)


def blobs(rows: int = 40, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = np.arange(rows) % 3
    centres = np.array([[4.0, 0.0, 0.0], [-2.0, 3.0, 0.0], [-2.0, -3.0, 0.0]])[:, :columns]
    return centres[y] + generator.normal(size=(rows, columns)), np.array(["a", "b", "c"])[y]


def test_the_classifier_passes_the_checks_of_scikit_learn(classes: Learned) -> None:
    check_estimator(classes.classifier(), on_skip=None)


def test_the_regressor_passes_the_checks_of_scikit_learn(numbers: Learned) -> None:
    check_estimator(numbers.regressor(), on_skip=None)


def test_a_table_is_read_in_several_orders_of_columns_with_zeros_for_absent_ones(
    classes: Learned,
) -> None:
    x, y = blobs()
    scaled = (x - x.mean(0)) / x.std(0)
    each = []
    for order in column_orders(3):
        padded = np.pad(scaled[:, order], ((0, 0), (0, 9)))
        each.append(classes.adapt(padded, y).predict(padded).probabilities)
    found = classes.classifier().fit(x, y)
    proba = found.predict_proba(x)
    np.testing.assert_allclose(proba, torch.stack(each).mean(0), atol=1e-6)
    assert proba.shape == (40, 3)  # of the four that the network knows
    assert (found.predict(x) == y).mean() > 0.9
    assert len(column_orders(3)) <= 6
    assert len(column_orders(12)) == 8
    np.testing.assert_array_equal(column_orders(5).sort(1).values, [list(range(5))] * 8)


def test_another_unit_of_columns_and_targets_changes_nothing(numbers: Learned) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 4))
    y = x @ [2.0, -1.0, 0.0, 0.5] + 0.1 * generator.normal(size=60)
    found = numbers.regressor().fit(x, y)
    assert found.score(x, y) > 0.8
    moved = numbers.regressor().fit(1000 * x + 7, 1e6 + 3 * y)
    np.testing.assert_allclose(moved.predict(1000 * x + 7), 1e6 + 3 * found.predict(x), rtol=1e-9)


@pytest.mark.parametrize(
    ("family", "columns"),
    [({"name": "tabular_regression", "columns": [2, 12]}, 3), ({"name": "gaussian_process"}, 1)],
)
def test_a_network_of_densities_predicts_in_the_unit_of_the_target(
    family: dict[str, Any], columns: int
) -> None:
    recipe = config(CASES["cells"] | {"family": family}).recipe()
    found = Learned(recipe, prepare(recipe).meta, "made up").regressor()
    x = np.random.default_rng(0).normal(size=(30, columns))
    y = x[:, 0]
    near = found.fit(x, y).predict(x)
    far = clone(found).fit(x, 1000 * y + 1e5).predict(x)
    assert near.std() > 0  # it reads the rows
    np.testing.assert_allclose(far, 1000 * near + 1e5, rtol=1e-9)


def test_categories_are_numbered_and_what_is_missing_is_the_mean(classes: Learned) -> None:
    x, y = blobs()
    kind = np.array(["low", "high", None, "mid"])[np.arange(40) % 4]
    frame = pd.DataFrame({"size": x[:, 0], "kind": kind, "old": x[:, 1] > 0})
    frame.loc[3, "size"] = np.nan
    found = classes.classifier().fit(frame, y)
    numbered = frame.assign(
        kind=frame["kind"].map({"high": 0, "low": 1, "mid": 2}), old=frame["old"].astype(int)
    )
    same = classes.classifier().fit(numbered.to_numpy(float), y)
    np.testing.assert_allclose(
        found.predict_proba(frame), same.predict_proba(numbered.to_numpy(float))
    )
    other = frame.assign(kind=["never seen", *frame["kind"][1:]])
    gap = frame.assign(kind=[None, *frame["kind"][1:]])
    np.testing.assert_array_equal(found.predict_proba(other), found.predict_proba(gap))
    assert found.adapted_.coding.unknown(list(other.to_numpy().T)) == {"kind": 1}
    mean = frame.assign(size=np.where(np.arange(40) == 0, np.nanmean(frame["size"]), frame["size"]))
    none = frame.assign(size=np.where(np.arange(40) == 0, np.nan, frame["size"]))
    np.testing.assert_allclose(found.predict_proba(mean), found.predict_proba(none))
    dated = frame.assign(old=date(2026, 1, 2))
    with pytest.raises(TypeError, match=r"column 'old' holds a date.*make numbers of dates"):
        classes.classifier().fit(dated, y)


def test_copies_share_the_network_and_a_pickle_has_the_table(classes: Learned) -> None:
    x, y = blobs()
    found = classes.classifier().fit(x, y)
    assert clone(found).learned is classes
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(x), found.predict_proba(x))


def test_a_table_that_the_network_cannot_read_is_one_sentence(
    classes: Learned, numbers: Learned
) -> None:
    x, y = blobs()
    wide = np.random.default_rng(0).normal(size=(40, 13))
    texts = pd.DataFrame({"a": x[:, 0].astype(object), "b": x[:, 1]})
    texts.loc[2, "a"] = "?"
    fitted = classes.classifier().fit(x, y)
    refused: list[tuple[Any, str]] = [
        (lambda: classes.classifier().fit(wide, y), r"13 columns.*expected at most 12"),
        (lambda: classes.classifier().fit(x, np.arange(40) % 5), "tells 4 classes apart"),
        (lambda: classes.classifier().fit(x, ["a"] * 40), "the same label.*a second class"),
        (lambda: classes.classifier().fit(texts, y), r"'a' holds '\?' in row 3.*39 rows"),
        (lambda: fitted.predict(np.array([["x", 1, 2]], dtype=object)), "'0' holds 'x' in row 1"),
        (lambda: classes.classifier().fit(1e200 * x, y), "too large"),
        (lambda: numbers.regressor().fit(x, 1e200 * x[:, 0]), "targets are too large"),
        (lambda: classes.classifier().fit(np.ones((2001, 2)), ["a"] * 2001), "2,001 rows"),
        (lambda: classes.regressor(), r"use classifier\(\)"),
        (lambda: numbers.classifier(), r"use regressor\(\)"),
        (lambda: of_sinusoids().regressor(), r"use adapt\(examples, targets\)"),
    ]
    for make, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            make()
    with pytest.raises(ValueError, match="infinity"):
        classes.classifier().fit(np.where(x == x[0, 0], np.inf, x), y)


def of_sinusoids() -> Learned:
    recipe = config(SINUSOID).recipe()
    return Learned(recipe, prepare(recipe).meta, "made up")
