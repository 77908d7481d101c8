"""One's own images: taken whatever their size, mode and format; what is refused is told with its
reason.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from photos import album, exif, photo, png16, save, tiff
from PIL import Image, PngImagePlugin
from services import command

from metatrain.core import InputError
from metatrain.data import pixels
from metatrain.data.cli import _print_report
from metatrain.data.folders import Report, labelled_files, read_folder, shuffled_splits
from metatrain.data.images import ImageStore, duplicates
from metatrain.data.pixels import stack, to_pixels
from metatrain.tasks import FewShot


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 kinds, one of them with a file that is broken and one too small, and files that are no
    images.
    """
    folder = album(tmp_path_factory.mktemp("mine") / "photos", range(29), 5)
    album(folder, range(29, 30), 1)
    (folder / "kind 03" / "00.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "readme.txt").write_text("mine")
    (folder / "loose.png").write_bytes((folder / "kind 04" / "01.png").read_bytes())
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "thumbnail.png").write_bytes(b"")
    return folder


def test_mixed_images_become_one_shape_and_the_rest_is_refused_with_its_reason(mixed: Path) -> None:
    store, report = read_folder("mine", mixed)
    assert store.images.dtype == torch.uint8
    assert store.shape[0] == 3
    assert store.shape[1] == store.shape[2] == 40  # the median of the shorter sides
    assert store.class_names == [f"kind {i:02d}" for i in range(29)]
    assert store.sizes.tolist() == [5, 5, 5, 4] + 25 * [5]
    assert report.taken == len(store.images) == 144
    sizes = [
        photo(kind, number).size
        for kind in range(29)
        for number in range(5)
        if (kind, number) != (3, 0)
    ]
    assert report.resized == sum(size != (40, 40) for size in sizes) > 0
    assert dict(report.refused) == {
        "kind 03/00.jpg": "cannot be read as an image (not one of BMP, GIF, JPEG, PNG, TIFF, WEBP)",
        "kind 29": "has 1 images, at least 2 are needed",
        "loose.png": "lies in no class folder",
        "readme.txt": "is none of .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff, .webp",
    }
    assert not store.synthetic


def test_a_truncated_image_is_refused_when_its_pixels_are_read(tmp_path: Path) -> None:
    album(tmp_path, range(4), 3)
    whole = tmp_path / "kind 00" / "00.jpg"
    whole.write_bytes(whole.read_bytes()[:-200])
    store, report = read_folder("mine", tmp_path)
    assert len(store.images) == 11
    ((what, why),) = report.refused
    assert what == "kind 00/00.jpg"
    assert "truncated" in why


def test_the_splits_are_disjoint_cover_everything_and_are_told(mixed: Path) -> None:
    done = command("data", "import", "mine", "--source", str(mixed), "--size", "20")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert lines[:4] == [
        "refused kind 03/00.jpg: cannot be read as an image (not one of BMP, GIF, JPEG, PNG, TIFF, "
        "WEBP)",
        "refused loose.png: lies in no class folder",
        "refused readme.txt: is none of .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff, "
        ".webp",
        "refused kind 29: has 1 images, at least 2 are needed",
    ]
    assert lines[4].startswith(
        "imported mine: 29 classes, 144 images (144 resized) of 20x20 pixels, RGB into "
    )
    assert [line.split(" classes: ")[0] for line in lines[5:8]] == [
        "  train 19",
        "  val 5",
        "  test 5",
    ]
    assert lines[8] == "next: metatrain train recipes/own_images.yaml"
    store = ImageStore.open("mine")
    splits = store.scheme("shuffled").classes
    assert sorted(c for members in splits.values() for c in members) == list(range(29))
    assert (
        store.scheme("shuffled").classes == read_folder("mine", mixed)[0].schemes[0].classes
    )  # always the same
    checked = command("data", "check", "mine").stdout.splitlines()
    assert checked[1:] == [
        "  4 to 5 images a class, median 5",
        "  splits shuffled: train 19, val 5, test 5 classes, disjoint; no image is in two of them",
    ]
    FewShot(data="mine", ways=5, shots=1, queries=1).check("test")


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [
        (4, {"train": 2, "test": 2}),
        (14, {"train": 7, "test": 7}),
        (15, {"train": 5, "val": 5, "test": 5}),
        (100, {"train": 60, "val": 20, "test": 20}),
    ],
)
def test_small_folders_have_no_validation_split(classes: int, sizes: dict[str, int]) -> None:
    splits = shuffled_splits(classes)
    assert {split: len(members) for split, members in splits.items()} == sizes
    assert sorted(c for members in splits.values() for c in members) == list(range(classes))


