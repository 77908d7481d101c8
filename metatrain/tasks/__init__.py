"""Task families: one file per family."""

from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.sinusoid import Sinusoid

__all__ = ["FewShot", "Sinusoid"]
