"""Meta-learning algorithms: one paper, one file, one frozen dataclass."""

from metatrain.algorithms.adml import ADML
from metatrain.algorithms.adversarial_querying import AdversarialQuerying
from metatrain.algorithms.gail import GAIL
from metatrain.algorithms.generated_parameters import GeneratedParameters
from metatrain.algorithms.imaginary_data import ImaginaryData
from metatrain.algorithms.imaml import IMAML
from metatrain.algorithms.in_context import InContext
from metatrain.algorithms.learned_optimizer import LearnedOptimizer
from metatrain.algorithms.maml import MAML
from metatrain.algorithms.maml_plus_plus import MAMLPlusPlus
from metatrain.algorithms.matching import Matching
from metatrain.algorithms.meta_knowledge import MetaKnowledge
from metatrain.algorithms.meta_lstm import MetaLSTM
from metatrain.algorithms.meta_networks import MetaNetworks
from metatrain.algorithms.meta_sgd import MetaSGD
from metatrain.algorithms.prototypical import Prototypical
from metatrain.algorithms.r2d2 import R2D2
from metatrain.algorithms.recurrent import Recurrent
from metatrain.algorithms.relation import Relation
from metatrain.algorithms.reptile import Reptile
from metatrain.algorithms.ridge import Ridge

# What a recipe chooses from by `algorithm.name`.
BuiltIn = (
    MAML
    | MAMLPlusPlus
    | ADML
    | AdversarialQuerying
    | IMAML
    | GAIL
    | GeneratedParameters
    | InContext
    | ImaginaryData
    | LearnedOptimizer
    | MetaKnowledge
    | MetaLSTM
    | MetaNetworks
    | MetaSGD
    | Matching
    | Prototypical
    | R2D2
    | Recurrent
    | Relation
    | Reptile
    | Ridge
)
