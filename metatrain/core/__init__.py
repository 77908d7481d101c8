"""The vocabulary of the project: every name that two files share is defined here.

A *ticket* names a chunk of tasks. Tasks are a pure function of (seed, ticket), so data never
travels between processes: tickets go out, updates come back. An *update* is a direction for the
meta-parameters to descend.

Shapes: T tasks, S support examples, Q query examples, K inner steps. Everything that belongs to
tasks has a leading T: the tasks themselves, adapted parameters, losses and metrics. Meta-parameters
are shared by the tasks and have none.
"""

from metatrain.core.attacks import FGSM as FGSM
from metatrain.core.attacks import PGD as PGD
from metatrain.core.attacks import Attack as Attack
from metatrain.core.attacks import Part as Part
from metatrain.core.contracts import Algorithm as Algorithm
from metatrain.core.contracts import AnyTable as AnyTable
from metatrain.core.contracts import Corruption as Corruption
from metatrain.core.contracts import Ensemble as Ensemble
from metatrain.core.contracts import Making as Making
from metatrain.core.contracts import Model as Model
from metatrain.core.contracts import Phased as Phased
from metatrain.core.contracts import Pictured as Pictured
from metatrain.core.contracts import RawExamples as RawExamples
from metatrain.core.contracts import RawNumbers as RawNumbers
from metatrain.core.contracts import Resident as Resident
from metatrain.core.contracts import Setting as Setting
from metatrain.core.contracts import TaskFamily as TaskFamily
from metatrain.core.contracts import Ticketed as Ticketed
from metatrain.core.contracts import Units as Units
from metatrain.core.penalty import Penalty as Penalty
from metatrain.core.problems import Acting as Acting
from metatrain.core.problems import Attackable as Attackable
from metatrain.core.problems import Demonstrated as Demonstrated
from metatrain.core.problems import Labelled as Labelled
from metatrain.core.problems import Problem as Problem
from metatrain.core.problems import Recordable as Recordable
from metatrain.core.problems import acting as acting
from metatrain.core.problems import attackable as attackable
from metatrain.core.problems import chunks as chunks
from metatrain.core.problems import demonstrated as demonstrated
from metatrain.core.problems import labelled as labelled
from metatrain.core.problems import recordable as recordable
from metatrain.core.values import KEPT as KEPT
from metatrain.core.values import OWN as OWN
from metatrain.core.values import TRAINING_ONLY as TRAINING_ONLY
from metatrain.core.values import Adapt as Adapt
from metatrain.core.values import ComputePath as ComputePath
from metatrain.core.values import Context as Context
from metatrain.core.values import Member as Member
from metatrain.core.values import Meta as Meta
from metatrain.core.values import Norm as Norm
from metatrain.core.values import Params as Params
from metatrain.core.values import Purpose as Purpose
from metatrain.core.values import Scores as Scores
from metatrain.core.values import Split as Split
from metatrain.core.values import Task as Task
from metatrain.core.values import Ticket as Ticket
from metatrain.core.values import Update as Update
from metatrain.core.values import Work as Work
from metatrain.core.values import arriving as arriving
from metatrain.core.values import count as count
from metatrain.core.values import generator_for as generator_for
from metatrain.core.values import joined as joined
from metatrain.core.values import take as take
from metatrain.core.values import to_device as to_device
from metatrain.core.values import together as together
from metatrain.errors import InputError as InputError
from metatrain.errors import Sentence as Sentence
