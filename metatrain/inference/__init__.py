"""Uses a trained run: adapt to a few labelled examples, predict others."""

from metatrain.inference.adapted import Adapted as Adapted
from metatrain.inference.learned import Learned as Learned
from metatrain.inference.learned import illustrate as illustrate
from metatrain.inference.learned import illustrate_made as illustrate_made
from metatrain.inference.learned import load as load
from metatrain.inference.learned import takes_examples as takes_examples
from metatrain.inference.predictions import Numbers as Numbers
from metatrain.inference.predictions import Predictions as Predictions
