"""What Python callers use: train a recipe, open what it left, list and compare runs. In scripts and
in notebooks.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.util
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PosixPath, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    import pandas as pd

    from cluster.comparison import Comparison
    from cluster.config import RunConfig
    from metatrain.inference import Learned
    from metatrain.metrics import Metric
    from metatrain.recipe import Recipe

log = logging.getLogger(__name__)

Tree = dict[str, Any]
FIRST = [
    "metric",
    "mean",
    "ci95",
    "tasks",
    "norm",
    "baselines",
    "protocol",
]  # of a result's columns
COPIES = {"mlartifacts", "mlruns"}  # folders of MLflow's, which hold runs' files once more
MARKS = (
    "config.yaml",
    "metrics.jsonl",
    "result.json",
    "sweep.yaml",
)  # files by which a folder looks like a run's
TAIL = 1 << 16  # bytes of metrics.jsonl that certainly hold its last line


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    resume: str | Path | None = None,
    address: str | None = None,
    **overrides: Any,
) -> Run:
    """Meta-train a recipe, evaluate it, and return its run: `metatrain train`, from Python.

    `recipe` is a YAML file, a dict of the same keys, or the dataclass. `overrides` change keys of
    it: a dotted one is set, as by --set, and a dict is merged into the group that it is given for:

        train("recipes/demo.yaml", outer={"steps": 50}, **{"algorithm.inner_lr": 0.1})

    `resume` is "auto" or a folder to continue, `address` a Ray cluster to join. If Ray is not
    installed, this process computes. Raises InputError for what you can correct. After Ctrl-C, and
    when training cannot go on, the last whole step is saved, and Interrupted, Diverged or
    WorkersLost says how to continue.
    """
    with front_door("metatrain.train(..., resume='auto')"):
        from cluster import run

        check_argument("resume", resume, str | Path | None, "'auto' or a run's folder")
        check_argument("address", address, str | None, "a Ray cluster's address")
        config = _configured(recipe, overrides, address)
        source = str(recipe) if isinstance(recipe, str | Path) else None
        folder, _ = run.train(
            config, address, None if resume is None else str(resume), source=source
        )
    return Run(str(folder))


def runs(folder: str | Path = "runs") -> pd.DataFrame:
    """All runs and sweeps below a folder or an address, the newest first. What is no run is skipped
    with a note.

    `steps` of `of` outer steps are made; `mean` and `ci95` are those of the first score. A sweep is
    one row, with its winner's result; its trials are left out.
    """
    import pandas as pd

    with front_door("metatrain.runs()"):
        rows = []
        for place in _folders(str(folder)):
            try:
                rows.append(_summary(place)._asdict())
            except Exception as error:  # whatever lies there
                reason = (
                    str(error)
                    if isinstance(error, InputError)
                    else f"{type(error).__name__}: {error}"
                )
                log.warning("skipped %s: %s", _printable(place), _printable(reason))
        found = pd.DataFrame(rows, columns=list(Summary._fields))
        found = found.astype(
            {"steps": "Int64", "of": "Int64", "mean": float, "ci95": float, "diverged": "Int64"}
        )
        return found.sort_values("when", ascending=False, kind="stable", ignore_index=True)


class Run:
    """A run's folder, or a sweep's for its winner; it may lie in a storage, and the run may still
    be under way.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder).rstrip("/") or "/"
        self._place = (
            self.folder if storage.is_remote(self.folder) else str(Path(self.folder).absolute())
        )
        self.is_sweep = storage.is_file(f"{self._place}/sweep.yaml")
        if not self.is_sweep and not storage.is_file(f"{self._place}/config.yaml"):
            raise InputError(
                f"{self.folder} holds no run (no config.yaml)",
                remedy=("give a folder that metatrain.runs() lists"),
            )

    @property
    def result(self) -> pd.DataFrame:
        """The scores on the evaluation's tasks, a row for each norm; the first is the result."""
        import pandas as pd

        found = pd.DataFrame(_scores(result_of(self._place)))
        return found[
            [
                *(name for name in FIRST if name in found),
                *(name for name in found if name not in FIRST),
            ]
        ]

    @property
    def metrics(self) -> pd.DataFrame:
        """What was recorded at each outer step, indexed by step."""
        import pandas as pd

        rows = _rows(_read(f"{self._home}/metrics.jsonl") or b"")
        frame = pd.DataFrame(rows, columns=None if rows else ["step"]).apply(
            pd.to_numeric, errors="coerce"
        )
        frame = frame.astype({"step": int}).drop_duplicates("step", keep="last")
        return frame.set_index("step").astype(float).sort_index()

    @property
    def figures(self) -> Figures:
        """The pictures by name: paths that notebooks show."""
        return Figures(f"{self._place}/figures")

    @property
    def config(self) -> RunConfig:
        """The recipe with all its values."""
        from cluster.config import RunConfig
        from metatrain import schema

        return schema.load(RunConfig, f"{self._home}/config.yaml")

    def load(self) -> Learned:
        """What it learned, ready to adapt to examples."""
        from metatrain import inference

        return inference.load(self._place)

    def compare(self, other: Run | str | Path) -> Comparison:
        """The paired difference of the results, `other` minus this one, on the same tasks, with its
        95 % interval.

        Computed in this process. Refuses a run whose evaluation draws other tasks.
        """
        with front_door("metatrain.Run.compare()"):
            from cluster.comparison import compare

            return compare(self.folder, other.folder if isinstance(other, Run) else str(other))

    @property
    def _home(self) -> str:
        """The folder of what was trained: of a sweep, the winner's."""
        return (
            f"{self._place}/trials/{result_of(self._place)['winner']:02d}"
            if self.is_sweep
            else self._place
        )

    def _cells(self) -> list[str]:
        """Name, progress and results, each a few words."""
        try:
            known = _summary(self._place)
            scores = _scores(result_of(self._place)) if known.metric else []
        except Exception as error:  # to look at a run never fails
            return [f"cannot be read ({error})"]
        steps = [] if known.steps is None else [f"{known.steps} of {known.of} steps"]
        results = []
        for s in scores:
            metric = _metric(s)
            text = f"{metric.name} {metric.brief(s['mean'])} ± {metric.brief(s['ci95'])}"
            if s.get("diverged"):
                lost = f"{s['diverged']} of {s['tasks']} tasks diverged"
                text = f"{metric.name} {metric.brief(s['median'])} (median), {lost}"
            results.append(text)
        return [known.name, *steps, *results]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder!r}: {_printable(', '.join(self._cells()))})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<td>{html.escape(_printable(cell))}</td>" for cell in [*self._cells(), self.folder]
        )
        return f"<table><tr>{cells}</tr></table>"


