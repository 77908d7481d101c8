"""Published data sets: read from archives of the original layouts, or refused in one sentence."""

from __future__ import annotations

import gzip
import io
import random
import re
import struct
import tarfile
from pathlib import Path

import mutations
import pytest
import torch
from originals import EACH, cifar_files, idx, jpegs, laid, tar, zipped
from PIL import Image
from typer.testing import CliRunner

from metatrain.core import InputError
from metatrain.data import cifar, fashion_mnist, mini_imagenet, published
from metatrain.data.images import ImageStore
from metatrain.data.sources import import_data, open_data
from metatrain.tasks import FewShot


def counts(store: ImageStore) -> dict[str, list[int]]:
    return {
        scheme.name: [len(scheme.classes.get(split, [])) for split in ("train", "val", "test")]
        for scheme in store.schemes
    }


@pytest.mark.parametrize("layout", [cifar.FS, cifar.TEN], ids=lambda layout: layout.name)
def test_cifar_is_read_from_the_original_archive_or_its_folder(
    layout: cifar.Layout, tmp_path: Path
) -> None:
    few = layout._replace(each=EACH[layout.name])
    files = cifar_files(layout)
    tar(tmp_path / layout.archive, files)
    laid(tmp_path / "unpacked", files)
    store = cifar.read(tmp_path / layout.archive, few)
    names = published.sorted_names(layout.name)
    assert store.class_names == names
    assert store.images.shape == (len(names) * few.each, 3, 32, 32)
    first = store.images[store.offsets]  # of each class, with what `records` gives it
    assert torch.equal(first[:, 0, 0, 0], torch.arange(len(names), dtype=torch.uint8))
    assert torch.equal(first[3, 2, :, 5], torch.arange(32, dtype=torch.uint8))
    numbers = store.images[: few.each, 1, 0, 0]
    assert sorted(numbers.tolist()) == list(range(few.each))
    for place in (tmp_path, tmp_path / "unpacked", tmp_path / "unpacked" / layout.folder):
        assert torch.equal(cifar.read(place, few).images, store.images)
    with pytest.raises(InputError, match=f"has 6 images, and {layout.each} belong to it"):
        cifar.read(tmp_path / layout.archive, layout)


def test_published_classes_are_divided_as_their_papers_say(tmp_path: Path) -> None:
    files = cifar_files(cifar.FS)
    store = cifar.read(tar(tmp_path / "a.tar.gz", files), cifar.FS._replace(each=6))
    assert counts(store) == {"cifar-fs": [64, 16, 20]}
    members = store.schemes[0].classes
    assert {"train", "dolphin"} <= {store.class_names[c] for c in members["train"]}
    assert {"otter", "sea"} <= {store.class_names[c] for c in members["val"]}
    assert {"baby", "worm"} <= {store.class_names[c] for c in members["test"]}
    store = mini_imagenet.read(laid(tmp_path / "mini", jpegs("classes")), 2)
    assert counts(store) == {"mini-ravi": [64, 16, 20]}
    with pytest.raises(InputError, match="the class n01532829 has 2 images, and 600 belong to it"):
        mini_imagenet.read(tmp_path / "mini")
    assert "n01930112" in {store.class_names[c] for c in store.schemes[0].classes["test"]}


def test_ten_classes_are_a_target_or_are_divided(tmp_path: Path) -> None:
    (tmp_path / "fm").mkdir()
    idx(tmp_path / "fm", packed=True)
    fashion_mnist.read(tmp_path / "fm", 7).save()
    store = open_data("fashion_mnist")
    assert counts(store) == {"all": [0, 0, 10], "6-2-2": [6, 2, 2]}
    FewShot(data="fashion_mnist", ways=10, shots=3, queries=4).check("test")
    with pytest.raises(InputError, match="the train split of fashion_mnist/all is empty") as error:
        FewShot(data="fashion_mnist").check("train")
    assert error.value.remedy == "set family.splits to 6-2-2"
    FewShot(data="fashion_mnist", splits="6-2-2", ways=6, queries=6).check("train")


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_idx_files(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idx(tmp_path, packed)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path)
    store = fashion_mnist.read(None if packed else tmp_path, 7)
    assert store.images.shape == (70, 1, 28, 28)
    assert torch.equal(store.images[:, 0, 9, 9], torch.arange(10).repeat_interleave(7).byte())
    assert store.class_names[9] == "Ankle boot"
    with pytest.raises(InputError, match="the class T-shirt/top has 7 images, and 7000 belong"):
        fashion_mnist.read(tmp_path)


