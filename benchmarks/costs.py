"""What a training task costs by each method of `metatrain algorithms`, times first-order MAML's.

5-way 1-shot tasks of invented characters with 5 queries a class; four blocks of 32 filters; five
inner steps if a method has any. The processor time of the fastest of several tickets of 4 tasks, in
one process of one thread, the methods in turns:

    python benchmarks/costs.py

Methods that learn no images are left out.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cluster.config import RunConfig  # noqa: E402
from cluster.workers.plan import choose_plan  # noqa: E402
from cluster.workers.worker import Worker  # noqa: E402
from metatrain import schema  # noqa: E402
from metatrain.core import Ticket  # noqa: E402
from metatrain.methods import ANY, CLASSES, LABELLED, METHODS, Method  # noqa: E402
from metatrain.start import prepare  # noqa: E402

TASKS, TURNS = 4, 4
STEPS = {"inner_lr": 0.4, "inner_steps": 5}
NUMBERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("maml", "maml_plus_plus", "imaml", "reptile"), STEPS),
    **dict.fromkeys(("generated_parameters", "meta_knowledge"), STEPS),
    "adml": STEPS | {"epsilon": 8},
    "adversarial_querying": {"learner": {"name": "maml"} | STEPS},
    "meta_sgd": {"initial_lr": 0.4, "inner_steps": 5},
    "meta_lstm": {"inner_steps": 5},
    "learned_optimizer": {"inner_steps": 5},
}


def worker(method: Method) -> Worker:
    """A worker that computes a method's tickets."""
    algorithm = {**method.algorithm, **NUMBERS.get(method.algorithm["name"], {})}
    tree = {
        "name": "costs",
        "family": {"name": "fewshot", "data": "glyphs", "queries": 5},
        "model": {"name": "conv4", "filters": 32, "pool": "stride", "head": {"name": method.head}},
        "algorithm": algorithm,
        "outer": {"steps": 1, "tasks_per_step": TASKS, "tasks_per_ticket": TASKS, "lr": 0.001},
    }
    prepared = prepare(schema.parse(RunConfig, tree, "costs").recipe())
    made = Worker(prepared, choose_plan(prepared, 0, 1)[0])
    made.load(0, made.layout.flatten(prepared.meta))
    return made


def main() -> None:
    methods = [method for method in METHODS if method.needs in (ANY, LABELLED, CLASSES)]
    workers = {method.name: worker(method) for method in methods}
    seconds = dict.fromkeys(workers, float("inf"))
    for turn in range(TURNS):
        for name, made in workers.items():
            ticket = Ticket("update", "train", turn, 0)
            made.draw(ticket)
            start = time.process_time()
            made.compute(ticket)
            seconds[name] = min(seconds[name], time.process_time() - start)
    first = seconds["first-order MAML"]
    print(f"first-order MAML: {1000 * first / TASKS:.1f} ms a task")
    for method in methods:
        cost = seconds[method.name] / first
        print(f"{method.name:24} {cost:5.2f}   the table says {method.cost:.1f}")


if __name__ == "__main__":
    main()