class Picture(PosixPath):
    """The path of a picture, which a notebook shows."""

    folder: storage.Folder  # whose copy of what lies in a storage lives as long as it does

    def _repr_png_(self) -> bytes:
        return self.read_bytes()


class Figures(dict[str, Picture]):
    """Pictures by name, side by side in a notebook."""

    def __init__(self, folder: str) -> None:
        kept = storage.Folder(folder)
        super().__init__((path.stem, Picture(path)) for path in sorted((kept / "").glob("*.png")))
        for picture in self.values():
            picture.folder = kept

    def _repr_html_(self) -> str:
        return "".join(
            f'<figure style="display: inline-block"><img alt="{html.escape(name)}" '
            f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, path in self.items()
        )


class Summary(NamedTuple):
    """A row of `runs`."""

    name: str
    kind: str  # run or sweep
    when: Any  # of its newest record
    steps: int | None  # outer steps that are made; of a sweep, by its winner
    of: int
    metric: str | None
    mean: float  # over the tasks that did not diverge
    ci95: float
    result: str | None  # metric, mean and ci95 as people read them
    diverged: int | None  # tasks
    protocol: str | None
    folder: str


@contextmanager
def front_door(again: str) -> Iterator[None]:
    """Show messages as the command line does, and say errors in a sentence that tells Python
    callers what to do.
    """
    from cluster.collector import Interrupted, WorkersLost
    from metatrain.console import OPTIONAL
    from metatrain.isolation import same_random_numbers
    from metatrain.learner import Diverged

    try:
        with same_random_numbers(), _messages_shown():
            yield
    except InputError as error:
        raise InputError(_in_python(str(error))) from None
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; {again} continues") from None
    except (Diverged, WorkersLost) as error:
        raise type(error)(f"{error}; the last whole step is saved: {again} continues") from error
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise InputError(
            f"{error.name} is not installed", remedy="pip install 'ray[default,tune,train]' optuna"
        ) from error
    except OSError as error:  # a full disk, a folder that cannot be written
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}"
        raise InputError(reason, remedy="give another output") from error


