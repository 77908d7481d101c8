"""Task families: one file per family."""

from metatrain.data.sources import open_data as open_data
from metatrain.tasks.bandit import Bandit
from metatrain.tasks.bandit_history import BanditHistory
from metatrain.tasks.cartpole import CartPole
from metatrain.tasks.cipher import Cipher
from metatrain.tasks.delayed_match import DelayedMatch
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.gaussian_process import GaussianProcess
from metatrain.tasks.gymnasium import Gymnasium
from metatrain.tasks.imitation import Imitation
from metatrain.tasks.language import Language
from metatrain.tasks.linear import LinearRegression
from metatrain.tasks.mdp import MDP
from metatrain.tasks.navigation import Navigation
from metatrain.tasks.pushing import Pushing
from metatrain.tasks.series import Series
from metatrain.tasks.sinusoid import Sinusoid
from metatrain.tasks.t_maze import TMaze
from metatrain.tasks.table import Table
from metatrain.tasks.tabular import Tabular, TabularRegression
from metatrain.tasks.text import Texts

# A recipe chooses one by `family.name`.
BuiltIn = (
    Sinusoid
    | FewShot
    | Series
    | Bandit
    | BanditHistory
    | MDP
    | CartPole
    | Gymnasium
    | Navigation
    | Pushing
    | Imitation
    | TMaze
    | DelayedMatch
    | Table
    | Texts
    | Language
    | Cipher
    | GaussianProcess
    | LinearRegression
    | Tabular
    | TabularRegression
)
