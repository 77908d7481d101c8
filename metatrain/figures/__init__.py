"""Pictures of runs, from plain data. A function returns a matplotlib figure; `save` writes it."""

from metatrain.figures.boundary import boundary as boundary
from metatrain.figures.classified import calibration as calibration
from metatrain.figures.classified import confusion as confusion
from metatrain.figures.classified import reliability as reliability
from metatrain.figures.comparisons import Interval as Interval
from metatrain.figures.comparisons import comparison as comparison
from metatrain.figures.curves import adaptation_curve as adaptation_curve
from metatrain.figures.curves import learned_parameters as learned_parameters
from metatrain.figures.curves import learning_curve as learning_curve
from metatrain.figures.curves import pretraining_curve as pretraining_curve
from metatrain.figures.evaluations import evaluations as evaluations
from metatrain.figures.images import episode as episode
from metatrain.figures.images import made_images as made_images
from metatrain.figures.regret import trial_and_regret as trial_and_regret
from metatrain.figures.seeds import over_seeds as over_seeds
from metatrain.figures.style import as_written as as_written
from metatrain.figures.style import logarithmic as logarithmic
from metatrain.figures.style import save as save
from metatrain.figures.style import scale as scale
from metatrain.figures.tasks import agreement as agreement
from metatrain.figures.tasks import fits as fits
from metatrain.figures.tasks import forecasts as forecasts
from metatrain.figures.tasks import trial as trial
from metatrain.figures.tasks import walks as walks
from metatrain.figures.tasks import when as when
