"""Networks: plain nn.Modules, used as pure functions of their parameters."""

from metatrain.models.conv import Conv, Conv4
from metatrain.models.mlp import MLP
from metatrain.models.mobilenet import MobileNet
from metatrain.models.resnet import ResNet12, ResNet18
from metatrain.models.text import ByteMLP, TextBag, TextConv, TextGRU

BuiltIn = (
    MLP | Conv4 | Conv | ResNet12 | ResNet18 | MobileNet | TextBag | TextConv | TextGRU | ByteMLP
)  # what a recipe chooses from by `model.name`
