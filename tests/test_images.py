"""Data sets: verified before they are used, the same bytes everywhere, splits disjoint and of the
published sizes.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatrain.core import InputError
from metatrain.data import fashion_mnist, glyphs, sources
from metatrain.data.images import ImageStore, Scheme
from metatrain.data.sources import import_data, open_data
from metatrain.storage import cache
from metatrain.tasks import FewShot


def test_glyphs_are_the_same_bytes_everywhere() -> None:
    drawn = glyphs.draw(40, 20, seed=0)
    assert drawn.shape == (40, 20, 28, 28)
    assert drawn.dtype == np.uint8
    digest = hashlib.sha256(drawn.tobytes()).hexdigest()
    assert digest == "a8e2707c2aa0216b6e794f7a93610451ae39b4563d36b71fbeba5cbaf377faae"
    assert not np.array_equal(drawn, glyphs.draw(40, 20, seed=1))


def test_the_built_in_data_set_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_data("glyphs")
    assert store.images.shape == (20000, 1, 28, 28)
    assert len(store.sizes) == 1000
    assert store.synthetic
    monkeypatch.setattr(glyphs, "draw", None)
    assert torch.equal(open_data("glyphs").images, store.images)


def test_the_built_in_data_set_is_drawn_once_though_two_find_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a node that has never had it start together."""
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path))
    small = ImageStore(
        name="glyphs",
        images=torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        class_names=["a"],
        sizes=torch.tensor([1]),
        schemes=[Scheme(name="glyphs", classes={"train": [0]}, rotations={"train": "none"})],
        synthetic=True,
    )
    found: list[ImageStore] = []
    second = threading.Thread(target=lambda: found.append(open_data("glyphs")))
    looks, is_there, drawn = threading.Semaphore(0), sources._is_there, []

    def look(name: str) -> bool:
        there = is_there(name)
        looks.release()
        return there

    def draw(source: Path | None) -> ImageStore:
        drawn.append(source)
        if len(drawn) == 1:
            second.start()
            for _ in range(3):  # two of the first one, and one of the second, which finds none
                looks.acquire()
        return small

    monkeypatch.setattr(sources, "_is_there", look)
    monkeypatch.setitem(sources.SOURCES, "glyphs", draw)
    first = open_data("glyphs")
    second.join()
    assert len(drawn) == 1
    assert found[0].checksum == first.checksum


def test_a_data_set_is_shown_in_a_line_and_in_notebooks_with_images() -> None:
    store = open_data("glyphs")
    assert repr(store) == (
        "ImageStore('glyphs': 1000 classes, 20000 images of 28x28 grey, "
        f"splits glyphs (train 700, val 100, test 200), synthetic, checksum {store.checksum})"
    )
    page = store._repr_html_()
    assert page.startswith(
        "<b>glyphs</b>: 1000 classes, 20000 images of 28x28 grey, splits glyphs (train 700"
    )
    assert len(page) < 10_000
    picture = Image.open(io.BytesIO(base64.b64decode(page.split("base64,")[1].split('"')[0])))
    assert picture.size == (280, 28)
    assert np.array_equal(np.asarray(picture)[:, 28:56], store.images[100 * 20, 0].numpy())


def test_what_notebooks_show_is_escaped_and_small() -> None:
    store = ImageStore(
        name="<b>&",
        images=torch.zeros(4, 3, 300, 200, dtype=torch.uint8),
        class_names=['"><script>', "two", "three"],
        sizes=torch.tensor([2, 0, 2]),
        schemes=[Scheme(name="<i>", classes={"train": [0, 1], "test": [2]}, rotations={})],
        synthetic=False,
    )
    page = store._repr_html_()
    assert "<script>" not in page
    assert "<i>" not in page
    assert page.startswith("<b>&lt;b&gt;&amp;</b>: 3 classes, 4 images of 200x300 RGB, ")
    assert 'alt="&quot;&gt;&lt;script&gt;, three"' in page
    assert "not synthetic, not saved" in repr(store)
    assert "\n" not in repr(store)
    assert Image.open(
        io.BytesIO(base64.b64decode(page.split("base64,")[1].split('"')[0]))
    ).size == (133, 100)
    empty = dataclasses.replace(store, images=store.images[:0], sizes=torch.tensor([0, 0, 0]))
    assert "<img" not in empty._repr_html_()


def test_splits_that_share_a_class_are_refused() -> None:
    with pytest.raises(InputError, match="share classes"):
        Scheme(
            name="bad",
            classes={"train": [0, 1], "test": [1]},
            rotations={"train": "none", "test": "none"},
        )


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.ray
def test_a_damaged_data_set_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_data("glyphs")
    shutil.copytree(cache() / "glyphs", tmp_path / "glyphs")
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path))
    path = cache() / "glyphs" / "images.arrow"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1000])
    else:
        path.unlink()
    with pytest.raises(
        InputError, match="is not what was imported: run `metatrain data import glyphs` again"
    ):
        ImageStore.open("glyphs")
    import_data("glyphs")
    ImageStore.open("glyphs")


