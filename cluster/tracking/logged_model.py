"""A run's bundle as a logged model, for `mlflow.pyfunc.load_model`; its code is served.py."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metatrain import inference
from metatrain.bundle import MANIFEST
from metatrain.core import InputError, RawNumbers
from metatrain.inference import Learned
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.table import Table
from metatrain.tasks.text import Texts

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("served.py")
# MLflow's rule for names; a space would have to be quoted in runs:/RUN/NAME.
NOT_IN_NAMES = re.compile(r"[/:.%\"'\s]+")
# The packages that predicting needs. MLflow would load the model in another process to find them,
# which takes many seconds.
NEEDED = (
    "ray-metatrain",
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
)
BUNDLE_TAG = "metatrain.bundle"  # of a model: the checksum of its bundle's manifest
SHOWN = 5  # rows of numbers in the example that have their target
QUERIES = 2  # rows in the example that have none


def record(
    client: MlflowClient, experiment_id: str, run_id: str, bundle: Path, step: int
) -> str | None:
    """Log a bundle as an output of a run, with a signature and an example, unless it is one.

    Returns the model's id, or None if the family's examples are not labelled columns of a table.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    try:
        learned = inference.load(bundle)
        example = example_of(learned)
    except InputError as reason:
        log.info("MLflow has the bundle as files and not as a model that predicts: %s", reason)
        return None
    checksum = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    known = _recorded(client, run_id, checksum)
    if known is not None:
        return known
    made = client.create_logged_model(
        experiment_id,
        name=NOT_IN_NAMES.sub("_", learned.recipe.name),
        source_run_id=run_id,
        model_type="metatrain",
        tags={"mlflow.note.content": described(learned), BUNDLE_TAG: checksum},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Model(
                artifact_path=made.artifact_location,
                run_id=run_id,
                model_uuid=made.model_id,
                model_id=made.model_id,
            )
            save(bundle, learned, example, Path(folder), model)
            client.log_model_artifacts(made.model_id, f"{folder}/model")
    except BaseException:
        client.finalize_logged_model(made.model_id, "FAILED")
        raise
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
    return str(made.model_id)


def _recorded(client: MlflowClient, run_id: str, checksum: str) -> str | None:
    """Return the model that a run has of this bundle already."""
    from mlflow.entities import LoggedModelStatus

    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else ():
        model = client.get_logged_model(output.model_id)
        if model.status == LoggedModelStatus.READY and model.tags.get(BUNDLE_TAG) == checksum:
            return str(model.model_id)
    return None


def described(learned: Learned) -> str:
    """Return the description on the model's page: its protocol, inputs and outputs."""
    from cluster.tracking import served

    features, targets = (
        ", ".join(f"`{name}`" for name in names) for names in served.columns(learned)
    )
    bytes_of = (
        ", the bytes of a PNG or JPEG file" if isinstance(learned.recipe.family, FewShot) else ""
    )
    return (
        f"{learned.protocol}\n\nThe input is a table of {features}{bytes_of}, and {targets}. It "
        f"adapts to the rows that have {targets}, and predicts those that have none."
    )


def save(bundle: Path, learned: Learned, example: pd.DataFrame, folder: Path, model: Any) -> None:
    """Write the model to `folder`/model: the script, the bundle, the user's own modules."""
    from mlflow import pyfunc

    # MLflow would read the bundle's own path as an address, and a % in it as a code.
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    code = copy / "code"
    pyfunc.save_model(
        str(folder / "model"),
        mlflow_model=model,
        python_model=str(SCRIPT),
        artifacts={"bundle": str(copy)},
        code_paths=[str(path) for path in sorted(code.iterdir())] if code.is_dir() else None,
        signature=signature(learned, example),
        input_example=example,
        pip_requirements=requirements(),
        metadata={"protocol": learned.protocol},
    )
    for compiled in folder.rglob("__pycache__"):
        shutil.rmtree(compiled)


def signature(learned: Learned, example: pd.DataFrame) -> ModelSignature:
    """Return the columns of the input and of the predictions.

    No column may be missing: a row to predict has an empty label or target.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from cluster.tracking import served

    def kind(name: str) -> DataType:
        if name == "image" and isinstance(learned.recipe.family, FewShot):
            return DataType.binary
        if name == "text" and isinstance(learned.recipe.family, Texts):
            return DataType.string
        if learned.has_classes and name == "label":
            return DataType.string
        return DataType.long if example[name].dtype.kind == "i" else DataType.double

    predicted = [ColSpec(DataType.double, name) for name in served.outputs(learned)]
    if learned.has_classes:
        predicted = [
            ColSpec(DataType.string, "prediction"),
            ColSpec(DataType.double, "probability"),
        ]
    return ModelSignature(
        Schema([ColSpec(kind(name), name) for name in example]), Schema(predicted)
    )


def example_of(learned: Learned) -> pd.DataFrame:
    """Return a few rows of a task of the evaluation; the last ones have no label or target."""
    import pandas as pd

    from cluster.tracking import served

    features, targets = served.columns(learned)
    setting = learned.recipe.setting("score")
    family = setting.family
    task = family.sample(torch.Generator().manual_seed(0), 1, setting.split)
    x, y = task.support_x[0], task.support_y[0]
    if not len(x):
        raise InputError("a task of the evaluation has no example to adapt to")
    if learned.has_classes:
        kept = torch.tensor([int((y == label).nonzero()[0]) for label in y.unique()])
        answers = pd.DataFrame(
            {targets[0]: [f"class {label}" for label in y[kept].tolist()]}, dtype=object
        )
    else:
        kept = torch.arange(min(SHOWN, len(y)))
        numbers = family.predictions(y[kept]) if isinstance(family, RawNumbers) else y[kept]
        answers = pd.DataFrame(numbers.double().reshape(len(kept), -1).numpy(), columns=targets)
    rows = torch.cat([x[kept], task.query_x[0][:QUERIES]])
    if isinstance(family, FewShot):
        table = pd.DataFrame({features[0]: [_png(image) for image in rows]}, dtype=object)
    elif isinstance(family, Texts):
        table = pd.DataFrame({features[0]: family.shown(rows)}, dtype=object)
    else:
        table = pd.DataFrame(rows.double().flatten(1).numpy(), columns=features)
    if isinstance(family, Table):
        means, deviations = (np.array(scale)[:-1] for scale in (family.means, family.deviations))
        table = table * deviations + means
        table = table.astype(dict.fromkeys(family.whole, np.int64))
    return pd.concat([table, answers.reindex(table.index)], axis=1)


def requirements() -> list[str]:
    """Return the needed packages with their versions, without the labels of builds."""
    found = []
    for package in NEEDED:
        try:
            found.append(f"{package}=={metadata.version(package).partition('+')[0]}")
        except metadata.PackageNotFoundError:  # a job's own copy of this project
            found.append(package)
    return found


def _png(image: Tensor) -> bytes:
    """Return a PNG file of an image, uint8 [C, H, W]."""
    file, pixels = io.BytesIO(), image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "PNG")
    return file.getvalue()
