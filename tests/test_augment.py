"""Augmentation: the same pixels for the same ticket, and exactly what each key says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import GLYPHS, config
from torch import Tensor

from metatrain import schema
from metatrain.core import InputError, Ticket, generator_for
from metatrain.data.images import ImageStore, Scheme
from metatrain.recipe import Recipe
from metatrain.tasks import FewShot
from metatrain.tasks.augment import Augment


@pytest.fixture
def family(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> FewShot:
    """Eight classes of four images of 12x12 pixels, none of them zero."""
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    splits = {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7]}
    ImageStore(
        name="dots",
        images=torch.randint(1, 256, (32, 3, 12, 12), generator=generator, dtype=torch.uint8),
        class_names=[f"kind {c}" for c in range(8)],
        sizes=torch.full((8,), 4),
        schemes=[Scheme(name="dots", classes=splits, rotations=dict.fromkeys(splits, "none"))],
        synthetic=True,
    ).save()
    return FewShot(data="dots", ways=2, shots=2, queries=2)


def drawn(family: FewShot, split: str = "train", count: int = 40) -> Any:
    ticket = Ticket("update", split, 3, 1)
    return family.sample(generator_for(0, ticket, "tasks"), count, split)


def images(task: Any) -> Tensor:
    return torch.cat([task.support_x, task.query_x], dim=1).flatten(0, 1)


ALL = Augment(flip=True, crop=2, rotate=10, scale=0.1, turns="per-task")


def test_the_same_ticket_gives_the_same_pixels(family: FewShot) -> None:
    changed = replace(family, augment=ALL)
    first, again = drawn(changed), drawn(replace(changed))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.support_x.dtype == torch.uint8
    assert first.support_x.shape == drawn(family).support_x.shape
    other = changed.sample(generator_for(0, Ticket("update", "train", 3, 2), "tasks"), 40, "train")
    assert not torch.equal(first.support_x, other.support_x)


def test_augmentation_is_drawn_after_the_tasks_which_stay_the_same(family: FewShot) -> None:
    plain, empty = drawn(family), drawn(replace(family, augment=Augment()))
    assert all(torch.equal(a, b) for a, b in zip(plain, empty, strict=True))
    changed = drawn(replace(family, augment=replace(ALL, turns=None)))
    assert torch.equal(changed.classes, plain.classes)
    assert torch.equal(changed.query_y, plain.query_y)


@pytest.mark.parametrize(
    ("which", "support", "query"),
    [("both", True, True), ("support", True, False), ("query", False, True)],
)
def test_support_query_or_both_change(
    family: FewShot, which: Any, support: bool, query: bool
) -> None:
    plain, changed = drawn(family), drawn(replace(family, augment=Augment(crop=3, images=which)))
    assert torch.equal(changed.support_x, plain.support_x) is not support
    assert torch.equal(changed.query_x, plain.query_x) is not query


def test_a_flip_mirrors_about_half_of_the_images(family: FewShot) -> None:
    before, after = (
        images(drawn(family)),
        images(drawn(replace(family, augment=Augment(flip=True)))),
    )
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(after, before, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


@pytest.mark.parametrize("invert", [False, True])
def test_a_crop_moves_by_at_most_so_many_pixels_over_zeros(family: FewShot, invert: bool) -> None:
    family = replace(family, invert=invert)
    before, after = images(drawn(family)), images(drawn(replace(family, augment=Augment(crop=2))))
    zero = 255 if invert else 0
    assert family._to_float(torch.tensor([zero])) == 0
    padded = torch.nn.functional.pad(before, (2,) * 4, value=zero)
    moves = set()
    for old, new in zip(padded, after, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(new, old[:, y : y + 12, x : x + 12])
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) == 25


def test_a_small_rotation_turns_about_the_middle_and_a_scale_grows(family: FewShot) -> None:
    """Against pixels computed one by one."""
    image = torch.zeros(1, 1, 9, 15, dtype=torch.uint8)
    image[0, 0, 4, 7:] = 200  # a ray from the middle to the right
    augment = Augment(rotate=90)
    support, _ = augment.both(
        image[None].expand(1, 300, 1, 9, 15),
        image[None],
        torch.Generator().manual_seed(1),
        0,
    )
    drawn = 2 * torch.rand(2, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angles = (drawn[0] - 1) * torch.pi / 2
    for turned, angle in zip(support[0, :20], angles, strict=False):
        for radius in (1, 2, 3):  # of a point on the ray, 4 rows at most from the middle
            y, x = 4 - radius * angle.sin(), 7 + radius * angle.cos()
            assert turned[0, round(float(y)), round(float(x))] > 60
    disc = ((torch.arange(31) - 15.0)[:, None] ** 2 + (torch.arange(31) - 15.0) ** 2 < 64).byte()
    grown, _ = Augment(scale=0.5).both(
        (disc * 255).expand(1, 200, 1, 31, 31), image[None], torch.Generator().manual_seed(2), 0
    )
    areas = (grown > 127).sum((-2, -1)).flatten() / disc.sum()
    assert 0.2 < areas.min() < 0.35
    assert 2.0 < areas.max() < 2.4


def test_quarter_turns_make_classes_of_any_data_set(family: FewShot) -> None:
    with pytest.raises(InputError, match=r"8 ways were asked for, but the train split .* has 4"):
        replace(family, ways=8, shots=1).check("train")
    turned = replace(family, ways=16, shots=1, augment=Augment(turns="classes"))
    turned.check("train")
    task = drawn(turned, count=1)
    assert sorted(task.classes[0].tolist()) == list(range(16))
    known = {image.numpy().tobytes(): i // 4 for i, image in enumerate(family.store.images)}
    for image, label in zip(task.query_x[0], task.query_y[0], strict=True):
        which, turn = divmod(int(task.classes[0, label]), 4)
        back = torch.rot90(image, -turn, dims=(-2, -1)).contiguous()
        assert known[back.numpy().tobytes()] == which


def test_only_training_changes_unless_the_split_is_all(family: FewShot) -> None:
    changed = replace(family, augment=ALL)
    for split in ("val", "test"):
        plain = drawn(family, split)
        assert all(torch.equal(a, b) for a, b in zip(drawn(changed, split), plain, strict=True))
        everywhere = drawn(replace(family, augment=replace(ALL, split="all")), split)
        assert not torch.equal(everywhere.support_x, plain.support_x)
    with pytest.raises(InputError, match=r"4 ways were asked for, but the test split .* has 2"):
        replace(family, ways=4, shots=1, augment=Augment(turns="classes")).check("test")


def test_an_evaluation_has_augmentation_of_its_own() -> None:
    sets = [
        "family.augment={flip: true, crop: 2}",
        "evaluation.family={augment: {rotate: 5, images: support, split: all}}",
    ]
    tree = schema.apply_overrides(schema.dump(config(GLYPHS).recipe()), sets)
    settings = schema.parse(Recipe, tree, "a recipe").settings()
    families = {purpose.work: setting.family for purpose, setting in settings.items()}
    assert families["update"].augment == Augment(flip=True, crop=2)
    assert families["score"].augment == Augment(rotate=5, images="support", split="all")
    assert families["update"].augment.describe() == "augmented in training (flip=True, crop=2)"
    assert families["score"].augment.describe() == "augmented (rotate=5.0, images=support)"


def test_a_protocol_line_names_what_changes(family: FewShot) -> None:
    described = replace(family, augment=Augment(flip=True)).describe()
    assert described == f"{family.describe()} augmented in training (flip=True)"


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        ({"crop": -1}, "family.augment.crop is -1, expected at least 0"),
        ({"flipp": True}, "family.augment.flipp is not a key of a recipe: did you mean 'flip'?"),
        ({"rotate": "x"}, "family.augment.rotate is 'x', expected a valid number"),
        (
            {"images": "all"},
            "family.augment.images is 'all', expected 'both', 'support' or 'query'",
        ),
        (True, "family.augment is True, expected keys with their values"),
    ],
)
def test_a_wrong_key_is_one_sentence(augment: Any, sentence: str) -> None:
    tree = schema.dump(config(GLYPHS).recipe())
    tree["family"]["augment"] = augment
    with pytest.raises(InputError) as error:
        schema.parse(Recipe, tree, "a recipe")
    assert sentence in str(error.value)


def test_what_an_image_cannot_do_is_refused(family: FewShot) -> None:
    with pytest.raises(InputError, match="crop is 12, expected less than a side of the images, 12"):
        replace(family, augment=Augment(crop=12)).check("train")
    shape = (1, 8, 12)
    with pytest.raises(InputError, match="the images are not square, but 12x8 pixels"):
        Augment(turns="classes").check(shape)
    Augment(turns="none", rotate=20).check(shape)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
        ),
    ],
)
def test_data_on_a_device_gives_the_same_tasks(family: FewShot, device: str) -> None:
    changed = replace(family, augment=ALL)
    there = drawn(changed.resident(torch.device(device)))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there, drawn(changed), strict=True))
