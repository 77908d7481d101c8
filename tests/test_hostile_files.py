"""Files that somebody else has prepared: refused alone, in a sentence, without a wait."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import pytest
from cases import GLYPHS, config
from fuzz_files import album, picture, used
from services import command

from metatrain import bundle, files
from metatrain.core import InputError
from metatrain.data import omniglot, remote
from metatrain.data.folders import labelled_files, read_folder
from metatrain.data.images import ImageStore
from metatrain.data.pixels import stack
from metatrain.start import prepare


@pytest.mark.parametrize("opener", [files.opened, lambda path, most: stack([path], (1, 8, 8))])
def test_a_pipe_a_device_and_a_folder_are_refused_and_block_nobody(
    opener: Callable[..., object], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), tmp_path):
        with pytest.raises((OSError, InputError), match="no regular file"):
            opener(path, 10)


def test_a_file_is_opened_up_to_its_bound_and_a_link_only_if_it_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    assert files.read(tmp_path / "b", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, and at most 4"):
        files.read(tmp_path / "a", 4)
    with pytest.raises(OSError, match="symbolic link"):
        files.read(tmp_path / "b", 5, follow=False)


def test_a_bomb_a_pipe_and_a_program_among_the_images_are_refused_alone(tmp_path: Path) -> None:
    album(tmp_path)
    bad = tmp_path / "kind 0"
    (bad / "bomb.png").write_bytes(picture(8200, 8200, "1"))
    (bad / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(bad / "pipe.png")
    store, report = read_folder("mine", tmp_path)
    assert len(store.images) == 8
    reasons = dict(report.refused)
    assert list(reasons) == [f"kind 0/{name}.png" for name in ("bomb", "pipe", "program")]
    assert "8200x8200 pixels, and at most 67,108,864" in reasons["kind 0/bomb.png"]


def test_a_class_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album(tmp_path)
    (tmp_path / "kind 9" / "deep").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("kind 9"):  # root may read everything
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert read_folder("mine", tmp_path)[1].refused == [
        ("kind 9", "cannot be read (Permission denied)")
    ]
    assert labelled_files(tmp_path)[1] == [
        (tmp_path / "kind 9", "cannot be read (Permission denied)")
    ]


def archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a/b/c.png": bytes(1 << 24)}, r"in a/b/c\.png \(it has 16,777,216 bytes, and at most"),
        (
            {"a/b/../c.png": picture()},
            r"in a/b/\.\./c\.png \(its name is not ALPHABET/CHARACTER/FILE",
        ),
        ({f"a/b/{i}.png": b"" for i in range(20_000)}, r"it has 20,000 drawings"),
    ],
    ids=["bomb", "name", "many"],
)
@pytest.mark.ray
def test_an_archive_is_checked_before_it_is_read(
    members: dict[str, bytes], sentence: str, tmp_path: Path
) -> None:
    archive(tmp_path / "images_background.zip", members)
    with pytest.raises(InputError, match=f"images_background.zip is damaged.*{sentence}"):
        omniglot.read(tmp_path)


def test_whatever_bytes_of_an_archive_are_wrong_is_one_sentence(tmp_path: Path) -> None:
    path, chance = tmp_path / "images_background.zip", np.random.default_rng(0)
    archive(path, {f"images_background/Greek/c{i}/0.png": picture(20 + i) for i in range(4)})
    whole = path.read_bytes()
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        places = chance.integers(len(data), size=3)
        data[places] = chance.choice([0, 1, 9, 14, 255, *chance.integers(256, size=3)], size=3)
        path.write_bytes(data[: chance.integers(len(data) // 2, 2 * len(data))].tobytes())
        with pytest.raises(InputError):
            omniglot.read(tmp_path)


def test_no_program_is_run_for_a_drawing_of_omniglot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 2, "images_evaluation": 1})
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for part, characters in omniglot.CHARACTERS.items():
        names = [f"{part}/Greek/c{i}/{j:02d}.png" for i in range(characters) for j in range(20)]
        archive(tmp_path / f"{part}.zip", dict.fromkeys(names, program))
    with pytest.raises(InputError, match=r"Greek/c0/00\.png .*not one of BMP, GIF"):
        omniglot.read(tmp_path)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set of 8 images."""
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    read_folder("small", album(tmp_path / "photos"))[0].save()
    return tmp_path / "cache" / "small"


