"""Printed letters of many scripts, each in several fonts: an Omniglot that is printed.

A class is a letter, and its drawings are those of different fonts. Debian's package
`fonts-noto-core` ships such fonts (SIL Open Font License).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from metatrain import files
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.data import archives, published
from metatrain.data.fonts import MOST_BYTES, Font
from metatrain.data.images import ImageStore, Scheme
from metatrain.data.splits import SPLITS, shuffled_splits

SIDE = 28  # pixels
INK = 24  # pixels of the longer side of a letter, at most
FEWEST, MOST_EACH = 4, 20  # different drawings of a letter
MOST_FONTS = 2000
FEWEST_SCRIPTS = 4
# Scripts that are left out: three have more characters than all others together, and two are none.
LEFT_OUT = {"Hani", "Hang", "Tang", "Zyyy", "Zinh"}
DEBIAN = Path("/usr/share/fonts/truetype/noto")  # of its package fonts-noto-core
REMEDY = published.where_to_put(
    "letters", f"a folder of fonts, such as {DEBIAN} of Debian's package fonts-noto-core"
)

Letter = tuple[str, str]  # its script, and itself


def read(source: Path | None, fewest: int = FEWEST) -> ImageStore:
    """Draw the letters that enough fonts draw differently; scripts are shuffled into splits.

    source: a folder of fonts; None: that of Debian's package.
    fewest: different drawings that a letter must have.
    """
    source = source or DEBIAN
    found = source.rglob("*") if source.is_dir() else ()
    paths = sorted(path for path in found if path.suffix.lower() in (".ttf", ".otf"))
    if not 0 < len(paths) <= MOST_FONTS:
        raise InputError(
            f"{source} holds {len(paths):,} fonts", expected=f"1 to {MOST_FONTS:,}", remedy=REMEDY
        )
    drawn: dict[Letter, list[bytes]] = {}
    with awaiting(f"drawing the letters of {len(paths)} fonts"):
        for path in paths:
            for letter, picture in _drawings(path):
                own = drawn.setdefault(letter, [])
                if len(own) < MOST_EACH and picture not in own:
                    own.append(picture)
    kept: dict[Letter, list[bytes]] = {}
    seen: set[bytes] = set()
    for letter in sorted(letter for letter, own in drawn.items() if len(own) >= fewest):
        # Nobody could tell letters apart that look the same, such as A in Latin and in Greek.
        if seen.isdisjoint(drawn[letter]):
            kept[letter] = drawn[letter]
            seen.update(drawn[letter])
    scripts = sorted({name for name, _ in kept})
    if len(scripts) < FEWEST_SCRIPTS:
        raise InputError(
            f"{source} holds letters of {len(scripts)} scripts in {fewest} fonts",
            expected=f"at least {FEWEST_SCRIPTS}",
            remedy=REMEDY,
        )
    everything = b"".join(picture for own in kept.values() for picture in own)
    return ImageStore(
        name="letters",
        images=torch.frombuffer(bytearray(everything), dtype=torch.uint8).view(-1, 1, SIDE, SIDE),
        class_names=[f"{name}/{letter}" for name, letter in kept],
        sizes=torch.tensor([len(own) for own in kept.values()]),
        schemes=[_by_script(scripts, [name for name, _ in kept])],
        synthetic=False,
    )


def _by_script(scripts: list[str], names: list[str]) -> Scheme:
    """Whole scripts in each split.

    names: the script of each class.
    """
    parts = shuffled_splits(len(scripts)).items()
    members = {split: {scripts[i] for i in part} for split, part in parts}
    classes = {s: [c for c, name in enumerate(names) if name in m] for s, m in members.items()}
    return Scheme(name="scripts", classes=classes, rotations=dict.fromkeys(SPLITS, "none"))


def _drawings(path: Path) -> Iterator[tuple[Letter, bytes]]:
    """Yield the letters that a font has, each with its pixels."""
    try:
        font = Font(files.read(path, MOST_BYTES), SIDE)
        for letter in _letters():
            picture = centred(font.drawn(letter[1])) if font.has(letter[1]) else None
            if picture is not None:
                yield letter, picture.tobytes()
    except Exception as error:  # a broken font raises nearly anything
        raise archives.damaged(path, error) from error


@lru_cache(maxsize=1)
def _letters() -> list[Letter]:
    """All letters of the scripts that are not left out."""
    from fontTools.unicodedata import script, script_name

    every = [c for c in map(chr, range(0x20000)) if unicodedata.category(c).startswith("L")]
    named = [(script(letter), letter) for letter in every]
    return [(script_name(s).replace("_", " "), c) for s, c in named if s not in LEFT_OUT]


def centred(picture: Image.Image) -> NDArray[np.uint8] | None:
    """The ink of a picture on white in the middle of [28, 28], bright on dark; None if it is blank.

    It becomes smaller if it does not fit.
    """
    ink = ImageOps.invert(picture.convert("L"))
    box = ink.getbbox()
    if box is None:
        return None
    ink = ink.crop(box)
    share = min(1, INK / max(ink.size))
    ink = ink.resize([max(1, round(share * side)) for side in ink.size], Image.Resampling.LANCZOS)
    paper = Image.new("L", (SIDE, SIDE))
    paper.paste(ink, ((SIDE - ink.width) // 2, (SIDE - ink.height) // 2))
    return np.asarray(paper)
