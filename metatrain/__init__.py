"""The meta-learning library: tasks, models, algorithms, learner, evaluation. Knows neither Ray nor MLflow.

import metatrain

learned = metatrain.load("runs/first")
adapted = learned.adapt(support_images, support_labels)
print(adapted.predict(query_images).labels)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metatrain.inference import Learned


def load(path: str | Path) -> Learned:
    """What a run's folder or bundle holds, ready to adapt; InputError where it is missing, incomplete or damaged."""
    from metatrain import inference  # torch only where it is needed: `metatrain --help` answers at once

    return inference.load(path)
