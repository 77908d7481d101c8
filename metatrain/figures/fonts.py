"""Fonts for names in any script."""

from __future__ import annotations

import logging
from contextlib import suppress

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# Many Chinese fonts have no bold face. That a text is in the regular one is no news.
logging.getLogger(font_manager.__name__).addFilter(
    lambda record: "Failed to find font weight" not in str(record.msg)
)

# They have Chinese and Japanese characters, and are chosen before others that have them.
WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
)


def add_fonts(figure: Figure) -> None:
    """Let texts fall back to installed fonts if their own font lacks characters."""
    alike: dict[tuple[str, ...], list[Text]] = {}  # texts of one font
    for text in figure.findobj(lambda artist: isinstance(artist, Text)):
        assert isinstance(text, Text)
        alike.setdefault(
            (text.get_fontstyle(), str(text.get_fontweight()), *text.get_fontfamily()), []
        ).append(text)
    for texts in alike.values():
        font = texts[0].get_fontproperties()
        families = [name for name in font.get_family() if _face(name, font)] or [
            fontManager.defaultFamily["ttf"]
        ]
        lacking = set("".join(text.get_text() for text in texts)) - {"\n"}
        for name in families:
            lacking -= _drawn(lacking, _face(name, font))
        if not lacking:
            continue
        added, rest = _families_with(lacking, font)
        if rest and _find_new_fonts():
            added, _ = _families_with(lacking, font)
        for text in texts:
            text.set_fontfamily([*families, *added])


def _families_with(characters: set[str], font: FontProperties) -> tuple[list[str], set[str]]:
    """Return few families that have these characters in the style of `font`, and the rest.

    The rest are the characters that no font has.
    """
    faces: dict[tuple[str, int], set[str]] = {}
    for entry in fontManager.ttflist:  # a face is listed under each of its names
        faces.setdefault((entry.fname, getattr(entry, "index", 0)), set()).add(entry.name)
    names = {name for face, called in faces.items() if _drawn(characters, face) for name in called}
    # A font of last resort has a box for every character.
    names = {name for name in names if "lastresort" not in name.replace(" ", "").lower()}
    known = sorted(names, key=_rank)
    drawn = {name: _drawn(characters, _face(name, font)) for name in known}
    found, rest = [], characters
    while rest:
        best = max(known, key=lambda name: len(drawn[name] & rest), default=None)
        if best is None or not drawn[best] & rest:
            break
        found.append(best)
        rest = rest - drawn[best]
    return found, rest


def _rank(family: str) -> tuple[int, bool, str]:
    """Return the order in which families with the same characters are chosen."""
    wide = WIDE_FONTS.index(family) if family in WIDE_FONTS else len(WIDE_FONTS)
    return wide, "sans" not in family.lower(), family


def _face(family: str, font: FontProperties) -> tuple[str, int] | None:
    """Return the file of the face that matplotlib takes for `font`, and its number in there."""
    font = font.copy()
    font.set_family(family)
    try:
        path = fontManager.findfont(font, fallback_to_default=False)
    except ValueError:  # there is no such family
        return None
    return str(path), getattr(path, "face_index", 0)


def _drawn(characters: set[str], face: tuple[str, int] | None) -> set[str]:
    """Return those of the characters that a face has."""
    if face is None:
        return set()
    path, index = face
    try:
        # matplotlib < 3.11 knows one face a file.
        font = FT2Font(path, face_index=index) if index else FT2Font(path)
    except (OSError, RuntimeError):  # it was removed, or is no font
        return set()
    return {character for character in characters if font.get_char_index(ord(character))}


def _find_new_fonts() -> bool:
    """Add fonts installed since matplotlib cached its list; return whether there were any."""
    listed = len(fontManager.ttflist)
    known = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(Exception):  # as matplotlib does with a font that it cannot read or draw
            fontManager.addfont(path)
    return len(fontManager.ttflist) > listed
