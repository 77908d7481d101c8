"""Quotes by topic, such as law, food and science: the fortunes of a Unix system.

Debian's packages `fortunes` and `fortunes-min` ship them, 39 topics with 40 quotes and more. They
are short, old and noisy, and many would fit another topic.
"""

from __future__ import annotations

from pathlib import Path

from metatrain import files
from metatrain.core import InputError
from metatrain.data import archives, published, texts
from metatrain.data.images import ImageStore

DEBIAN = Path("/usr/share/games/fortunes")
MOST_BYTES = 1 << 22  # of a file; the published ones have up to 0.25 MB
FEWEST = 40  # quotes of a topic
REMEDY = published.where_to_put(
    "topics", f"a folder such as {DEBIAN} of Debian's packages fortunes and fortunes-min"
)


def read(source: Path | None, fewest: int = FEWEST) -> ImageStore:
    """Read the quotes of each topic, a file of them; topics are shuffled into splits.

    source: a folder of such files; None: that of Debian's packages.
    fewest: quotes that a topic must have.
    """
    source = source or DEBIAN
    if not source.is_dir():
        raise InputError(f"{source} is no folder", remedy=REMEDY)
    found: dict[str, list[str]] = {}
    for path in sorted(source.iterdir()):
        if path.suffix or not path.is_file():  # .dat has places, .u8 is the same file
            continue
        try:
            quotes = files.read(path, MOST_BYTES).decode().split("\n%\n")
        except (OSError, UnicodeError) as error:
            raise archives.damaged(path, error) from error
        kept = [*dict.fromkeys(quote for quote in quotes if quote.strip("% \n"))]
        if len(kept) >= fewest:
            found[path.name] = kept
    if len(found) < texts.FEWEST_CLASSES:
        raise InputError(f"{source} holds {len(found)} topics of {fewest} quotes", remedy=REMEDY)
    return texts.store("topics", found)
