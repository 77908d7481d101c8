"""Meta-learning algorithms: one paper, one file, one frozen dataclass."""

from metatrain.algorithms.maml import MAML
from metatrain.algorithms.reptile import Reptile

__all__ = ["MAML", "Reptile"]
