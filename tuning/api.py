"""Sweeps from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.api.arguments import as_tree, change, plain
from cluster.api.files import read_result
from cluster.api.front_door import check_argument, front_door
from cluster.api.run import Run
from metatrain.core import InputError

if TYPE_CHECKING:
    import pandas as pd

    from tuning.config import Sweep
    from tuning.search import Search


class SweepRun(Run):
    """A sweep's folder: the winner's run, and all trials."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        if not self.is_sweep:
            raise InputError(
                f"{self.folder} holds a run and no sweep", remedy="open it with metatrain.Run"
            )

    @property
    def trials(self) -> pd.DataFrame:
        """The trials, best first, with their values, validation and diverged validation tasks.

        A trial with diverged tasks comes after trials without, whatever the mean over its other
        tasks is.
        """
        import pandas as pd

        return pd.DataFrame(read_result(self._place)["trials"]).set_index("trial")

    @property
    def chosen_by(self) -> str:
        """The protocol of the validation by which the winner was chosen."""
        return str(read_result(self._place)["chosen_by"])

    def _cells(self) -> list[str]:
        cells = super()._cells()
        try:
            result = read_result(self._place)
            values = (
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in result["values"].items()
            )
            return [*cells, f"winner: trial {result['winner']} ({', '.join(values)})"]
        except (InputError, KeyError, AttributeError):
            return cells  # a look at a sweep never fails


def tune(
    sweep: str | Path | Mapping[str, Any] | Sweep,
    *,
    resume: str | Path | None = None,
    address: str | None = None,
    **overrides: Any,
) -> SweepRun:
    """Search a recipe's keys with Ray Tune, test the winner, and return its run.

    This is `metatrain tune`, from Python.

    sweep: a YAML file, a dict of the same keys, or the dataclass. The `recipe` of a dict may be a
        file, a dict or the dataclass.
    resume: "auto" resumes the sweep in its output if there is one; else the folder of a sweep.
    address: a Ray cluster to join.
    overrides: keys of the sweep to change, as of `metatrain.train`; a dict for `space` replaces the
        ranges of its keys:

        tune("recipes/sweeps/sinusoid_rates.yaml", budget={"trials": 4})

    Raises InputError for what you can correct, and Interrupted after Ctrl-C, which says how to
    resume.
    """
    with front_door("metatrain.tune(..., resume='auto')"):
        from tuning import sweep as sweeps

        check_argument("resume", resume, str | Path | None, "'auto' or a sweep's folder")
        check_argument("address", address, str | None, "a Ray cluster's address")
        continued = None if resume is None else str(resume)
        search = _search(sweep, overrides, continued)
        sweeps.start(search, address, resume=continued)
    return SweepRun(str(search.folder).removeprefix(f"{Path.cwd()}/"))


def _search(given: Any, overrides: Mapping[str, Any], resume: str | None) -> Search:
    from metatrain import schema
    from tuning import config
    from tuning.config import Sweep
    from tuning.search import resolve

    try:
        tree, source = as_tree(given, "sweep")
        if config.is_recipe(tree):
            raise InputError(f"{source} is a recipe", remedy="give it to metatrain.train")
        changes = dict(overrides)
        ranges = plain(changes.pop("space", {}))
        if isinstance(tree.get("space"), dict) and isinstance(ranges, dict):
            tree["space"] |= ranges  # not merged with another kind of range
        elif ranges:
            tree["space"] = ranges
        change(tree, changes)
        recipe = tree.get("recipe")
        if isinstance(recipe, dict):
            keys, name = recipe, "its recipe"
            tree["recipe"] = "recipe.yaml"  # as which the sweep's folder has it
        parsed = config.in_folder(schema.parse(Sweep, tree, source), resume, overrides)
        if not isinstance(recipe, dict):
            beside = [Path(source).parent / parsed.recipe] if isinstance(given, str | Path) else []
            places = [*beside, Path(parsed.recipe)]
            keys, name = as_tree(
                next((place for place in places if place.exists()), places[0]), "recipe"
            )
    except RecursionError:
        raise InputError(
            "the sweep holds itself", remedy="give a dict of keys and values"
        ) from None
    return resolve(parsed, config.shared(parsed, keys, source, name), source)
