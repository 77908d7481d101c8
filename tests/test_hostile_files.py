"""Files that somebody else has prepared: refused alone, in a sentence, without a wait."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metatrain import files
from metatrain.core import InputError
from metatrain.data import omniglot
from metatrain.data.folders import labelled_files, read_folder
from metatrain.data.pixels import stack


def png(width: int = 20, height: int = 20, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 1).save(file, "PNG")
    return file.getvalue()


def album(folder: Path) -> Path:
    """Four classes of two images."""
    for i in range(8):
        path = folder / f"kind {i // 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(20 + i))
    return folder


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
    (bad / "bomb.png").write_bytes(png(8200, 8200, "1"))
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
        ({"a/b/../c.png": png()}, r"in a/b/\.\./c\.png \(its name is not ALPHABET/CHARACTER/FILE"),
        ({f"a/b/{i}.png": b"" for i in range(20_000)}, r"it has 20,000 drawings"),
    ],
    ids=["bomb", "name", "many"],
)
def test_an_archive_is_checked_before_it_is_read(
    members: dict[str, bytes], sentence: str, tmp_path: Path
) -> None:
    archive(tmp_path / "images_background.zip", members)
    with pytest.raises(InputError, match=f"images_background.zip is damaged.*{sentence}"):
        omniglot.read(tmp_path)


def test_whatever_bytes_of_an_archive_are_wrong_is_one_sentence(tmp_path: Path) -> None:
    path, chance = tmp_path / "images_background.zip", np.random.default_rng(0)
    archive(path, {f"images_background/Greek/c{i}/0.png": png(20 + i) for i in range(4)})
    whole = path.read_bytes()
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        places = chance.integers(len(data), size=3)
        data[places] = chance.choice([0, 1, 9, 14, 255, *chance.integers(256, size=3)], size=3)
        path.write_bytes(data[: chance.integers(len(data) // 2, 2 * len(data))].tobytes())
        with pytest.raises(InputError):
            omniglot.read(tmp_path)


def test_no_program_is_run_for_a_drawing_of_omniglot(tmp_path: Path) -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for part, characters in omniglot.CHARACTERS.items():
        drawings = {
            f"{part}/Greek/c{i:03d}/{j:02d}.png": j for i in range(characters) for j in range(20)
        }
        archive(tmp_path / f"{part}.zip", dict.fromkeys(drawings, program))
    with pytest.raises(InputError, match=r"Greek/c000/00\.png .*not one of BMP, GIF"):
        omniglot.read(tmp_path)
