"""Meta-learning from Python: train, tune, look at runs, adapt and predict.

import metatrain

run = metatrain.train("recipes/demo.yaml", outer={"steps": 50})  # or a dict, or the dataclass
run.result, run.metrics, run.figures
adapted = run.load().adapt(support_images, support_labels)  # or metatrain.load("runs/first")
print(adapted.predict(query_images).labels)

This file is the front door of all layers and imports none of them: a name brings its module when it
is first used. The modules beside it are the library: tasks, models, algorithms, learner,
evaluation. They know neither Ray nor MLflow.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.api.listing import runs as runs
    from cluster.api.run import Run as Run
    from cluster.api.seeds import Seeds as Seeds
    from cluster.api.train import train as train
    from cluster.collector import Interrupted as Interrupted
    from cluster.pools.pool import WorkersLost as WorkersLost
    from metatrain.core import InputError as InputError
    from metatrain.data.sources import open_data as open_data
    from metatrain.inference import load as load
    from metatrain.learner import Diverged as Diverged
    from tuning.api import SweepRun as SweepRun
    from tuning.api import tune as tune

    __version__: str

MODULES = {
    "train": "cluster.api.train",
    "tune": "tuning.api",
    "runs": "cluster.api.listing",
    "Run": "cluster.api.run",
    "Seeds": "cluster.api.seeds",
    "SweepRun": "tuning.api",
    "load": "metatrain.inference",
    "open_data": "metatrain.data.sources",
    "InputError": "metatrain.core",
    "Interrupted": "cluster.collector",
    "Diverged": "metatrain.learner",
    "WorkersLost": "cluster.pools.pool",
}
__all__ = ["__version__", *MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        found = _version()
    elif name in MODULES:
        found = getattr(import_module(MODULES[name]), name)
    else:
        raise AttributeError(f"module 'metatrain' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """The version of what is installed, or else of the checkout that PYTHONPATH names."""
    from importlib import metadata

    try:
        return metadata.version("ray-metatrain")
    except metadata.PackageNotFoundError:
        import tomllib

        project = Path(__file__).parent.parent / "pyproject.toml"
        return (
            str(tomllib.loads(project.read_text())["project"]["version"])
            if project.exists()
            else "unknown"
        )