@pytest.mark.parametrize(
    ("layout", "place"),
    [("splits", "mini.zip"), ("classes", "folder"), ("tables", "mini.zip"), ("tables", "folder")],
)
def test_mini_imagenet_is_read_in_each_of_its_layouts(
    layout: str, place: str, tmp_path: Path
) -> None:
    source = (zipped if place == "mini.zip" else laid)(tmp_path / place, jpegs(layout))
    store = mini_imagenet.read(source, 2)
    assert store.images.shape == (200, 3, 84, 84)
    reds = torch.tensor([int(name[1:]) % 251 for name in store.class_names]).byte()
    assert torch.equal(store.images[::2, 0, 40, 40], reds)
    assert store.images[:4, 2, 40, 40].tolist() == [0, 1, 0, 1]


def test_images_are_squeezed_as_in_the_published_code(tmp_path: Path) -> None:
    files = jpegs("classes")
    half = Image.new("RGB", (200, 100))
    half.paste((255, 255, 255), (0, 0, 20, 100))  # a cut to a square would lose it
    data = io.BytesIO()
    half.save(data, "PNG")
    store = mini_imagenet.read(laid(tmp_path, files | {"n01532829/0.png": data.getvalue()}), 2)
    assert store.images[0, 0, 40, :6].min() > 250
    assert store.images[0, 0, 40, 12:].max() < 5


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        (
            "mini_imagenet",
            None,
            r"cannot be downloaded: its images are ImageNet's.*--source PLACE`",
        ),
        ("mini_imagenet", "empty", r"holds no image of a class.*Ravi's train\.csv, val\.csv and"),
        ("mini_imagenet", "pickled", r"holds no images but .*\.pkl; pickles are not opened.*save"),
        ("mini_imagenet", "x.pkl", r"holds no images but x\.pkl; pickles are not opened"),
        ("mini_imagenet", "nowhere", r"there is no .*nowhere: run `metatrain data import mini_"),
        ("mini_imagenet", "broken.zip", r"broken\.zip is damaged \(File is not a zip file\)"),
        (
            "cifar_fs",
            "empty",
            r"holds no train\.bin of CIFAR-100: run `metatrain data import cifar_fs",
        ),
        (
            "cifar_fs",
            "nowhere",
            r"holds no train\.bin of CIFAR-100: run `metatrain data import cifar_fs",
        ),
        ("cifar_fs", "python.tar.gz", r"is the pickled version of CIFAR-100, which is not opened"),
        ("cifar_fs", "broken.zip", r"broken\.zip is damaged \(.*\): get it again"),
        ("cifar10", "pickled", r"is the pickled version of CIFAR-10, which is not opened: run"),
        ("fashion_mnist", "empty", r"holds neither train-images-idx3-ubyte nor .*of Debian's pack"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(
    name: str, source: str | None, sentence: str, tmp_path: Path
) -> None:
    for folder in ("empty", "pickled"):
        (tmp_path / folder).mkdir()
    for file in ("mini-imagenet-cache-train.pkl", "data_batch_1"):
        (tmp_path / "pickled" / file).write_bytes(b"\x80\x04.")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "broken.zip").write_bytes(b"PK broken")
    tar(tmp_path / "python.tar.gz", {"cifar-100-python/train": b"\x80\x04."})
    with pytest.raises(InputError) as error:
        import_data(name, source and tmp_path / source)
    assert re.search(sentence, str(error.value))


