"""Trained networks as scikit-learn estimators, which adapt to a table when they are fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from metatrain.inference import tables
from metatrain.inference.learned import Learned

# Texts and gaps stay as they are.
AS_GIVEN = {"dtype": None, "ensure_all_finite": "allow-nan"}


class _Reader(BaseEstimator):  # type: ignore[misc]
    """Adapts a network to the rows of a table."""

    def __init__(self, learned: Learned) -> None:
        self.learned = learned

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _read(self, x: Any, y: Any) -> None:
        names = getattr(self, "feature_names_in_", range(x.shape[1]))
        self.adapted_ = tables.adapt(self.learned, [str(name) for name in names], list(x.T), y)

    def _predicted(self, x: Any) -> Any:
        check_is_fitted(self)
        return self.adapted_.predict(list(validate_data(self, x, reset=False, **AS_GIVEN).T))


class Classifier(ClassifierMixin, _Reader):  # type: ignore[misc]
    """Classify the rows of a table by a network that learned from made tables.

    Columns hold numbers, or texts that are categories; missing values are nan or None.
    """

    def fit(self, X: Any, y: Any) -> Classifier:  # noqa: N803
        """Adapt to rows X [N, columns] with their classes y [N]."""
        x, y = validate_data(self, X, y, ensure_min_samples=2, **AS_GIVEN)
        check_classification_targets(y)
        self._read(x, y)
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Return the probability of each of `classes_`, [N, classes]."""
        return self._predicted(X).probabilities.numpy()

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return the most probable classes [N]."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]


class Regressor(RegressorMixin, _Reader):  # type: ignore[misc]
    """Predict a number for the rows of a table by a network that learned from made tables."""

    def fit(self, X: Any, y: Any) -> Regressor:  # noqa: N803
        """Adapt to rows X [N, columns] with their numbers y [N]."""
        x, y = validate_data(self, X, y, y_numeric=True, **AS_GIVEN)
        self._read(x, y)
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return a number for each row [N]."""
        return self._predicted(X).values.numpy()
