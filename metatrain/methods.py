"""All methods in one table: what each needs and costs, and when to choose it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Method(NamedTuple):
    """A method as a recipe has it, and when to choose it."""

    name: str
    family: Literal["optimisation", "metric", "model"]
    paper: str
    algorithm: Mapping[str, Any]  # in a recipe, without its numbers
    needs: str  # of the tasks
    cost: float  # of a training task, times first-order MAML's: benchmarks/costs.py
    when: str
    head: str = "linear"  # of the network, by its name

    def row(self) -> tuple[str, ...]:
        """The method as `metatrain algorithms` shows it."""
        keys = ", ".join(f"{key}: {_text(value)}" for key, value in self.algorithm.items())
        head = "" if self.head == "linear" else f", head {self.head}"
        return (
            self.name,
            self.family,
            self.paper,
            self.needs + head,
            f"{self.cost:.1f}",
            self.when,
            f"{{{keys}}}",
        )


def _text(value: Any) -> str:
    """A value as YAML."""
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value).lower()


ANY, LABELLED, CLASSES = "any tasks", "labelled examples", "classes"
DEMONSTRATIONS = "demonstrations"
ACTIONS = "episodes of a few actions"
METHODS = (
    Method(
        "MAML",
        "optimisation",
        "Finn et al. 2017",
        {"name": "maml"},
        ANY,
        1.9,
        "a few gradient steps must fit any network and loss",
    ),
    Method(
        "first-order MAML",
        "optimisation",
        "Finn et al. 2017",
        {"name": "maml", "first_order": True},
        ANY,
        1.0,
        "MAML takes too long or too much memory",
    ),
    Method(
        "ANIL",
        "optimisation",
        "Raghu et al. 2020",
        {"name": "maml", "adapts": ["head.*"]},
        ANY,
        0.9,
        "features fit all tasks, and only the last layer differs",
    ),
    Method(
        "MAML++",
        "optimisation",
        "Antoniou et al. 2019",
        {"name": "maml_plus_plus"},
        ANY,
        3.1,
        "MAML of several steps trains unsteadily",
    ),
    Method(
        "iMAML",
        "optimisation",
        "Rajeswaran et al. 2019",
        {"name": "imaml"},
        LABELLED,
        2.4,
        "the graph of many inner steps does not fit into memory",
    ),
    Method(
        "Meta-SGD",
        "optimisation",
        "Li et al. 2017",
        {"name": "meta_sgd"},
        ANY,
        2.0,
        "one step has to do, and inner rates are hard to choose",
    ),
    Method(
        "ADML",
        "optimisation",
        "Yin et al. 2018",
        {"name": "adml"},
        CLASSES,
        4.0,
        "images may be attacked, support images as well",
    ),
    Method(
        "Adversarial querying",
        "optimisation",
        "Goldblum et al. 2020",
        {"name": "adversarial_querying"},
        CLASSES,
        4.5,
        "images to classify may be attacked; of a learner such as MAML or R2-D2",
    ),
    Method(
        "Reptile",
        "optimisation",
        "Nichol et al. 2018",
        {"name": "reptile"},
        ANY,
        1.1,
        "tasks have many examples, and inner loops are long",
    ),
    Method(
        "Meta-knowledge vector",
        "optimisation",
        "Finn et al. 2017, appendix C",
        {"name": "meta_knowledge"},
        ANY,
        70.0,
        "averaged models of single tasks are what is to be compared with: MAML is better",
    ),
    Method(
        "Prototypical networks",
        "metric",
        "Snell et al. 2017",
        {"name": "prototypical"},
        CLASSES,
        0.5,
        "new tasks must be learned in one forward pass, also of other numbers of classes",
    ),
    Method(
        "Imaginary data",
        "metric",
        "Wang et al. 2018",
        {"name": "imaginary_data"},
        CLASSES,
        1.1,
        "support images are to be made; on Omniglot, prototypical networks are better without",
    ),
    Method(
        "Matching networks",
        "metric",
        "Vinyals et al. 2016",
        {"name": "matching"},
        CLASSES,
        0.5,
        "the examples of a class look unlike each other: a query is compared with each",
        "attention",
    ),
    Method(
        "Relation networks",
        "metric",
        "Sung et al. 2018",
        {"name": "relation"},
        CLASSES,
        0.6,
        "no fixed distance fits: it is learned",
        "pairs",
    ),
    Method(
        "R2-D2",
        "metric",
        "Bertinetto et al. 2019",
        {"name": "ridge"},
        CLASSES,
        0.5,
        "classes have several examples, and adapting must not take steps",
    ),
    Method(
        "Memory (LSTM, GRU)",
        "model",
        "Hochreiter et al. 2001",
        {"name": "recurrent"},
        ANY,
        2.2,
        "examples come one after another: series, functions; episodes (RL2)",
        "memory",
    ),
    Method(
        "R2D2",
        "model",
        "Kapturowski et al. 2019",
        {"name": "r2d2"},
        ACTIONS,
        3.5,  # on T-mazes
        "episodes are dear and must be learned from again, and what was seen must be remembered",
        "memory",
    ),
    Method(
        "MANN",
        "model",
        "Santoro et al. 2016",
        {"name": "recurrent"},
        ANY,
        5.1,
        "a sequence has more to remember than an LSTM holds",
        "mann",
    ),
    Method(
        "SNAIL",
        "model",
        "Mishra et al. 2018",
        {"name": "recurrent", "losses": "last"},
        ANY,
        5.1,
        "examples come one after another, and their order or number is not fixed",
        "snail",
    ),
    Method(
        "In-context transformer",
        "model",
        "Müller et al. 2022",
        {"name": "in_context"},
        LABELLED,
        0.9,
        "training tasks can be drawn without end, such as from a prior; predictions are calibrated",
        "transformer",
    ),
    Method(
        "Meta-LSTM",
        "model",
        "Ravi and Larochelle 2017",
        {"name": "meta_lstm"},
        ANY,
        14.0,
        "the optimizer itself is to be learned",
    ),
    Method(
        "Learned optimizer",
        "model",
        "Andrychowicz et al. 2016",
        {"name": "learned_optimizer"},
        ANY,
        7.1,
        "networks of several sizes are to be trained from scratch, in few steps",
    ),
    Method(
        "GAIL",
        "optimisation",
        "Ho and Ermon 2016",
        {"name": "gail"},
        DEMONSTRATIONS,
        8.3,  # on demonstrations, with five inner steps of both
        "an expert is to be imitated in an environment that one may act in, without rewards",
    ),
    Method(
        "Generated parameters",
        "model",
        "Ha et al. 2017",
        {"name": "generated_parameters"},
        LABELLED,
        2.4,
        "a first guess from the support set is to save gradient steps",
    ),
    Method(
        "Meta networks",
        "model",
        "Munkhdalai and Yu 2017",
        {"name": "meta_networks"},
        CLASSES,
        12.0,
        "weights are to follow from gradients without steps of descent",
        "fast",
    ),
)