def test_archives_are_bounded_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "MOST_BYTES", 1 << 20)
    bomb = tar(tmp_path / "bomb.tar.gz", {"cifar-100-binary/train.bin": bytes(1 << 22)})
    with pytest.raises(InputError, match=r"damaged \(it unpacks to more than 1,048,576 bytes\)"):
        cifar.read(bomb, cifar.FS)
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as file:
        for name in (*cifar.FS.files, cifar.FS.names):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(member)
    with pytest.raises(InputError, match=r"holds no train\.bin"):
        cifar.read(tmp_path / "link.tar.gz", cifar.FS)
    zipped(tmp_path / "large.zip", {"n01532829/0.png": bytes((1 << 24) + 1)})
    with pytest.raises(InputError, match=r"in n01532829/0\.png \(it has 16,777,217 bytes, and at"):
        mini_imagenet.read(tmp_path / "large.zip")
    with (tmp_path / "asks.zip").open("wb") as file:
        file.truncate(1 << 28)  # all of it is a hole
        file.seek(1 << 28)
        file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, 1 << 28, 0, 0))
    with pytest.raises(InputError, match=r"damaged \(it asks for 268,435,456 bytes at once\)"):
        mini_imagenet.read(tmp_path / "asks.zip")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "idx", "zip"])
def test_whatever_bytes_of_a_source_are_wrong_is_one_sentence(kind: str, tmp_path: Path) -> None:
    archive, few = tmp_path / f"x.{kind}", cifar.TEN._replace(each=6)
    if kind == "idx":
        idx(tmp_path, packed=False)
        archive = tmp_path / "train-images-idx3-ubyte"
    elif kind == "zip":
        zipped(archive, jpegs("classes"))
    else:
        tar(archive, cifar_files(cifar.TEN))
        if kind == "tar":
            archive.write_bytes(gzip.decompress(archive.read_bytes()))
    whole, refusals = archive.read_bytes(), []
    for seed in range(25):
        archive.write_bytes(mutations.raw(whole, random.Random(seed)))
        try:
            if kind == "idx":
                fashion_mnist.read(tmp_path, 7)
            elif kind == "zip":
                mini_imagenet.read(archive, 2)
            else:
                cifar.read(archive, few)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 2
    assert not any("\n" in sentence for sentence in refusals)


def test_an_idx_file_that_is_none_is_refused(tmp_path: Path) -> None:
    idx(tmp_path, packed=False)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for data in (b"", whole[:-1], whole[:3], b"\0\0\x0d\x01" + whole[4:], whole + b"x"):
        labels.write_bytes(data)
        with pytest.raises(InputError, match="it is no idx file of bytes in 1 dimensions"):
            fashion_mnist.read(tmp_path, 7)
    labels.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 19) + whole[8:-1])
    with pytest.raises(InputError, match=r"damaged in t10k \(it has images of shape \(20, 28, 28"):
        fashion_mnist.read(tmp_path, 7)


def test_the_command_imports_lists_and_checks_a_published_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metatrain.data.cli import app

    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "TEN", cifar.TEN._replace(each=6))
    tar(tmp_path / "a.tar.gz", cifar_files(cifar.TEN))
    runner = CliRunner()
    found = runner.invoke(app, ["import", "cifar10", "--source", str(tmp_path / "a.tar.gz")])
    assert "imported cifar10: 10 classes, 60 images of 32x32 pixels, RGB" in found.output
    found = runner.invoke(app, ["check", "cifar10"])
    assert "splits 6-2-2: train 6, val 2, test 2 classes, disjoint" in found.output
    listed = runner.invoke(app, ["list"]).output
    for name in ("cifar_fs", "mini_imagenet", "fashion_mnist", "omniglot"):
        assert re.search(rf"{name} +not imported: .*data import {name}", listed)