@pytest.mark.ray  # takes seconds
@pytest.mark.parametrize(
    ("classes", "more"),
    [
        (4, " --set family.ways=2 --set validation.every_steps=0"),
        (10, " --set validation.every_steps=0"),
        (15, ""),
    ],
)
def test_what_the_import_says_to_do_next_works(classes: int, more: str, tmp_path: Path) -> None:
    album(tmp_path / "photos", range(classes), 2)
    done = command(
        "data", "import", f"of{classes}", "--source", str(tmp_path / "photos"), "--size", "16"
    )
    following = done.stdout.splitlines()[-1]
    assert (
        following
        == f"next: metatrain train recipes/own_images.yaml --set family.data=of{classes}{more}"
    )
    _, _, *arguments = following.split()
    arguments[1] = str(Path(__file__).parent.parent / arguments[1])
    small = (
        "outer.steps=1 workers.max=0 tracking.uri=none evaluation.tasks=4 "
        "model.filters=2 outer.tasks_per_step=2"
    )
    trained = command(*arguments, *(part for item in small.split() for part in ("--set", item)))
    assert trained.returncode == 0, trained.stderr


def test_links_to_files_are_followed_and_links_to_folders_are_told(tmp_path: Path) -> None:
    elsewhere = album(tmp_path / "elsewhere", range(4), 2)
    photos = album(tmp_path / "photos", range(4), 2)
    (photos / "kind 00" / "round").symlink_to(photos)
    (photos / "out").symlink_to(elsewhere)
    (photos / "kind 01" / "02.jpg").symlink_to(elsewhere / "kind 01" / "00.jpg")
    (photos / "kind 01" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    store, report = read_folder("mine", photos)
    assert store.class_names == [f"kind {kind:02d}" for kind in range(4)]
    assert len(store.images) == 9
    assert sorted(report.refused) == [
        ("kind 00/round", "is a link to a folder, which is not followed"),
        ("kind 01/gone.png", "cannot be read as an image (No such file or directory)"),
        ("out", "is a link to a folder, which is not followed"),
    ]
    assert len(labelled_files(photos)[0]) == 10
    (tmp_path / "linked").symlink_to(photos)
    assert len(labelled_files(tmp_path / "linked")[0]) == 10


def test_a_long_list_of_refused_files_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    refused = [(f"{number}.txt", "is no image") for number in range(1050)]
    _print_report(Report(0, 0, refused, [], []))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 1,000 more"


def test_folders_train_val_test_are_the_splits(tmp_path: Path) -> None:
    for split, kinds in (("train", range(3)), ("val", range(3, 5)), ("test", range(5, 8))):
        album(tmp_path / split, kinds, 2)
    store, _ = read_folder("mine", tmp_path)
    names = {
        split: [store.class_names[c] for c in members]
        for split, members in store.schemes[0].classes.items()
    }
    assert store.schemes[0].name == "folders"
    assert names == {
        "train": ["kind 00", "kind 01", "kind 02"],
        "val": ["kind 03", "kind 04"],
        "test": ["kind 05", "kind 06", "kind 07"],
    }
    (tmp_path / "test").rename(tmp_path / "Test")
    assert read_folder("mine", tmp_path)[0].schemes[0].classes == store.schemes[0].classes
    (tmp_path / "Test").rename(tmp_path / "test")
    (tmp_path / "val").rename(tmp_path / "more")
    with pytest.raises(
        InputError,
        match="folders test, train and beside them more: move or rename it so that each class",
    ):
        read_folder("mine", tmp_path)
    (tmp_path / "more").rename(tmp_path / "val")
    (tmp_path / "val" / "kind 04").rename(tmp_path / "test" / "kind 04")
    with pytest.raises(
        InputError, match="and val 2 or none, and train has 3, val has 1, test has 4: move"
    ):
        read_folder("mine", tmp_path)
    (tmp_path / "test" / "kind 04").rename(tmp_path / "val" / "kind 04")
    album(tmp_path / "test", range(1), 2)
    with pytest.raises(
        InputError,
        match="class 'kind 00' is in test and in train: leave every class in one split",
    ):
        read_folder("mine", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("training", "validation", "testing"),
        ("Train", "Valid", "Test"),
        ("TRAIN", "dev", "eval"),
        ("training_set", "val-set", "test_set"),
        ("train2017", "val2017", "test2017"),
        ("meta-train", "meta-val", "meta-test"),
        ("1_train", "2_val", "3_test"),
        ("Training images", "Development", "Evaluation"),
    ],
)
def test_other_names_of_splits_are_known_and_told(
    names: tuple[str, str, str], tmp_path: Path
) -> None:
    for name, kinds in zip(names, (range(2), range(2, 4), range(4, 6)), strict=True):
        album(tmp_path / name, kinds, 2)
    store, report = read_folder("mine", tmp_path)
    splits = store.schemes[0].classes
    found = {split: [store.class_names[c] for c in splits[split]] for split in splits}
    assert found == {
        "train": ["kind 00", "kind 01"],
        "val": ["kind 02", "kind 03"],
        "test": ["kind 04", "kind 05"],
    }
    expected = zip(names, ("train", "val", "test"), strict=True)
    told = {f"{name} is the {split} split" for name, split in expected if name.lower() != split}
    assert set(report.notes) == told


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (
            ["dataset/train", "dataset/test"],
            r"the folders test, train are splits by their names, but lie in \S*/s/dataset: give "
            r"--source \S*/dataset$",
        ),
        (["a/b/Training", "a/b/Validation", "a/b/Testing"], "give --source .*/s/a/b$"),
        (
            ["cats/train", "cats/test", "dogs/train", "dogs/test"],
            r"lie in \S*/s/cats, \S*/s/dogs: move the classes",
        ),
        (
            ["one/train", "one/test", "two"],
            r"lie in \S*/s/one: move the classes into train, val and test right below",
        ),
        (
            ["train", "training", "test"],
            "the folders train and training are all named as the train split: merge",
        ),
        (["train", "val", "dev", "test"], "the folders dev and val are all named as the val split"),
    ],
)
def test_splits_that_would_become_classes_are_refused(
    folders: list[str], sentence: str, tmp_path: Path
) -> None:
    for i, folder in enumerate(folders):
        album(tmp_path / "s" / folder, range(2 * i, 2 * i + 2), 2)
    with pytest.raises(InputError, match=sentence):
        read_folder("mine", tmp_path / "s")