def _in_python(text: str) -> str:
    """What is an option of a command is an argument here."""
    return (
        text.replace("--resume auto", "resume='auto'")
        .replace("--resume", "resume")
        .replace("--address", "address")
    )


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Show what our modules log, unless the caller has chosen what of it to see, and how."""
    ours = [logging.getLogger(name) for name in ("metatrain", "cluster", "tuning")]
    quiet = [logger for logger in ours if logger.level == logging.NOTSET]
    silent = [logger for logger in ours if not logger.hasHandlers()]
    handler = logging.StreamHandler()
    for logger in quiet:
        logger.setLevel(logging.INFO)
    for logger in silent:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in quiet:
            logger.setLevel(logging.NOTSET)
        for logger in silent:
            logger.removeHandler(handler)


def check_argument(name: str, given: Any, kind: Any, expected: str) -> None:
    """Refuse what a command could not be given."""
    if not isinstance(given, kind):
        raise InputError(f"{name} is {_printable(repr(given))}, expected {expected}")


def as_tree(given: Any, what: str) -> tuple[Tree, str]:
    """A recipe or a sweep as plain data of the caller's own, and what errors call it."""
    from metatrain import schema

    if isinstance(given, str | PurePath):
        return schema.read(str(given)), str(given)
    if isinstance(given, Mapping) or (
        dataclasses.is_dataclass(given) and not isinstance(given, type)
    ):
        tree: Tree = plain(given)
        return tree, f"the {what}"
    shown = _printable(repr(given))
    raise InputError(f"the {what} is {shown}, expected a YAML file's path, a dict or the dataclass")


def plain(value: Any) -> Any:
    """Only dicts, lists, numbers and strings, as of a YAML file: arrays, paths and dataclasses
    become such.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    if isinstance(value, PurePath):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's


def change(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Set dotted keys, and merge dicts into the groups that they are given for."""
    from metatrain import schema

    for key, value in plain(overrides).items():
        if "." in key:
            schema.put(tree, key, value)
        else:
            _merge(tree, {key: value})


def _merge(tree: Tree, changes: Tree) -> None:
    for key, value in changes.items():
        before = tree.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            if "name" in value and value["name"] != before.get("name"):
                tree[key] = value  # another algorithm has other keys
            else:
                _merge(before, value)
        else:
            tree[key] = value


def _configured(recipe: Any, overrides: Mapping[str, Any], address: str | None) -> RunConfig:
    from cluster.config import RunConfig
    from metatrain import schema
    from metatrain.recipe import is_sweep

    try:
        tree, source = as_tree(recipe, "recipe")
        change(tree, overrides)
    except RecursionError:
        raise InputError(
            "the recipe holds itself", remedy="give a dict of keys and values"
        ) from None
    if is_sweep(tree):
        raise InputError(f"{source} is a sweep", remedy="metatrain.tune takes it")
    found = schema.parse(RunConfig, tree, source)
    workers = plain(overrides.get("workers"))
    asked = (
        address is not None
        or "workers.max" in overrides
        or (isinstance(workers, dict) and "max" in workers)
    )
    if found.workers.max and not asked and importlib.util.find_spec("ray") is None:
        log.info("ray is not installed: this process computes")
        found = dataclasses.replace(found, workers=dataclasses.replace(found.workers, max=0))
    return found


def _folders(folder: str) -> Iterator[str]:
    """Folders at and below this one that look like a run's or a sweep's; nothing below those."""
    seen: set[str] = set()
    waiting = [folder.rstrip("/") or "/"]
    if not _is_folder(waiting[0]):
        log.warning("there is no folder %s", _printable(folder))
        return
    while waiting:
        place = waiting.pop()
        try:
            real = place if storage.is_remote(place) else os.path.realpath(place)
            if real in seen:
                continue  # by a link that leads back
            seen.add(real)
            files, folders = _children(place)
        except (InputError, OSError, ValueError) as error:
            log.warning("skipped %s: %s", _printable(place), _printable(str(error)))
            continue
        if files.intersection(MARKS):
            yield place
        else:
            inner = sorted(name for name in folders - COPIES if not name.startswith("."))
            waiting += [f"{place}/{name}" for name in reversed(inner)]