@pytest.mark.ray
def test_a_data_set_whose_checksum_fits_is_right_or_refused_in_a_sentence(small: Path) -> None:
    used("small")
    refused = 0
    for seed in range(200):
        mutations.data_set(small, small.with_name("bad"), random.Random(seed))
        try:
            used("bad")
        except InputError:
            refused += 1
    assert 100 < refused < 190  # bytes of pixels and names may be others


def test_names_that_are_no_text_or_move_the_cursor_are_shown_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    odd = tmp_path / "odd"
    for i in range(8):
        folder = odd / os.fsdecode(b"kind\xff\x1b[31m %d" % (i // 2))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / os.fsdecode(b"im\xfe\n%d.png" % i)).write_bytes(picture(20 + i))
        (folder / os.fsdecode(b"no\xfd.txt")).touch()
    done = command("data", "import", "odd", "--source", "odd")
    assert r"train 2 classes: kind\xff\x1b[31m" in done.stdout
    assert done.stdout.count("refused kind") == 4
    assert r"4 class names are not UTF-8, and shown with \x for each such byte" in done.stdout
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert command("data", "check", "odd").returncode == 0
    recipe = config(GLYPHS, family__data="odd", family__ways=4).recipe()
    bundle.save("bundle", recipe, prepare(recipe).meta)
    done = command("adapt", "bundle", "--support", "odd", "--query", "odd")
    assert (done.returncode, "\x1b" in done.stdout) == (0, False)
    assert "4 class names are not UTF-8" in done.stdout
    text = Path("adapted/predictions.json").read_text()
    assert "\\ud" not in text  # which no other reader of JSON takes
    assert {each["class"] for each in json.loads(text)["predictions"]} == {
        rf"kind\xff{chr(27)}[31m {i}" for i in range(4)
    }


@pytest.mark.parametrize("planted", ["images.arrow", "manifest.json"])
def test_a_data_set_of_a_pipe_or_a_link_is_refused_and_imported_again(
    planted: str, small: Path
) -> None:
    data = (small / planted).read_bytes()
    for kind in ("pipe", "link", "empty"):
        (small / planted).unlink()
        if kind == "pipe":
            os.mkfifo(small / planted)
        elif kind == "link":
            (small.parent / "else").write_bytes(data)
            (small / planted).symlink_to(small.parent / "else")
        else:
            (small / planted).touch()
        with pytest.raises(
            InputError, match=f"{planted} .*run `metatrain data import small` again"
        ):
            ImageStore.open("small")
        assert "again" in command("data", "list").stdout
        read_folder("small", small.parents[1] / "photos")[0].save()
        used("small")


def test_a_fetch_writes_through_no_link(small: Path, tmp_path: Path) -> None:
    remote.push(ImageStore.open("small"), str(tmp_path / "pushed"))
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "victims").mkdir()
    folder = remote.fetch(str(tmp_path / "pushed"))
    shutil.rmtree(folder)
    lock, partial = (folder.with_name(f".{folder.name}.{end}") for end in ("lock", "partial"))
    lock.unlink()
    lock.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="is a link"):
        remote.fetch(str(tmp_path / "pushed"))
    lock.unlink()
    partial.symlink_to(tmp_path / "victims")
    with pytest.raises(InputError, match="is not what a fetch left: remove it"):
        remote.fetch(str(tmp_path / "pushed"))
    partial.unlink()
    partial.mkdir()
    (partial / "images.arrow").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="is not what a fetch left: remove it"):
        remote.fetch(str(tmp_path / "pushed"))
    assert (tmp_path / "victim").read_text() == "mine"
    assert not list((tmp_path / "victims").iterdir())