def test_splits_within_classes_or_without_classes_are_refused(tmp_path: Path) -> None:
    for kind in range(4):
        for split in ("train", "test"):
            for number in range(2):
                save(photo(kind, number), tmp_path / "inside" / str(kind) / split / str(number), 1)
    with pytest.raises(
        InputError, match="the folders test, train are splits by their names, but lie in"
    ):
        read_folder("mine", tmp_path / "inside")
    for name in ("train", "val", "test", "more"):
        for number in range(2):
            save(photo(0, number), tmp_path / "flat" / name / str(number), 1)
    with pytest.raises(
        InputError,
        match="test, train, val are named as splits and hold images, but no class folders",
    ):
        read_folder("mine", tmp_path / "flat")


def test_a_class_in_two_splits_is_found_whatever_its_case(tmp_path: Path) -> None:
    album(tmp_path / "train", range(2), 2)
    album(tmp_path / "test", range(1, 3), 2)
    (tmp_path / "test" / "kind 01").rename(tmp_path / "test" / "Kind 01")
    with pytest.raises(
        InputError,
        match="class 'kind 01' is in test and in train: leave every class in one split",
    ):
        read_folder("mine", tmp_path)


def test_words_that_may_be_classes_stay_classes(tmp_path: Path) -> None:
    """A train among vehicles, dev and eval without a train, and names that only begin as a split
    does.
    """
    for name in (
        "vehicles/train",
        "vehicles/car",
        "dev/web",
        "dev/app",
        "eval/exam",
        "testament/old",
        "trainers/red",
    ):
        for number in range(2):
            save(photo(len(name), number), tmp_path / name / str(number), 1)
    store, report = read_folder("mine", tmp_path)
    assert store.schemes[0].name == "shuffled"
    assert len(store.class_names) == 7
    assert report.notes == []


def test_class_names_that_are_in_several_folders_are_told(tmp_path: Path) -> None:
    for alphabet in ("Greek", "Latin", "Tifinagh"):
        album(tmp_path / alphabet, range(2), 2)
    save(photo(3, 0), tmp_path / "Other" / "Kind 01" / "0", 1)
    save(photo(3, 1), tmp_path / "Other" / "Kind 01" / "1", 1)
    store, report = read_folder("mine", tmp_path)
    assert len(store.class_names) == 7
    assert report.notes == [
        "2 class names are in several folders, each a class of its own: Greek/kind 00, Latin/kind "
        "00, Tifinagh/kind 00"
    ]


def test_images_that_are_there_twice_are_counted_and_named(tmp_path: Path) -> None:
    """The same pixels in one class, whatever the files are called and however they are compressed;
    or in two.
    """
    album(tmp_path / "photos", range(4), 3)
    first = tmp_path / "photos" / "kind 00" / "01.png"
    (first.parent / "copy.png").write_bytes(first.read_bytes())
    Image.open(first).save(first.parent / "other.tif")
    (tmp_path / "photos" / "kind 02" / "copy.png").write_bytes(first.read_bytes())
    done = command("data", "import", "twins", "--source", str(tmp_path / "photos"), "--size", "16")
    lines = done.stdout.splitlines()
    assert (
        lines[0]
        == "note: 3 images have the pixels of an earlier one; a query may be its support image:"
    )
    assert lines[1:4] == [
        "  kind 00/copy.png = kind 00/01.png",
        "  kind 00/other.tif = kind 00/01.png",
        "  kind 02/copy.png = kind 00/01.png",
    ]
    checked = command("data", "check", "twins").stdout.splitlines()
    assert checked[2:4] == [
        "  2 images are twice in their class: kind 00 image 4 = kind 00 image 2, kind 00 image 5 = "
        "kind 00 image 2",
        "  1 images are in two classes: kind 02 image 4 = kind 00 image 2",
    ]


