"""The words of a protocol line: what a score depends on, or what parameters were learned from."""

from __future__ import annotations

import dataclasses
from typing import Any


def described(component: Any, *, adapts: bool = False) -> str:
    """A family, a model or an algorithm by its name and its fields, without those that are off.

    adapts: leave out what an algorithm uses in training only.
    """
    words = [str(component.name)]
    for item in dataclasses.fields(component):
        value = getattr(component, item.name)
        # By identity: 0 equals False.
        off = value is None or value is False or value in ((), ("*",))
        if item.name == "name" or off or (adapts and item.metadata.get("training_only")):
            continue
        text = f"{value}".replace(" ", "")
        if dataclasses.is_dataclass(value):
            inner = described(value)
            text = f"({inner})" if " " in inner else inner
        words.append(f"{item.name}={text}")
    return " ".join(words)
