"""One's own images: taken whatever their size, mode and format; what is refused is told with its reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from photos import album, photo, save
from PIL import Image

from metatrain.core import InputError
from metatrain.tasks import FewShot
from metatrain.tasks.folders import labelled_files, read_folder, shuffled_splits
from metatrain.tasks.images import ImageStore, duplicates
from metatrain.tasks.pixels import stack, to_pixels


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 kinds, one of them with a file that is broken and one too small, and files that are no images."""
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
    sizes = [photo(kind, number).size for kind in range(29) for number in range(5) if (kind, number) != (3, 0)]
    assert report.resized == sum(size != (40, 40) for size in sizes) > 0
    assert dict(report.refused) == {
        "kind 03/00.jpg": "cannot be read as an image (not one of BMP, GIF, JPEG, PNG, TIFF, WEBP)",
        "kind 29": "has 1 images, at least 2 are needed",
        "loose.png": "lies in no class folder",
        "readme.txt": "is none of .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp",
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
        "refused kind 03/00.jpg: cannot be read as an image (not one of BMP, GIF, JPEG, PNG, TIFF, WEBP)",
        "refused loose.png: lies in no class folder",
        "refused readme.txt: is none of .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp",
        "refused kind 29: has 1 images, at least 2 are needed",
    ]
    assert lines[4].startswith("imported mine: 29 classes, 144 images (144 resized) of 20x20 pixels, RGB into ")
    assert [line.split(" classes: ")[0] for line in lines[5:8]] == ["  train 19", "  val 5", "  test 5"]
    assert lines[8] == "next: metatrain train recipes/own_images.yaml"
    store = ImageStore.open("mine")
    splits = store.scheme("shuffled").classes
    assert sorted(c for members in splits.values() for c in members) == list(range(29))
    assert store.scheme("shuffled").classes == read_folder("mine", mixed)[0].schemes[0].classes  # always the same
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


@pytest.mark.parametrize(
    ("classes", "more"),
    [(4, " --set family.ways=2 --set validation.every_steps=0"), (10, " --set validation.every_steps=0"), (15, "")],
)
def test_what_the_import_says_to_do_next_works(classes: int, more: str, tmp_path: Path) -> None:
    album(tmp_path / "photos", range(classes), 2)
    done = command("data", "import", f"of{classes}", "--source", str(tmp_path / "photos"), "--size", "16")
    following = done.stdout.splitlines()[-1]
    assert following == f"next: metatrain train recipes/own_images.yaml --set family.data=of{classes}{more}"
    _, _, *arguments = following.split()
    arguments[1] = str(Path(__file__).parent.parent / arguments[1])
    small = "outer.steps=1 workers.max=0 tracking.uri=none evaluation.tasks=4 model.filters=2 outer.tasks_per_step=2"
    trained = command(*arguments, *(part for item in small.split() for part in ("--set", item)))
    assert trained.returncode == 0, trained.stderr


