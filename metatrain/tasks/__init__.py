"""Task families: one file per family."""

from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.sinusoid import Sinusoid
from metatrain.tasks.sources import open_data

__all__ = ["FewShot", "Sinusoid", "open_data"]
