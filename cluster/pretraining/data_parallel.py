"""Data-parallel pre-training by Ray Train: its workers share the parts of each step.

Each worker computes the gradients of some parts, gets those of the others, and takes the same step
as all of them. The worker of rank 0 reports checkpoints. If a worker is lost, Ray Train starts all
again from the newest checkpoint.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from cluster import checkpoint
from cluster.collector import Interrupted
from cluster.config import RunConfig, Workers
from cluster.output import absolute
from cluster.pools.ray_connection import connected
from cluster.ready import Run, checkpoints_of, restore
from cluster.workers.plan import Plan, device_of
from metatrain import pretraining, storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError, Update, to_device
from metatrain.isolation import isolated
from metatrain.learner import Applied, Diverged, Learner
from metatrain.recipe import own_code
from metatrain.start import prepare

FAILURES = 3  # of workers, after which a pre-training ends
SENT_EVERY_S = 0.5

Steps = list[tuple[int, Applied]]


class Job(NamedTuple):
    """What Ray Train's workers get."""

    config: RunConfig
    plan: Plan
    notes: dict[str, str]
    root: str  # of the checkpoints
    start: str | None  # the checkpoint to start from
    said: Any  # the queue for what rank 0 has to say: steps, or an error


def learn(
    run: Run,
    task: pretraining.Supervision,
    on_step: Callable[[int, Applied], None],
    should_stop: Callable[[], bool],
    address: str | None,
) -> None:
    """Take the steps that are left, and leave the last one's checkpoint.

    Raises Interrupted as soon as somebody asks it to stop: the newest checkpoint stays.
    """
    whole = address is not None
    with connected(address, own_code(run.prepared.recipe, whole=whole)):
        from ray.util.queue import Empty, Queue

        said = Queue(actor_options={"num_cpus": 0})
        root = absolute(checkpoints_of(run))  # workers are in other folders
        job = Job(run.config, run.plan, run.notes, root, checkpoint.latest(root), said)
        ended: list[Exception | None] = []
        threading.Thread(target=_fit, args=(job, task.outer.tickets(), ended), daemon=True).start()
        with ExitStack() as starting:
            starting.enter_context(awaiting("starting Ray Train's workers"))
            while True:
                is_over = bool(ended)
                try:
                    found = said.get(timeout=SENT_EVERY_S)
                except Empty:
                    if is_over:
                        break
                    found = []
                if isinstance(found, Exception):
                    raise found
                for version, applied in found:
                    starting.close()
                    on_step(version, applied)
                if should_stop():
                    raise Interrupted
        if ended[0] is not None:
            raise ended[0]


def _fit(job: Job, parts: int, ended: list[Exception | None]) -> None:
    """Let Ray Train train, and note how that ended."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers, (system, path) = job.config.workers, storage.filesystem(job.root)
    place, _, name = path.rpartition("/")
    each = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    try:
        # Ray's own list of the checkpoints would name some that are gone.
        storage.remove(f"{job.root}/checkpoint_manager_snapshot.json")
        TorchTrainer(
            _train,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=min(parts, _room(workers)),
                use_gpu=workers.gpus > 0,
                resources_per_worker=each,
            ),
            run_config=train.RunConfig(
                name=name,
                storage_path=place,
                storage_filesystem=system,
                failure_config=train.FailureConfig(max_failures=FAILURES),
                checkpoint_config=train.CheckpointConfig(num_to_keep=job.config.checkpoint.keep),
            ),
        ).fit()
        ended.append(None)
    except TrainingFailedError as error:
        first = next(iter(getattr(error, "worker_failures", {}).values()), error)
        reason = " ".join(str(first).split())[-300:]
        ended.append(
            InputError(
                f"Ray Train ended the pre-training ({reason})",
                remedy="see the newest logs of Ray, or set workers.max to 0",
            )
        )
    except Exception as error:
        ended.append(error)


def _room(workers: Workers) -> int:
    """How many workers the cluster has room for now: at least one, which may have to wait."""
    import ray

    free = ray.available_resources()
    each = (("CPU", workers.cpus), ("GPU", workers.gpus))
    fitting = [int(free.get(kind, 0.0) // value) for kind, value in each if value]
    return max(1, min([workers.max, *fitting]))


def _train(given: Mapping[str, Any]) -> None:
    """Take the steps in a worker of Ray Train."""
    from ray import train
    from torch import distributed

    job: Job = given["job"]
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()

    def exchange(own: Mapping[int, Update]) -> Mapping[int, Update]:
        gathered: list[Any] = [None] * workers
        here = {part: _on(update, torch.device("cpu")) for part, update in own.items()}
        distributed.all_gather_object(gathered, here)
        return {part: _on(u, device) for each in gathered for part, u in each.items()}

    with isolated(job.config.workers.threads):
        device = device_of(job.plan)
        task = pretraining.supervision(prepare(job.config.recipe()), job.plan.path)
        learner = Learner(to_device(task.meta, device), task.outer, job.config.seed)
        newest = train.get_checkpoint()
        start = job.start if newest is None else f"{job.root}/{newest.path.rpartition('/')[2]}"
        if start is not None:
            restore(learner, checkpoint.load(start))
        steps, sent = Steps(), time.monotonic()
        try:
            for applied in pretraining.learn(task, learner, exchange, rank, workers):
                steps.append((learner.version, applied))
                is_due = (
                    learner.version % job.config.checkpoint.every_steps == 0
                    or learner.version == task.keys.steps
                )
                if rank == 0 and (is_due or time.monotonic() - sent > SENT_EVERY_S):
                    job.said.put(steps)
                    steps, sent = Steps(), time.monotonic()
                if is_due:
                    _report(job, learner, rank, applied.metrics)
        except Diverged as error:  # all workers have it, and would have it again
            if rank == 0:
                job.said.put(error)


def _report(job: Job, learner: Learner, rank: int, metrics: dict[str, float]) -> None:
    """Hand a checkpoint to Ray Train, which keeps it where those of a run are."""
    from ray import train

    if rank > 0:
        train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        uri = checkpoint.save(folder, job.config, job.plan, learner, job.notes, 1)
        name = uri.rpartition("/")[2]
        train.report(metrics, train.Checkpoint.from_directory(uri), checkpoint_dir_name=name)


def _on(update: Update, device: torch.device) -> Update:
    return update._replace(direction=to_device(update.direction, device))