def test_linked_folders_and_files_count_and_loops_end(tmp_path: Path) -> None:
    album(tmp_path / "elsewhere", range(4), 2)
    photos = tmp_path / "photos"
    photos.mkdir()
    for kind in range(4):
        (photos / f"kind {kind}").symlink_to(tmp_path / "elsewhere" / f"kind {kind:02d}")
    (photos / "kind 0" / "round").symlink_to(photos)
    (photos / "kind 1" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    store, report = read_folder("mine", photos)
    assert store.class_names == [f"kind {kind}" for kind in range(4)]
    assert len(store.images) == 8
    assert report.refused == [("kind 1/gone.png", "cannot be read as an image (No such file or directory)")]
    assert len(labelled_files(photos)) == 9


def test_folders_train_val_test_are_the_splits(tmp_path: Path) -> None:
    for split, kinds in (("train", range(3)), ("val", range(3, 5)), ("test", range(5, 8))):
        album(tmp_path / split, kinds, 2)
    store, _ = read_folder("mine", tmp_path)
    names = {split: [store.class_names[c] for c in members] for split, members in store.schemes[0].classes.items()}
    assert store.schemes[0].name == "folders"
    assert names == {
        "train": ["kind 00", "kind 01", "kind 02"],
        "val": ["kind 03", "kind 04"],
        "test": ["kind 05", "kind 06", "kind 07"],
    }
    (tmp_path / "test").rename(tmp_path / "Test")
    assert read_folder("mine", tmp_path)[0].schemes[0].classes == store.schemes[0].classes
    (tmp_path / "Test").rename(tmp_path / "test")
    (tmp_path / "val").rename(tmp_path / "valid")
    with pytest.raises(
        InputError, match="folders test, train and beside them valid: every class must lie in train, val"
    ):
        read_folder("mine", tmp_path)
    (tmp_path / "valid").rename(tmp_path / "val")
    (tmp_path / "val" / "kind 04").rename(tmp_path / "test" / "kind 04")
    with pytest.raises(InputError, match="and val 2 or none: train has 3, val has 1, test has 4; move some"):
        read_folder("mine", tmp_path)
    (tmp_path / "test" / "kind 04").rename(tmp_path / "val" / "kind 04")
    album(tmp_path / "test", range(1), 2)
    with pytest.raises(InputError, match="class 'kind 00' is in test and in train: every class must be in one split"):
        read_folder("mine", tmp_path)


def test_images_that_are_in_two_splits_are_found(tmp_path: Path) -> None:
    for split, kinds in (("train", range(2)), ("test", range(2, 4))):
        album(tmp_path / split, kinds, 2)
    (tmp_path / "test" / "kind 02" / "copy.png").write_bytes((tmp_path / "train" / "kind 00" / "01.png").read_bytes())
    (tmp_path / "test" / "kind 02" / "again.png").write_bytes((tmp_path / "test" / "kind 03" / "01.png").read_bytes())
    store, _ = read_folder("mine", tmp_path)
    assert duplicates(store, store.schemes[0]) == ["kind 02 (test) = kind 00 (train)"]
    store.save()
    assert "1 images are in two splits: kind 02 (test) = kind 00 (train)" in command("data", "check", "mine").stdout


def test_least_leaves_out_smaller_classes(tmp_path: Path) -> None:
    album(tmp_path, range(4), 4)
    album(tmp_path, range(4, 6), 3)
    store, report = read_folder("mine", tmp_path, least=4)
    assert len(store.sizes) == 4
    assert report.refused == [(f"kind {kind:02d}", "has 3 images, at least 4 are needed") for kind in (4, 5)]


def test_grey_folders_stay_grey(tmp_path: Path) -> None:
    for kind in range(4):
        for number in range(2):
            save(photo(kind, number).convert("L"), tmp_path / str(kind) / str(number), number)
    assert read_folder("grey", tmp_path)[0].shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--source", "nowhere"], "--source nowhere is not a folder: give one that holds a folder of images"),
        (["--source", "few"], "few has 3 class folders of 2 or more images and at least 4 are needed"),
        (["--source", "few", "--size", "4"], "--size must be between 16 and 1024 pixels, got 4"),
        (["--source", "few", "--least", "1"], "--least must be at least 2 images"),
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
    assert command("data", "import", "kept", "--source", str(tmp_path / "good" / "kind 00")).returncode == 2
    assert torch.equal(ImageStore.open("kept").images, before)
    same = command("data", "import", "kept", "--source", str(tmp_path / "good"))
    assert "replaces" not in same.stdout
    again = command("data", "import", "kept", "--source", str(album(tmp_path / "other", range(4, 8), 2)))
    assert again.stdout.startswith(
        "replaces the data set kept that was there: what was trained on that one cannot go on"
    )


def test_a_run_knows_the_data_set_that_it_was_trained_on(tmp_path: Path) -> None:
    small = ["workers.max=0", "tracking.uri=none", "outer.steps=2", "evaluation.tasks=4", "model.filters=2"]
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
        assert "changing is not the data set that this was trained on (checksum " in refused.stderr
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
    pixels = stack(forms, (3, 32, 32))
    assert pixels.shape == (len(forms), 3, 32, 32)
    assert all(torch.equal(p, pixels[0]) for p in pixels)


def test_modes_mean_what_a_viewer_shows() -> None:
    def shown(image: Image.Image) -> list[int]:
        return [int(v) for v in to_pixels(image, (3, 8, 8))[:, 4, 4]]

    assert shown(Image.new("RGBA", (8, 8), (200, 10, 10, 0))) == [255, 255, 255]  # transparent is paper
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
        (np.zeros((4, 4), np.int64), "must be uint8 in 0..255 or floating point in 0..1, got int64"),
        (np.full((4, 4), 200.0), r"an image of float64 must lie in 0..1, got 200..200"),
        (np.full((4, 4), np.nan), "must lie in 0..1"),
        (np.zeros((5, 5, 7), np.uint8), r"with 1, 3 or 4 channels, got \(5, 5, 7\)"),
        ("nowhere.png", r"nowhere\.png cannot be read as an image \(No such file or directory\): replace or remove it"),
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
    found = labelled_files(tmp_path)
    assert [(path.name, label) for path, label in found] == [
        ("00.jpg", "kind 00"),
        ("00.jpg", "kind 01"),
        ("loose.png", None),
    ]
    assert labelled_files(loose) == [(loose, None)]
    with pytest.raises(InputError, match="nowhere does not exist: give image files, or a folder of them"):
        labelled_files(tmp_path / "nowhere")


@pytest.mark.parametrize("single", ["a.png", Path("a.png"), photo(0, 0), np.zeros((8, 9, 3)), torch.zeros(8, 9)])
def test_a_single_image_is_not_taken_apart(single: object) -> None:
    with pytest.raises(InputError, match=r"a single image was given .*: put it into a list, as \[image\]"):
        FewShot(data="none", shape=(3, 8, 9)).examples(single)


def test_one_image_of_three_channels_is_no_three_grey_ones() -> None:
    with pytest.raises(InputError, match="a single image was given"):
        FewShot(data="none", shape=(3, 8, 9)).examples(torch.zeros(3, 8, 9))
    assert FewShot(data="none", shape=(1, 8, 9)).examples(torch.zeros(3, 8, 9)).shape == (3, 1, 8, 9)


def test_no_program_is_run_for_a_file_that_says_it_is_another(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(InputError, match="not one of BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        stack([tmp_path / "a.png"], (1, 8, 8))


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 250)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert int(stack([tmp_path / "a.gif"], (1, 8, 8))[0, 0, 4, 4]) < 20
