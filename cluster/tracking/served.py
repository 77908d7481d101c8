"""The script of a logged model: MLflow keeps a copy, and runs it to load the model; no pickle.

The input is one table. Rows with a label or a target are the support set; rows without one are
predicted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

import metatrain
from metatrain.core import InputError, RawExamples
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.table import Table
from metatrain.tasks.text import Texts

MOST_COLUMNS = 1000  # that an example's numbers may take


class Served(PythonModel):  # type: ignore[misc]
    """A bundle that adapts to some rows of a table and predicts the others."""

    def load_context(self, context: Any) -> None:
        self._learned = metatrain.load(context.artifacts["bundle"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        return predict(self._learned, model_input)


def columns(learned: Any) -> tuple[list[str], list[str]]:
    """Return the columns of an example, and those of its label or targets.

    Raises InputError if the family's examples are not columns of a table.
    """
    family: Any = learned.recipe.family
    numbered = ["y"] if learned.targets == 1 else [f"y{i}" for i in range(learned.targets)]
    targets = ["label"] if learned.has_classes else numbered
    if isinstance(family, FewShot):
        return ["image"], targets
    if isinstance(family, Texts):
        return ["text"], targets
    if isinstance(family, Table):
        return list(family.features or ()), [family.target]
    if isinstance(family, RawExamples):
        raise InputError(
            f"{learned.recipe.family.name} takes examples of its own kind, which are not columns "
            "of a table"
        )
    size = math.prod(learned.inputs)
    if size > MOST_COLUMNS:
        raise InputError(
            f"an example of {family.name} has {size} numbers, and a table takes {MOST_COLUMNS} "
            "columns"
        )
    return [f"x{i}" for i in range(size)], targets


def predict(learned: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Adapt to the labelled rows and predict the others, in their order and with their index."""
    features, targets = columns(learned)
    missing = rows[targets].isna()
    unknown = missing.all(axis=1)
    if (missing.any(axis=1) & ~unknown).any():
        raise InputError(
            f"a row has some of {', '.join(targets)}",
            remedy="give all of them, or none in a row to predict",
        )
    support, query = rows[~unknown], rows[unknown]
    if support.empty:
        raise InputError(f"no row has its {targets[0]}", remedy="give it in the rows to adapt to")
    if query.empty:
        raise InputError(
            f"every row has its {targets[0]}", remedy="leave it empty in the rows to predict"
        )
    given = (
        support[targets[0]].tolist() if len(targets) == 1 else support[targets].to_numpy(np.float64)
    )
    adapted = learned.adapt(_examples(learned, support, features), given)
    found = adapted.predict(_examples(learned, query, features))
    if learned.has_classes:
        chosen = {
            "prediction": found.labels,
            "probability": found.probabilities.max(dim=-1).values.double().numpy(),
        }
        return pd.DataFrame(chosen, index=query.index)
    values = found.values.double().reshape(len(query), -1).numpy()
    return pd.DataFrame(values, index=query.index, columns=outputs(learned))


def outputs(learned: Any) -> list[str]:
    """Return the columns of predicted numbers."""
    if learned.targets == 1:
        return ["prediction"]
    return [f"prediction{i}" for i in range(learned.targets)]


def _examples(learned: Any, rows: pd.DataFrame, features: list[str]) -> Any:
    """Return rows as `adapt` and `predict` take them."""
    if isinstance(learned.recipe.family, FewShot):
        return [_encoded(image) for image in rows["image"]]
    if isinstance(learned.recipe.family, Texts):
        return rows["text"].tolist()
    if isinstance(learned.recipe.family, Table):
        return rows[features]
    return rows[features].to_numpy(np.float64).reshape(len(rows), *learned.inputs)


def _encoded(image: Any) -> bytes:
    """Return the bytes of an image's file, and refuse a path, which a server would open."""
    if not isinstance(image, bytes | bytearray | memoryview):
        raise InputError(
            f"image holds {type(image).__name__}",
            expected="bytes",
            remedy="give those of a PNG or JPEG file",
        )
    return bytes(image)


set_model(Served())
