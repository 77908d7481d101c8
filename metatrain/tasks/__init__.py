"""Task families: one file per family."""

from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.series import Series
from metatrain.tasks.sinusoid import Sinusoid
from metatrain.tasks.sources import open_data as open_data

BuiltIn = Sinusoid | FewShot | Series  # what a recipe chooses from by `family.name`