def deep(folder: Path, values: list[int]) -> Path:
    """Four classes of two grey images of 16 bits, each of one value; the last two may be others
    than the first.
    """
    for i, value in enumerate(values):
        path = folder / f"kind {i // 2}" / f"{i % 2}{'.png' if i % 3 else '.tif'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20), value, np.uint16)).save(path)
    return folder


@pytest.mark.parametrize(
    ("highest", "bits", "how"),
    [
        (255, 8, "taken as they are"),
        (1000, 10, "divided by 4"),
        (4095, 12, "divided by 16"),
        (16000, 14, "divided by 64"),
        (65535, 16, "divided by 256"),
    ],
)
def test_images_of_16_bits_are_scaled_by_what_the_data_set_holds(
    highest: int, bits: int, how: str, tmp_path: Path
) -> None:
    values = [
        highest,
        highest // 2,
        highest // 3,
        highest // 4,
        0,
        highest // 5,
        highest // 6,
        highest // 7,
    ]
    source = deep(tmp_path / "deep", values)
    store, report = read_folder("deep", source)
    assert [int(image[0, 9, 9]) for image in store.images] == [
        value >> (bits - 8) for value in values
    ]
    assert report.notes == [
        f"8 grey images are of 16 bits with values up to {highest}, which are {bits} bits: {how}"
    ]
    store.save()
    family = FewShot(data="deep").resolved()
    assert family.bits == ImageStore.open("deep").bits == bits
    files = [path for path, _ in labelled_files(source)[0]]
    assert torch.equal(
        FewShot(data="none", shape=family.shape, bits=family.bits).examples(files), store.images
    )
    Image.fromarray(np.full((20, 20), (1 << bits) - 1, np.uint16)).save("brightest.png")
    assert int(family.examples(["brightest.png"]).min()) == 255
    if bits < 16:
        Image.fromarray(np.full((20, 20), 1 << bits, np.uint16)).save("brighter.png")
        with pytest.raises(
            InputError,
            match=rf"brighter.png .*reach {1 << bits}, but .* 16 bits end at {(1 << bits) - 1}",
        ):
            family.examples(["brighter.png"])


def test_dark_images_of_16_bits_stay_dark_and_are_named(tmp_path: Path) -> None:
    deep(tmp_path, [65535, 40000, 30000, 255, 20000, 0, 9000, 9000])
    store, report = read_folder("mine", tmp_path)
    assert [int(image.max()) for image in store.images] == [255, 156, 117, 0, 78, 0, 35, 35]
    assert report.notes[1] == "1 of them become all black, since their values are low: kind 1/1.tif"


def test_what_was_scaled_is_told_by_the_command(tmp_path: Path) -> None:
    deep(tmp_path / "deep", [200] * 8)
    lines = command(
        "data", "import", "told", "--source", str(tmp_path / "deep")
    ).stdout.splitlines()
    assert lines[0].startswith(
        "note: 8 grey images are of 16 bits with values up to 200, which are 8 bits: taken as"
    )
    for path, value in zip(
        sorted(album(tmp_path / "unit", range(4), 2).glob("*/*")), range(8), strict=True
    ):
        Image.fromarray(np.full((9, 9), value / 7, np.float32)).save(path.with_suffix(".tif"))
        path.unlink()
    store, report = read_folder("unit", tmp_path / "unit")
    assert [int(image.max()) for image in store.images] == [
        round(255 * value / 7) for value in range(8)
    ]
    assert report.notes == ["8 images are of numbers in 0..1, times 255"]


def test_without_images_of_16_bits_a_data_set_is_what_it_was(tmp_path: Path) -> None:
    """Its checksum, which runs record, is that of an import before there were bits."""
    album(tmp_path, range(4), 2)
    store, _ = read_folder("plain", tmp_path)
    assert (store.bits, ImageStore.open(store.save().name).bits) == (None, None)
    for value, expected in (
        (200, 200),
        (4000, 250),
        (0x8080, 128),
    ):  # each image's own values decide
        Image.fromarray(np.full((20, 20), value, np.uint16)).save("query.png")
        assert int(FewShot(data="plain").examples(["query.png"]).max()) == expected


@pytest.mark.parametrize("kind", ["LA", "RGB", "RGBA"])
def test_colours_of_16_bits_that_would_be_black_are_refused(kind: str, tmp_path: Path) -> None:
    album(tmp_path, range(4), 2)
    values = np.arange(20 * 20 * len(kind)).reshape(20, 20, len(kind))
    (tmp_path / "kind 00" / "bright.png").write_bytes(png16(kind, values % 256 * 257))
    (tmp_path / "kind 00" / "dark.png").write_bytes(png16(kind, values % 256))
    (tmp_path / "kind 00" / "twelve.png").write_bytes(png16(kind, values % 4096))
    store, report = read_folder("mine", tmp_path)
    assert store.sizes.tolist() == [3, 2, 2, 2]
    why = (
        "cannot be read as an image (its colours of 16 bits use less than a sixteenth "
        "of their range: save it with 8"
    )
    assert [(file, reason[: len(why)]) for file, reason in report.refused] == [
        ("kind 00/dark.png", why),
        ("kind 00/twelve.png", why),
    ]
    assert report.notes == ["1 images are of 16-bit colours, divided by 256"]


