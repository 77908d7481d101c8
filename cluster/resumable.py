"""What a resumed run may change."""

from __future__ import annotations

from cluster.checkpoint import Saved
from cluster.config import RunConfig
from cluster.workers.plan import Plan
from metatrain import schema
from metatrain.aggregation import Private
from metatrain.core import InputError

NOT_LEARNT = {
    "name",
    "workers",
    "checkpoint",
    "tracking",
    "output",
    "evaluation",
    "evaluations",
    "validation.patience",
}  # keys that change nothing learnt
# Numbers by which the privacy spent is counted, as if all steps had had them.
COUNTED = {
    "outer.aggregate.noise_multiplier",
    "outer.aggregate.population",
    "outer.tasks_per_step",
}


def check_resumable(saved: Saved, config: RunConfig, plan: Plan) -> None:
    """Refuse to continue a run as another one: numbers under outer and algorithm may change.

    So may its name, and where and how it is computed.
    """
    was, wanted = saved.config.pretraining is not None, config.pretraining is not None
    if was != wanted:
        raise InputError(
            f"{saved.uri} is of {'a pre-training' if was else 'a run and no pre-training'}",
            remedy="start from it with --init" if was else "give the folder of a pre-training",
        )
    before, now = (dict(schema.flatten(schema.dump(each))) for each in (saved.config, config))
    changed = []
    counted = COUNTED if isinstance(config.outer.aggregate, Private) else set[str]()
    for key in sorted(before.keys() | now.keys(), key=lambda k: (not k.endswith(".name"), k)):
        old, new = before.get(key), now.get(key)
        group = key.split(".")[0]
        # None stands for no limit: a clip_norm, for one, may be set and lifted.
        scalar = (
            group in ("outer", "algorithm")
            and key not in counted
            and {key} <= before.keys() & now.keys()
            and all(v is None or isinstance(v, int | float) for v in (old, new))
        )
        if old != new and not scalar and not {group, key} & NOT_LEARNT:
            raise InputError(
                f"{saved.uri} was trained with {key} = {old!r} and cannot resume with {new!r}",
                remedy="start a new run, as the privacy spent is counted by this number"
                if key in counted
                else "change only numbers under outer and algorithm, or start a new run",
            )
        changed += [key] if old != new and scalar else []
    version = saved.version
    if changed and version >= config.outer.steps:
        raise InputError(
            f"{saved.uri} has made {version} outer steps, so {changed[0]} = {now[changed[0]]} "
            "would change nothing",
            remedy="ask for more outer.steps, or start a new run with another output",
        )
    if saved.plan.path != plan.path:
        raise InputError(
            f"{saved.uri} was computed on the {saved.plan.path} path and this run would use "
            f"{plan.path}",
            remedy="resume with the same workers.gpus",
        )
