"""Networks: plain nn.Modules, used as pure functions of their parameters."""

from metatrain.models.conv import Conv, Conv4
from metatrain.models.mlp import MLP

BuiltIn = MLP | Conv4 | Conv  # what a recipe chooses from by `model.name`