ODD_EXIF = {
    "a long where a short is": {296: 70000},
    "text where a number is": {296: "inch", 282: "many"},
    "numbers where text is": {271: 7, 306: (1, 2, 3)},
    "no such tag": {65000: b"\xff\xfe"},
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("odd", ODD_EXIF)
def test_a_photo_with_an_odd_exif_is_read_upright(odd: str, suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste((0, 0, 0), (0, 0, 20, 20))  # dark left half; turned upright: dark upper half
    file = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        file.write_bytes(tiff(np.asarray(image.convert("L")), {274: 6} | ODD_EXIF[odd]))
    else:
        image.save(file, exif=exif({274: 6} | ODD_EXIF[odd]))
    upright = to_pixels(file, (1, 40, 20))[0]
    assert upright[:16].max() < 60
    assert upright[-16:].min() > 195


@pytest.mark.parametrize("orientation", [0, 9, 70000, "6", b"6", (1, 6)])
def test_an_orientation_that_is_none_turns_nothing(orientation: object, tmp_path: Path) -> None:
    Image.new("L", (40, 20)).save(tmp_path / "a.jpg", exif=exif({274: orientation}))
    assert pixels.read(tmp_path / "a.jpg").image.size == (40, 20)


def test_a_broken_exif_or_file_ends_no_import(tmp_path: Path) -> None:
    """Whatever bytes are wrong: a file is read, or refused by its name."""
    album(tmp_path, range(4), 2)
    whole, chance = exif({274: 6, 296: 2, 282: 72.0, 270: "text"}), random.Random(0)
    stems = [tmp_path / "kind 00" / f"broken{i:03d}" for i in range(90)]
    for i, stem in enumerate(stems):
        image, suffix = photo(0, i), (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif")[i % 6]
        broken = bytearray(whole)
        for _ in range(3):
            broken[chance.randrange(6, len(broken))] = chance.randrange(256)
        image.save(
            stem.with_suffix(suffix),
            **({"exif": bytes(broken)} if suffix in (".jpg", ".png", ".webp") else {}),
        )
        if i % 2:
            data = bytearray(stem.with_suffix(suffix).read_bytes())
            for _ in range(4):
                data[chance.randrange(min(300, len(data)))] = chance.randrange(256)
            stem.with_suffix(suffix).write_bytes(data)
    store, report = read_folder("mine", tmp_path)
    refused = [file for file, _ in report.refused]
    assert all(file.startswith("kind 00/broken") for file in refused)
    assert len(store.images) + len(refused) == 98
    assert 20 < len(refused) < 60
    assert all("\n" not in why and "()" not in why for _, why in report.refused)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "it needs more memory than there is"),
        (KeyError(5), "KeyError: 5"),
        (struct.error("short\nformat"), "error: short format"),
        (EOFError(), "EOFError: "),
    ],
)
def test_whatever_is_raised_for_a_file_refuses_that_file(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album(tmp_path, range(4), 2)
    load = PngImagePlugin.PngImageFile.load

    def fail(image: PngImagePlugin.PngImageFile) -> object:
        if image.size == (33, 17):
            raise error
        return load(image)

    Image.new("L", (33, 17)).save(tmp_path / "kind 00" / "odd.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert read_folder("mine", tmp_path)[1].refused == [
        ("kind 00/odd.png", f"cannot be read as an image ({reason})"),
    ]


def test_images_that_are_in_two_splits_are_found(tmp_path: Path) -> None:
    for split, kinds in (("train", range(2)), ("test", range(2, 4))):
        album(tmp_path / split, kinds, 2)
    (tmp_path / "test" / "kind 02" / "copy.png").write_bytes(
        (tmp_path / "train" / "kind 00" / "01.png").read_bytes()
    )
    (tmp_path / "test" / "kind 02" / "again.png").write_bytes(
        (tmp_path / "test" / "kind 03" / "01.png").read_bytes()
    )
    store, _ = read_folder("mine", tmp_path)
    assert duplicates(store, store.schemes[0]) == ["kind 02 (test) = kind 00 (train)"]
    store.save()
    assert (
        "1 images are in two splits: kind 02 (test) = kind 00 (train)"
        in command("data", "check", "mine").stdout
    )


def test_least_leaves_out_smaller_classes(tmp_path: Path) -> None:
    album(tmp_path, range(4), 4)
    album(tmp_path, range(4, 6), 3)
    store, report = read_folder("mine", tmp_path, least=4)
    assert len(store.sizes) == 4
    assert report.refused == [
        (f"kind {kind:02d}", "has 3 images, at least 4 are needed") for kind in (4, 5)
    ]


def test_grey_folders_stay_grey(tmp_path: Path) -> None:
    for kind in range(4):
        for number in range(2):
            save(photo(kind, number).convert("L"), tmp_path / str(kind) / str(number), number)
    assert read_folder("grey", tmp_path)[0].shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--source", "nowhere"],
            "--source nowhere is not a folder: give one that holds a folder of images",
        ),
        (
            ["--source", "few"],
            "few has 3 class folders of 2 or more images, and at least 4 are needed",
        ),
        (["--source", "few", "--size", "4"], "--size is 4, expected between 16 and 1024 pixels"),
        (["--source", "few", "--least", "1"], "--least is 1, expected at least 2 images"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence_and_leaves_nothing(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    album(tmp_path / "few", range(3), 2)
    done = command("data", "import", "new", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stdout == ""
    assert not (tmp_path / "cache").exists()


def test_an_import_that_fails_keeps_the_earlier_one(tmp_path: Path) -> None:
    album(tmp_path / "good", range(4), 2)
    first = command("data", "import", "kept", "--source", str(tmp_path / "good"))
    assert "replaces" not in first.stdout
    before = ImageStore.open("kept").images.clone()
    assert (
        command("data", "import", "kept", "--source", str(tmp_path / "good" / "kind 00")).returncode
        == 2
    )
    assert torch.equal(ImageStore.open("kept").images, before)
    same = command("data", "import", "kept", "--source", str(tmp_path / "good"))
    assert "replaced" not in same.stdout
    again = command(
        "data", "import", "kept", "--source", str(album(tmp_path / "other", range(4, 8), 2))
    )
    assert again.stdout.startswith(
        "replaced the earlier data set kept: runs that were trained on it cannot be resumed"
    )


def test_a_run_knows_the_data_set_that_it_was_trained_on(tmp_path: Path) -> None:
    small = [
        "workers.max=0",
        "tracking.uri=none",
        "outer.steps=2",
        "evaluation.tasks=4",
        "model.filters=2",
    ]
    small += ["family.data=changing", "family.ways=2", "validation.every_steps=0", "output=run"]
    sets = [part for item in small for part in ("--set", item)]
    recipe = str(Path(__file__).parent.parent / "recipes" / "own_images.yaml")
    for kinds in (range(4), range(2, 6)):
        photos = album(tmp_path / f"from{kinds[0]}", kinds, 2)
        assert command("data", "import", "changing", "--source", str(photos)).returncode == 0
        if kinds[0] == 0:
            assert command("train", recipe, *sets).returncode == 0
            assert command("evaluate", "run", "--set", "workers.max=0").returncode == 0
    for arguments in (
        ("evaluate", "run", "--set", "workers.max=0"),
        ("train", "run/config.yaml", "--set", "output=other"),
    ):
        refused = command(*arguments)
        assert refused.returncode == 2
        assert (
            "changing is not the data set that this was trained on: its checksum is "
            in refused.stderr
        )
    anyway = ("--set", "workers.max=0", "--set", "family.checksum=null")
    assert command("evaluate", "run", *anyway).returncode == 0
    resumed = command("train", recipe, *sets, "--set", "outer.steps=3", "--resume", "auto")
    assert resumed.returncode == 2
    assert "was trained with family.checksum = " in resumed.stderr


def test_one_picture_gives_the_same_pixels_in_every_form(tmp_path: Path) -> None:
    image = photo(1, 2)
    image.save(tmp_path / "p.png")
    array = np.asarray(image)
    forms = [
        tmp_path / "p.png",
        str(tmp_path / "p.png"),
        image,
        image.convert("RGBA"),
        array,
        array.transpose(2, 0, 1),
        array.astype(np.float32) / 255,
        array.astype(np.float64) / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array.copy()).float() / 255,
    ]
    stacked = stack(forms, (3, 32, 32))
    assert stacked.shape == (len(forms), 3, 32, 32)
    assert all(torch.equal(p, stacked[0]) for p in stacked)


def test_modes_mean_what_a_viewer_shows() -> None:
    def shown(image: Image.Image) -> list[int]:
        return [int(v) for v in to_pixels(image, (3, 8, 8))[:, 4, 4]]

    assert shown(Image.new("RGBA", (8, 8), (200, 10, 10, 0))) == [
        255,
        255,
        255,
    ]  # transparent is paper
    assert shown(Image.new("LA", (8, 8), (0, 0))) == [255, 255, 255]
    assert shown(Image.new("1", (8, 8), 1)) == [255, 255, 255]
    assert shown(Image.fromarray(np.full((8, 8), 0x8080, np.uint16))) == [128, 128, 128]
    assert shown(Image.fromarray(np.full((8, 8), 128, np.int32))) == [128, 128, 128]
    assert shown(Image.fromarray(np.full((8, 8), 0.5, np.float32))) == [128, 128, 128]
    assert shown(Image.fromarray(np.full((8, 8), 128, np.float32))) == [128, 128, 128]
    assert shown(Image.new("CMYK", (8, 8), (0, 255, 255, 0)))[0] > 200  # red
    assert shown(Image.new("HSV", (8, 8), (0, 255, 255))) == [255, 0, 0]
    sideways = Image.new("RGB", (16, 8), "white")
    sideways.paste((0, 0, 0), (0, 0, 8, 8))  # dark left half; turned upright: dark upper half
    sideways.getexif()[0x0112] = 6
    upright = to_pixels(sideways, (1, 16, 8))[0]
    assert upright[:6].max() < 20
    assert upright[-6:].min() > 235


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (
            np.zeros((4, 4), np.int64),
            "must be uint8 in 0..255 or floating point in 0..1, got int64",
        ),
        (np.full((4, 4), 200.0), r"an image of float64 must lie in 0..1, got 200..200"),
        (np.full((4, 4), np.nan), "must lie in 0..1"),
        (np.zeros((5, 5, 7), np.uint8), r"with 1, 3 or 4 channels, got \(5, 5, 7\)"),
        (
            "nowhere.png",
            r"nowhere\.png cannot be read as an image \(No such file or directory\): replace or "
            r"remove it",
        ),
        (
            Image.fromarray(np.full((4, 4), 70000, np.int32)),
            r"its values are 70000\.\.70000, which is neither 0\.\.255 nor",
        ),
        (Image.new("La", (4, 4)), "an image of mode La cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_said(picture: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        stack([picture], (1, 4, 4))


def test_query_files_are_labelled_by_the_folder_they_lie_in(tmp_path: Path) -> None:
    album(tmp_path, range(2), 1)
    loose = save(photo(0, 9), tmp_path / "loose", 1)
    found, refused = labelled_files(tmp_path)
    assert refused == []
    assert [(path.name, label) for path, label in found] == [
        ("00.jpg", "kind 00"),
        ("00.jpg", "kind 01"),
        ("loose.png", None),
    ]
    assert labelled_files(loose) == ([(loose, None)], [])
    with pytest.raises(
        InputError, match="nowhere does not exist: give image files, or a folder of them"
    ):
        labelled_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "single", ["a.png", Path("a.png"), photo(0, 0), np.zeros((8, 9, 3)), torch.zeros(8, 9)]
)
def test_a_single_image_is_not_taken_apart(single: object) -> None:
    with pytest.raises(
        InputError, match=r"a single image was given .*: put it into a list, as \[image\]"
    ):
        FewShot(data="none", shape=(3, 8, 9)).examples(single)


@pytest.mark.parametrize(
    "form",
    [
        tuple,
        iter,
        np.array,
        lambda paths: np.array(paths, object),
        lambda paths: np.array([Path(path) for path in paths]),
        lambda paths: (Path(path) for path in paths),
        lambda paths: pandas.Series(paths, index=[7, 9]),
        lambda paths: pandas.DataFrame({"path": paths}).path,
        lambda paths: pandas.Categorical(paths),
        lambda paths: pandas.Index(paths),
        lambda paths: [np.array(path) for path in paths],
        lambda paths: pyarrow.array(paths),
        lambda paths: (Image.open(path) for path in paths),
    ],
)
def test_a_list_of_images_may_have_any_form(
    form: Callable[[list[str]], object], tmp_path: Path
) -> None:
    paths = [str(save(photo(kind, 1), tmp_path / str(kind), 1)) for kind in range(2)]
    family = FewShot(data="none", shape=(3, 8, 9))
    assert torch.equal(family.examples(form(paths)), family.examples(paths))


@pytest.mark.parametrize(
    ("pictures", "sentence"),
    [
        (
            np.array([["a.png"], ["b.png"]]),
            r"images must be a list of paths or of images, .*; got <U5 of shape \(2, 1\)",
        ),
        (
            pandas.DataFrame({"path": ["a.png"]}),
            r"images must be a list of paths .* of shape \(1, 1\)",
        ),
        (np.array([1.0, 2.0]), r"images must be a list of paths .*; got float64 of shape \(2,\)"),
        (np.array(7), r"images must be a list of paths .*; got int64 of shape \(\)"),
        (torch.tensor(7), r"images must be a list of paths .*; got torch.int64 of shape \(\)"),
        (None, "images must be a list of them, got NoneType"),
        (7, "images must be a list of them, got int"),
        ({"a.png": "cat"}, "images are a dict, which has no order: give a list of them"),
        ({"a.png"}, "images are a set, which has no order: give a list of them"),
        (np.array("a.png"), "images must be a list of paths"),
        (
            [None],
            "an image must be a file's path, a PIL image or an array of numbers, got NoneType",
        ),
        (
            [float("nan")],
            "an image must be a file's path, a PIL image or an array of numbers, got float",
        ),
        (
            [np.array(7)],
            "an image must be a file's path, a PIL image or an array of numbers, got int",
        ),
        ([b"a.png"], r"an image of 5 bytes cannot be read as an image"),
        (
            [["a.png", "b.png"]],
            "an image must be a file's path, a PIL image or an array of numbers, got list of <U5",
        ),
        (
            [[[0, 1], [1, 0]]],
            "an image must be uint8 in 0..255 or floating point in 0..1, got int64",
        ),
        ([[[0.5, 1], [1]]], "an image of type list is no array of numbers"),
        ([torch.eye(4).to_sparse()], "an image of type Tensor is no array of numbers"),
        (
            [np.zeros((4, 4), complex)],
            "an image must be uint8 in 0..255 or floating point in 0..1, got complex128",
        ),
        (
            [np.full((4, 4), 60000, np.float16)],
            r"an image of float16 must lie in 0..1, got 60000..60000",
        ),
        ([np.full((4, 4), -1.0)], "an image of float64 must lie in 0..1, got -1..-1"),
        ([np.full((4, 4), 1.01)], r"an image of float64 must lie in 0..1, got 1.01..1.01"),
        ([np.full((4, 4), np.inf)], "an image of float64 must lie in 0..1, got inf..inf"),
    ],
)
def test_what_is_no_list_of_images_is_said(pictures: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        FewShot(data="none", shape=(1, 4, 4)).examples(pictures)


def test_rounding_takes_no_number_out_of_its_range(tmp_path: Path) -> None:
    for kind in (np.float16, np.float32, np.float64):
        high = kind(1) + np.finfo(kind).eps
        for low in (kind(-1e-4), kind(-1e-9), kind(0)):
            image = np.array([[low, high]] * 2, kind)
            assert (
                stack([image, torch.from_numpy(image)], (1, 2, 2)).tolist()
                == [[[[0, 255]] * 2]] * 2
            )
    for low, high in ((-1e-7, 1.0000001), (-1e-5, 255.00002)):
        Image.fromarray(np.array([[low, high]] * 2, np.float32)).save(tmp_path / "a.tif")
        assert stack([tmp_path / "a.tif"], (1, 2, 2)).tolist() == [[[[0, 255]] * 2]]
    assert stack([[[0.0, 1.0], [1.0, 0.0]]], (1, 2, 2)).tolist() == [[[[0, 255], [255, 0]]]]
    Image.fromarray(np.array([[-1, 1]] * 2, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        InputError, match=r"its values are -1\.\.1, which is neither 0\.\.255 nor 0\.\.1"
    ):
        stack([tmp_path / "a.tif"], (1, 2, 2))


def test_adapt_tells_the_files_of_a_folder_that_it_leaves_out(tmp_path: Path) -> None:
    album(tmp_path / "photos", range(4), 2)
    assert (
        command(
            "data", "import", "asked", "--source", str(tmp_path / "photos"), "--size", "16"
        ).returncode
        == 0
    )
    small = [
        "workers.max=0",
        "tracking.uri=none",
        "outer.steps=1",
        "evaluation.tasks=2",
        "model.filters=2",
    ]
    small += ["family.data=asked", "family.ways=2", "validation.every_steps=0", "output=run"]
    recipe = str(Path(__file__).parent.parent / "recipes" / "own_images.yaml")
    assert (
        command("train", recipe, *(part for item in small for part in ("--set", item))).returncode
        == 0
    )
    album(tmp_path / "few", range(2), 1)
    (tmp_path / "few" / "kind 00" / "Thumbs.db").write_bytes(b"x")
    new = album(tmp_path / "new", range(2), 1)
    for name in ("taken.jfif", "taken.JPE", "phone.heic", "none", "kind 00/broken.jpg"):
        (new / name).write_bytes(
            (new / "kind 00" / "00.jpg").read_bytes()[: -200 if "broken" in name else None]
        )
    done = command("adapt", "run", "--support", "few", "--query", "new")
    assert done.returncode == 0, done.stderr
    mine = [line for line in done.stdout.splitlines() if line.startswith("refused ")]
    assert mine == [
        "refused few/kind 00/Thumbs.db: is none of .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, "
        ".tif, .tiff, .webp",
        "refused new/none: is none of .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff, "
        ".webp",
        "refused new/phone.heic: is none of .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .tif, "
        ".tiff, .webp",
        mine[-1],
    ]
    assert mine[-1].startswith(
        "refused new/kind 00/broken.jpg cannot be read as an image (image file is truncated"
    )
    predicted = json.loads(Path("adapted/predictions.json").read_text())["predictions"]
    assert [p["image"] for p in predicted] == [
        f"new/{name}" for name in ("kind 00/00.jpg", "kind 01/00.jpg", "taken.JPE", "taken.jfif")
    ]
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"x")
    done = command("adapt", "run", "--support", "few", "--query", "phone")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: phone holds no images, but a.heic: give image files, or a folder of .bmp"
    )


def test_one_image_of_three_channels_is_no_three_grey_ones() -> None:
    with pytest.raises(InputError, match="a single image was given"):
        FewShot(data="none", shape=(3, 8, 9)).examples(torch.zeros(3, 8, 9))
    assert FewShot(data="none", shape=(1, 8, 9)).examples(torch.zeros(3, 8, 9)).shape == (
        3,
        1,
        8,
        9,
    )


def test_no_program_is_run_for_a_file_that_says_it_is_another(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(InputError, match="not one of BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        stack([tmp_path / "a.png"], (1, 8, 8))


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 250)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert int(stack([tmp_path / "a.gif"], (1, 8, 8))[0, 0, 4, 4]) < 20