def _is_folder(place: str) -> bool:
    return bool(storage.listing(place)) if storage.is_remote(place) else Path(place).is_dir()


def _children(place: str) -> tuple[set[str], set[str]]:
    """Names of a folder's files and folders."""
    if storage.is_remote(place):
        found = [(info.base_name, info.type.name == "Directory") for info in storage.listing(place)]
    else:
        with os.scandir(place) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    return {name for name, is_folder in found if not is_folder}, {
        name for name, is_folder in found if is_folder
    }


def _summary(place: str) -> Summary:
    """What a run's or a sweep's files say; InputError where they are not such."""
    is_sweep = storage.is_file(f"{place}/sweep.yaml")
    config = _yaml(f"{place}/{'recipe' if is_sweep else 'config'}.yaml")
    outer = config.get("outer")
    of = outer.get("steps") if isinstance(outer, dict) else None
    name = (_yaml(f"{place}/sweep.yaml") if is_sweep else config).get("name")
    if not isinstance(name, str) or not isinstance(of, int):
        raise InputError("its config.yaml is not a run's")
    result = result_of(place) if storage.is_file(f"{place}/result.json") else None
    steps: int | None
    if is_sweep:
        made = {row["trial"]: row["step"] for row in result["trials"]} if result else {}
        steps = made[result["winner"]] if result else None
    else:
        rows = _rows((_read(f"{place}/metrics.jsonl") or b"")[-TAIL:])
        steps = max((int(row["step"]) for row in rows), default=0)
    score = _scores(result)[0] if result else {}
    mean, ci95 = (float(score.get(name, math.nan)) for name in ("mean", "ci95"))
    return Summary(
        name,
        "sweep" if is_sweep else "run",
        _when(place),
        steps,
        of,
        score.get("metric"),
        mean,
        ci95,
        f"{score['metric']} {_metric(score).interval(mean, ci95)}" if score else None,
        score.get("diverged"),
        score.get("protocol"),
        place,
    )


def _when(place: str) -> Any:
    """When the newest record was written, in this machine's time."""
    import pandas as pd

    system, path = storage.filesystem(place)
    infos = system.get_file_info([f"{path}/{name}" for name in (*MARKS, "journal.jsonl")])
    newest = max((info.mtime_ns for info in infos if info.mtime_ns is not None), default=None)
    if newest is None:
        return pd.NaT
    return pd.Timestamp(newest, tz="UTC").tz_convert(_zone()).tz_localize(None).floor("s")


def _zone() -> Any:
    from datetime import datetime

    return datetime.now().astimezone().tzinfo


def _read(uri: str) -> bytes | None:
    """A file, or None where there is none."""
    return storage.read(uri) if storage.is_file(uri) else None


def _yaml(uri: str) -> Tree:
    from metatrain import schema

    if not storage.is_file(uri):
        raise InputError(f"it holds no {uri.rpartition('/')[2]}")
    return schema.read(uri)


def result_of(place: str) -> Tree:
    """result.json; InputError where there is none yet, or another file of that name."""
    data = _read(f"{place}/result.json")
    if data is None:
        raise InputError(
            f"{place} has no result yet",
            remedy="train it to its end, with resume='auto' where it has begun",
        )
    try:
        found = _nan_for_null(json.loads(data))
        whole = bool(found["scores"]) and all(
            {"metric", "mean", "ci95"} <= score.keys() for score in found["scores"]
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{place}/result.json is damaged", remedy="train or evaluate again")
    tree: Tree = found
    return tree


def _scores(result: Tree) -> list[Tree]:
    scores: list[Tree] = result["scores"]
    return scores


def _metric(score: Tree) -> Metric:
    """The metric of a recorded score; results of earlier versions do not say how it is shown."""
    from metatrain.metrics import Metric

    return Metric(score["metric"], score.get("better", "max"), score.get("shown", "linear"))


def _nan_for_null(value: Any) -> Any:
    """JSON has no number that is none."""
    if isinstance(value, dict):
        return {key: _nan_for_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return math.nan if value is None else value


def _rows(data: bytes) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    from cluster.output import whole_lines

    return [json.loads(line) for _, line in whole_lines(data)]


def _printable(text: str) -> str:
    """One line without control characters, and not endless."""
    from metatrain.names import printable

    shown = printable(text)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."
