"""Checksums of the parameters that each recipe learns in a few outer steps.

Run it before and after a change:

    python benchmarks/bits.py > before; ...; python benchmarks/bits.py > after; diff before after

Each recipe is computed in this process, with little evaluation. A recipe whose data is not imported
is left out, with a line that says so.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from cluster import run
from cluster.config import RunConfig
from metatrain import schema
from metatrain.core import InputError

STEPS = 20
LESS = {
    "outer.steps": STEPS,
    "validation.every_steps": 0,
    "evaluation.tasks": 4,
    "evaluation.tasks_per_ticket": 2,
    "workers": {"max": 0},
    "tracking": {"uri": "none"},
    "checkpoint": {"every_steps": STEPS},
}


def checksum(path: Path, steps: int) -> str:
    """Of all that a recipe meta-learns in `steps` outer steps."""
    with tempfile.TemporaryDirectory() as folder:
        tree = schema.read(path)
        for key, value in {**LESS, "outer.steps": steps, "output": f"{folder}/run"}.items():
            schema.put(tree, key, value)
        run.train(schema.parse(RunConfig, tree, str(path)))
        tensors = load_file(f"{folder}/run/bundle/meta.safetensors")
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def main(steps: int) -> None:
    """Print a line for each recipe."""
    logging.disable(logging.WARNING)
    for path in sorted(Path("recipes").glob("*.yaml")):
        try:
            print(f"{path.stem:40} {checksum(path, steps)}", flush=True)
        except InputError as error:
            print(f"{path.stem:40} left out: {str(error)[:60]}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