@pytest.mark.ray
def test_a_source_without_omniglot_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"neither a folder images_background nor images_background\.zip"
    ):
        import_data("omniglot", tmp_path)
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}/Greek/character01/0001_01.png", b"")
    with pytest.raises(
        InputError, match="has 1 background and 1 evaluation characters; Omniglot has 964 and 659"
    ):
        import_data("omniglot", tmp_path)
    (tmp_path / "images_background.zip").write_bytes(b"PK broken")
    with pytest.raises(
        InputError,
        match=r"images_background\.zip is damaged \(File is not a zip file\): get it again",
    ):
        import_data("omniglot", tmp_path)
    for part, characters in (("images_background", 964), ("images_evaluation", 659)):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for number in range(20 * characters):
                archive.writestr(
                    f"{part}/Greek/character{number // 20:04d}/{number % 20:02d}.png",
                    b"\x89PNG broken",
                )
    with pytest.raises(
        InputError, match=r"cannot be read, Greek/character0000/00.png \(.*\): get it again"
    ):
        import_data("omniglot", tmp_path)
    assert not (cache() / "omniglot").exists()


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("omniglot", "Omniglot"),
        ("cifar_fs", "utils.download_url"),
        ("cifar10", "utils.download_url"),
        ("fashion_mnist", "utils.download_url"),
    ],
)
def test_a_download_that_fails_names_the_source_to_give(
    name: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(f"torchvision.datasets.{called}", offline)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("/nowhere"))
    with pytest.raises(
        InputError, match=r"could not be downloaded \(no route to host\): .* --source "
    ):
        import_data(name)


def test_the_binary_version_of_cifar_is_downloaded_and_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def download(url: str, root: Path, md5: str) -> None:
        asked.append((url.rpartition("/")[2], md5))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    for name in ("cifar_fs", "cifar10"):
        with pytest.raises(InputError, match=r"holds no .* of CIFAR-10"):
            import_data(name)
    assert asked == [
        ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    ]


def test_omniglot_has_its_counts_splits_and_rotations(omniglot: ImageStore) -> None:
    store = omniglot
    assert store.images.shape == (1623 * 20, 1, 28, 28)
    assert store.images.float().mean() > 200  # as the files show it: dark ink on white paper
    sizes = {
        s.name: [len(s.classes[k]) for k in ("train", "val", "test") if k in s.classes]
        for s in store.schemes
    }
    assert sizes == {
        "omni-rand1100": [1100, 100, 423],
        "omni-rand1200": [1200, 423],
        "omni-vinyals": [1028, 172, 423],
        "omni-maml++": [1150, 50, 423],
        "omni-torchvision": [964, 659],
    }
    vinyals = store.scheme("omni-vinyals")
    alphabets = {
        split: {store.class_names[c].split("/")[0] for c in vinyals.classes[split]}
        for split in vinyals.classes
    }
    assert [len(alphabets[split]) for split in ("train", "val", "test")] == [33, 5, 13]
    assert alphabets["train"] & alphabets["test"] == {"Gurmukhi"}
    # rotations as classes: at test time none, in training four times as many classes
    family = FewShot(data="omniglot", splits="omni-rand1200", ways=400, queries=1)
    family.check("test")
    with pytest.raises(InputError, match="has 423 classes"):
        FewShot(data="omniglot", splits="omni-rand1200", ways=424).check("test")
    FewShot(data="omniglot", splits="omni-rand1200", ways=4800).check("train")
    with pytest.raises(InputError, match="the val split of omniglot/omni-rand1200 is empty"):
        FewShot(data="omniglot", splits="omni-rand1200").check("val")


def test_support_and_query_of_a_class_turn_together(omniglot: ImageStore) -> None:
    family = FewShot(data="omniglot", splits="omni-rand1100", ways=5, shots=2, queries=2)
    task = family.sample(torch.Generator().manual_seed(0), 40, "train")
    images = torch.cat(
        [task.support_x.unflatten(1, (5, 2)), task.query_x.unflatten(1, (5, 2))], dim=2
    )[:4]
    known = {image.numpy().tobytes(): i // 20 for i, image in enumerate(omniglot.images)}
    turns = []
    for way in images.flatten(0, 1):  # [4, 1, 28, 28]: the images of one class
        found = [
            {
                known.get(torch.rot90(image, -turn, dims=(-2, -1)).contiguous().numpy().tobytes())
                for image in way
            }
            for turn in range(4)
        ]
        matches = [
            turn for turn, classes in enumerate(found) if len(classes) == 1 and None not in classes
        ]
        assert matches, "no single rotation brings all images of a class back"
        turns.append(matches[0])
    assert set(turns) == {0, 1, 2, 3}
