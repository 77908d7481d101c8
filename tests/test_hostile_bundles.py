"""Bundles and checkpoints whose checksums fit are right, or refused in a sentence."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz_files
import mutations
import pytest
import torch
from fuzz_files import predicted, resumed

from metatrain import bundle
from metatrain.core import InputError

pytestmark = pytest.mark.ray


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return fuzz_files.saved(tmp_path)


def test_a_bundle_whose_checksum_fits_is_right_or_refused(saved: Path) -> None:
    predicted(saved / "bundle")
    refused = 0
    for seed in range(150):
        mutations.directory(saved / "bundle", saved / "bad", random.Random(seed))
        try:
            predicted(saved / "bad")
        except InputError:
            refused += 1
    assert 75 < refused < 150


def test_a_checkpoint_whose_checksum_fits_is_right_or_refused(saved: Path) -> None:
    (whole,) = (saved / "checkpoints").iterdir()
    resumed(whole)
    refused = 0
    for seed in range(150):
        mutations.directory(whole, saved / "bad", random.Random(seed))
        try:
            resumed(saved / "bad")
        except InputError:
            refused += 1
    assert 75 < refused < 150


def test_a_bundle_says_which_of_its_parameters_are_not_those_of_its_recipe(saved: Path) -> None:
    recipe, meta = bundle.load(str(saved / "bundle"))
    name = next(iter(meta.model))
    for tensor, reason in (
        (None, f"lacks model.{name}"),
        (meta.model[name] * torch.nan, f"numbers in model.{name} that are not finite"),
        (meta.model[name].double(), f"has model.{name} as float64"),
        (torch.zeros(3), f"has model.{name} as float32 \\[3\\] instead of float32"),
    ):
        model = {n: p for n, p in meta.model.items() if n != name}
        model |= {} if tensor is None else {name: tensor}
        bundle.save(str(saved / "bad"), recipe, meta._replace(model=model))
        with pytest.raises(InputError, match=f"does not hold the parameters .* {reason}"):
            bundle.load(str(saved / "bad"))
