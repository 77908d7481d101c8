"""Meta-gradients against peers: a worker, a handwritten loop and `higher`, in turns.

    pip install -e '.[bench]'
    python benchmarks/peers.py [W1 W6 ...] [--rounds 7]

All compute the same function in one thread: before anything is timed, the updates are compared in
float64. Ours is what a worker does for a ticket, the drawing of tasks included, on the path that
the driver would choose; peers get tensors that are ready. W1 to W7 are workloads of the few-shot
papers, O1 is the MAML paper's Omniglot recipe, R1 and R2 are a ResNet-12. learn2learn, TorchOpt,
torchmeta and `higher` were measured within 5 to 9 % of each other on such networks, so that
`higher`, which installs, stands for them. The share is of the floating-point operations of the
plain loop at the machine's GEMM peak.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import higher
import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from workloads import TICKET, WORKLOADS, Workload

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import start
from metatrain.algorithms import MAML, Prototypical, Reptile, inner_loop
from metatrain.core import Context, Meta, Task, generator_for, take
from metatrain.models.conv import Conv4
from metatrain.tasks import Sinusoid

Named = dict[str, Tensor]


class UsualConv4(nn.Module):
    """Conv4 as the peers' examples write it; the epsilon is ours, so that the function is."""

    def __init__(self, model: Conv4, ways: int) -> None:
        super().__init__()
        self.model = model
        strided = model.pool == "stride"
        for i, narrow in enumerate((1, 64, 64, 64), 1):
            setattr(self, f"conv{i}", nn.Conv2d(narrow, 64, 3, 2 if strided else 1, 1))
            norm = nn.BatchNorm2d(64, eps=1e-3, track_running_stats=False)
            norm.weight.requires_grad_(model.norm_scale)
            setattr(self, f"norm{i}", norm)
        self.fc = nn.Linear(64, ways)

    def features(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = F.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
            x = F.max_pool2d(x, 2) if self.model.pool == "max" else x
        return x.mean((2, 3)) if self.model.features == "mean" else x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def theirs(workload: Workload, meta: Meta) -> tuple[nn.Module, dict[str, str]]:
    """The usual network with our parameters, and our names of the parameters that both have."""
    if not isinstance(workload.model, Conv4):
        net = workload.model.module(_inputs(workload), _outputs(workload), 0)
        names = {name: name for name, _ in net.named_parameters() if name in meta.model}
    else:
        net = UsualConv4(workload.model, _outputs(workload))
        names = {f"conv{i + 1}.weight": f"body.{i}.conv.weight" for i in range(4)}
        names |= {f"norm{i + 1}.bias": f"body.{i}.norm.shift" for i in range(4)}
        if workload.model.norm_scale:
            names |= {f"norm{i + 1}.weight": f"body.{i}.norm.scale" for i in range(4)}
        names |= {f"fc.{kind}": f"head.{kind}" for kind in ("weight", "bias")}
        if isinstance(workload.algorithm, Prototypical):
            names = {name: ours for name, ours in names.items() if not name.startswith("fc.")}
    with torch.no_grad():
        for name, ours in names.items():
            net.get_parameter(name).copy_(meta.model[ours])
    return net, names


def _inputs(workload: Workload) -> tuple[int, ...]:
    if isinstance(workload.family, Sinusoid):
        return (1,)
    task = workload.family.sample(generator_for(0, TICKET, "tasks"), 1, "train")
    return tuple(task.support_x.shape[2:])


def _outputs(workload: Workload) -> int:
    return 1 if isinstance(workload.family, Sinusoid) else workload.family.ways


def loss_of(workload: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    return F.mse_loss if isinstance(workload.family, Sinusoid) else F.cross_entropy


def adapting(workload: Workload, names: dict[str, str]) -> list[str]:
    """The usual network's names of what the inner loop changes."""
    patterns = workload.algorithm.adapts if isinstance(workload.algorithm, MAML) else ("*",)
    chosen = inner_loop.adapting(list(names.values()), patterns)
    return [name for name, ours in names.items() if ours in chosen]


def handwritten(
    workload: Workload, net: nn.Module, names: dict[str, str], tasks: list[Task]
) -> Callable[[], Named]:
    """A plain loop over tasks: functional_call, autograd.grad, a backward pass for each task."""
    return partial(
        {MAML: _plain_maml, Reptile: _plain_reptile, Prototypical: _plain_prototypical}[
            type(workload.algorithm)
        ],
        workload,
        net,
        names,
        tasks,
    )


def _plain_maml(
    workload: Workload, net: nn.Module, names: dict[str, str], tasks: list[Task]
) -> Named:
    algorithm, loss_fn, inner = workload.algorithm, loss_of(workload), adapting(workload, names)
    start = {name: p for name, p in net.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in start.items()}
    for task in tasks:
        params = dict(start)
        for _ in range(algorithm.inner_steps):
            loss = loss_fn(functional_call(net, params, (task.support_x,)), task.support_y)
            wanted = [params[name] for name in inner]
            gradient = torch.autograd.grad(loss, wanted, create_graph=not algorithm.first_order)
            for name, g in zip(inner, gradient, strict=True):
                params[name] = params[name] - algorithm.inner_lr * g
        loss = loss_fn(functional_call(net, params, (task.query_x,)), task.query_y) / len(tasks)
        for name, g in zip(start, torch.autograd.grad(loss, list(start.values())), strict=True):
            total[name] += g
    return total


def _plain_reptile(
    workload: Workload, net: nn.Module, names: dict[str, str], tasks: list[Task]
) -> Named:
    algorithm, generator = workload.algorithm, _context().generator
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for task in tasks:
        learner = copy.deepcopy(net)
        optimizer = torch.optim.Adam(
            learner.parameters(), lr=algorithm.inner_lr, betas=(0.0, 0.999)
        )
        batches = inner_loop.minibatches(
            len(task.support_y), algorithm.inner_batch, algorithm.inner_steps, 1, generator
        )
        for batch in batches[:, 0]:
            optimizer.zero_grad()
            F.cross_entropy(learner(task.support_x[batch]), task.support_y[batch]).backward()
            optimizer.step()
        for (name, p), adapted in zip(net.named_parameters(), learner.parameters(), strict=True):
            total[name] += (p - adapted).detach() / len(tasks)
    return total


def _plain_prototypical(
    workload: Workload, net: nn.Module, names: dict[str, str], tasks: list[Task]
) -> Named:
    net.zero_grad(set_to_none=False)
    ways, shots = workload.family.ways, workload.family.shots
    features = net.features if isinstance(net, UsualConv4) else net.body
    for task in tasks:
        prototypes = features(task.support_x).unflatten(0, (ways, shots)).mean(1)
        distance = (features(task.query_x)[:, None] - prototypes).square().sum(-1)
        (F.cross_entropy(-distance, task.query_y) / len(tasks)).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def with_higher(
    workload: Workload, net: nn.Module, names: dict[str, str], tasks: list[Task]
) -> Named:
    """The loop of higher's own example."""
    algorithm, loss_fn, order = (
        workload.algorithm,
        loss_of(workload),
        1 if workload.algorithm.first_order else 2,
    )
    wanted = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(
        [wanted[name] for name in adapting(workload, names)], lr=algorithm.inner_lr
    )
    total = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for task in tasks:
        options = {"copy_initial_weights": False, "track_higher_grads": order == 2}
        with higher.innerloop_ctx(net, optimizer, **options) as (learner, inner):
            for _ in range(algorithm.inner_steps):
                inner.step(loss_fn(learner(task.support_x), task.support_y))
            loss = loss_fn(learner(task.query_x), task.query_y) / len(tasks)
            at = list(wanted.values())
            if order == 1:
                at = [
                    p
                    for (name, _), p in zip(
                        net.named_parameters(), learner.parameters(), strict=True
                    )
                    if name in wanted
                ]
            for name, g in zip(wanted, torch.autograd.grad(loss, at), strict=True):
                total[name] += g
    return total


def _context() -> Context:
    return Context(TICKET, generator_for(0, TICKET, "adaptation"))


class Prepared(NamedTuple):
    candidates: dict[str, Callable[[], Any]]
    path: str
    gflop: float  # of the plain loop, a task


def one_by_one(tasks: Any, count: int) -> list[Task]:
    """Each task by itself; an episode of classes has more than a peer needs."""
    return [Task(*(leaf[0] for leaf in take(tasks, i)[:4])) for i in range(count)]


def prepare(workload: Workload) -> Prepared:
    """The candidates, once they have been seen to agree in float64."""
    recipe = workload.recipe()
    prepared = start.prepare(recipe)
    plan, _ = choose_plan(prepared, gpus=0, threads=1)
    worker, meta = Worker(prepared, plan), prepared.meta
    worker.load(0, worker.layout.flatten(meta))
    drawn = workload.family.sample(generator_for(0, TICKET, "tasks"), workload.tasks, "train")
    problem = workload.family.bind(workload.model, ("transductive",), plan.path)
    floats = drawn._replace(
        support_x=problem.to_float(drawn.support_x), query_x=problem.to_float(drawn.query_x)
    )
    tasks = one_by_one(floats, workload.tasks)
    net, names = theirs(workload, meta)

    few = min(workload.tasks, 2)  # for the comparison
    exact = type(drawn)(
        *(leaf[:few].double() if leaf.is_floating_point() else leaf[:few] for leaf in floats)
    )
    ours = workload.algorithm.update(
        _exact(problem),
        Meta(*({k: p.double() for k, p in part.items()} for part in meta)),
        exact,
        _context(),
    ).direction.model
    peers = {"handwritten": handwritten}
    if isinstance(workload.algorithm, MAML):
        peers["higher"] = lambda *arguments: partial(with_higher, *arguments)
    for name, peer in peers.items():
        found = peer(workload, copy.deepcopy(net).double(), names, one_by_one(exact, few))()
        for theirs_name, ours_name in names.items():
            assert (found[theirs_name] - ours[ours_name]).norm() <= 1e-10 * ours[
                ours_name
            ].norm(), (name, ours_name)
    with FlopCounterMode(display=False) as counter:
        handwritten(workload, net, names, tasks[:1])()
    candidates = {"ours": lambda: worker.compute(TICKET)}
    candidates |= {name: peer(workload, net, names, tasks) for name, peer in peers.items()}
    return Prepared(candidates, plan.path, counter.get_total_flops() / 1e9)


def _exact(problem: Any) -> Any:
    """The problem for float64 examples that are ready."""
    problem = copy.copy(problem)
    object.__setattr__(problem, "to_float", lambda x: x)
    return problem


PEERS = ("ours", "handwritten", "higher")
MEASURED = {"W1": 16, "W6": 4, "R1": 2, "R2": 2}  # tasks of the ticket whose memory is measured


def memory(names: Sequence[str]) -> list[list[str]]:
    """Added peak memory of a ticket, each measured in a process of its own."""
    rows = []
    for name in names:
        found = {}
        for candidate in prepare(WORKLOADS[name]).candidates:
            command = [sys.executable, __file__, "--peak", f"{name}/{candidate}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[candidate] = float(done.stdout)
        cells = [f"{found[who]:.0f} MB" if who in found else "" for who in PEERS]
        least = min(mb for who, mb in found.items() if who != "ours")
        rows.append([name, str(MEASURED[name]), *cells, f"{found['ours'] / least:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=[], help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="higher")
    torch.set_num_threads(1)
    if arguments.peak:
        name, candidate = arguments.peak.split("/")
        workload = WORKLOADS[name]._replace(tasks=MEASURED[name])
        run = prepare(workload).candidates[candidate]
        print(measure.peak_mb(run))
        return
    peak = measure.gemm_peak()
    rows = []
    for name in arguments.workloads or WORKLOADS:
        workload = WORKLOADS[name]
        prepared = prepare(workload)
        times = measure.in_turns(prepared.candidates, arguments.rounds)
        medians = {who: sorted(t.wall_s)[len(t.wall_s) // 2] for who, t in times.items()}
        best = min((who for who in times if who != "ours"), key=medians.__getitem__)
        per_s = {who: workload.tasks / s for who, s in medians.items()}
        wall, cpu = (
            measure.ratio(getattr(times["ours"], k), getattr(times[best], k))
            for k in ("wall_s", "cpu_s")
        )
        rows.append(
            [
                name,
                workload.what,
                prepared.path,
                f"{per_s['ours']:.4g}",
                f"{per_s[best]:.4g} ({best})",
                f"{wall:.2f}",
            ]
            + [f"{cpu:.2f}", f"{workload.must}", f"{prepared.gflop:.3g}"]
            + [f"{100 * prepared.gflop * per_s[who] / peak:.0f} %" for who in ("ours", best)]
        )
        print(*rows[-1], sep="  ", flush=True)
    header = [
        "",
        "workload",
        "path",
        "tasks/s",
        "best peer",
        "ratio",
        "processor time",
        "goal",
        "GFLOP/task",
    ]
    text = f"{measure.machine('higher')}; one thread; GEMM peak {peak:.0f} GFLOP/s\n\n"
    text += measure.table([*header, "share of peak", "peer's share"], rows)
    wanted = [name for name in MEASURED if name in (arguments.workloads or WORKLOADS)]
    if wanted:
        text += "\n\nPeak memory that a ticket adds\n\n"
        text += measure.table(["", "tasks", *PEERS, "ours by the least"], memory(wanted))
    measure.write("peers", text)


if __name__ == "__main__":
    main()
