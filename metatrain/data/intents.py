"""Requests to a home by intent, such as "set the volume to 40 percent": 42 intents in English.

The package `home-assistant-intents` ships templates of sentences (Apache-2.0). A template such as
`(turn|switch) on [the] {name}` stands for many sentences; a few of each are drawn.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metatrain.core import InputError
from metatrain.data import archives, published, texts
from metatrain.data.images import ImageStore

PACKAGE, FILE = "home_assistant_intents", "data/en.json"
MOST_BYTES = 1 << 22  # of the file, unpacked; the published one has 0.2 MB
EACH = 30  # sentences drawn of a template
FEWEST, MOST_EACH = 16, 60  # sentences of an intent; those with fewer are left out
MOST_DEPTH, MOST_TEMPLATE = 20, 10_000  # rules in rules; characters of a rule
LENGTH = 96  # bytes of a sentence
REMEDY = published.where_to_put(
    "intents", "the wheel that `pip download --no-deps home-assistant-intents` gets, or install it"
)


def read(source: Path | None) -> ImageStore:
    """Draw sentences of each intent from its templates; intents are shuffled into splits.

    source: the package's wheel, or its file en.json; None: the installed package.
    """
    tree = _tree(source)
    try:
        rules = {name: str(rule) for name, rule in tree["expansion_rules"].items()}
        found = {
            str(name): _sentences(str(name), intent, rules, tree["lists"])
            for name, intent in sorted(tree["intents"].items())
        }
    except Exception as error:  # what is no template raises several kinds
        raise archives.damaged(Path(str(source or PACKAGE)), error, FILE) from error
    found = {name: own for name, own in found.items() if len(own) >= FEWEST}
    if len(found) < texts.FEWEST_CLASSES:
        raise InputError(f"{source or PACKAGE} holds {len(found)} intents", remedy=REMEDY)
    return texts.store("intents", found, LENGTH)


def _tree(source: Path | None) -> Any:
    if source is None and find_spec(PACKAGE) is None:
        raise InputError(f"the package {PACKAGE} is not installed", remedy=REMEDY)
    if source is None:
        data = (resources.files(PACKAGE) / FILE).read_bytes()
    elif source.suffix == ".whl":
        bounds = {"most_files": 1, "most_bytes": MOST_BYTES, "most_archive": MOST_BYTES}
        with archives.zipped(source, f"{PACKAGE}/{FILE}".__eq__, "files", **bounds) as members:
            data = next((get() for get in members.values()), b"")
    else:
        data = archives.inflated(source, MOST_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise archives.damaged(Path(str(source or PACKAGE)), error, FILE) from error


def _sentences(
    name: str, intent: Mapping[str, Any], rules: Mapping[str, str], lists: Mapping[str, Any]
) -> list[str]:
    """Different sentences of an intent, by a generator of its own."""
    draw = random.Random(name)
    templates = [text for block in intent["data"] for text in block["sentences"]]
    found = [
        " ".join(_expanded(t, rules, lists, draw).split()) for t in templates for _ in range(EACH)
    ]
    found = [*dict.fromkeys(text for text in found if text)]
    return draw.sample(found, min(len(found), MOST_EACH))


def _expanded(
    template: str,
    rules: Mapping[str, str],
    lists: Mapping[str, Any],
    draw: random.Random,
    depth: int = 0,
) -> str:
    """A sentence of a template: (a|b), (any;order), [perhaps], <rule> and {list}, inside first."""
    if depth > MOST_DEPTH or len(template) > MOST_TEMPLATE:
        raise RecursionError("its rules hold each other, or too much")
    room = MOST_TEMPLATE  # characters that its rules may give

    def choice(found: re.Match[str]) -> str:
        if found[0][0] == "[" and draw.random() < 0.5:
            return ""
        parts = draw.choice(found[0][1:-1].split("|")).split(";")
        return " ".join(draw.sample(parts, len(parts)))

    def rule(found: re.Match[str]) -> str:
        nonlocal room
        text = _expanded(rules.get(found[1], found[1]), rules, lists, draw, depth + 1)
        room -= len(text)
        if room < 0:
            raise RecursionError("its rules hold too much")
        return text

    def value(found: re.Match[str]) -> str:
        name = found[1].partition(":")[0]
        return _value(name, lists.get(name, {}), draw)

    text = re.sub(r"<(\w+)>", rule, template)
    while (inner := re.sub(r"\([^()\[\]]*\)|\[[^()\[\]]*\]", choice, text)) != text:
        text = inner
    return re.sub(r"\{([\w:]+)\}", value, text)


def _value(name: str, values: Mapping[str, Any], draw: random.Random) -> str:
    """What may stand for a list: one of its values, a number, or its name."""
    if "range" in values:
        return str(draw.randint(int(values["range"]["from"]), int(values["range"]["to"])))
    if not values.get("values"):
        return name.replace("_", " ")
    value = draw.choice(values["values"])
    text = str(value["in"] if isinstance(value, dict) else value)
    return re.sub(r"[\[\]()]", "", text.partition("|")[0])
