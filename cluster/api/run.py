"""A run's folder as an object: its scores, metrics, pictures and configuration."""

from __future__ import annotations

import base64
import html
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

from cluster.api.files import metric_of, one_line, read, read_result, rows, scores
from cluster.api.front_door import front_door
from cluster.api.listing import summary
from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    import pandas as pd

    from cluster.comparison import Comparison
    from cluster.config import RunConfig
    from metatrain.inference import Learned

# The first columns of a result.
FIRST = ("metric", "mean", "ci95", "tasks", "evaluation", "norm", "baselines", "protocol")


class Run:
    """A run's folder, or a sweep's, which stands for its winner.

    The folder may lie in a storage, and the run may still be under way.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = storage.checked(str(folder))
        remote = storage.is_remote(self.folder)
        self._place = self.folder if remote else str(Path(self.folder).absolute())
        self.is_sweep = storage.is_file(f"{self._place}/sweep.yaml")
        if not self.is_sweep and not storage.is_file(f"{self._place}/config.yaml"):
            raise InputError(
                f"{self.folder} holds no run (no config.yaml)",
                remedy="give a folder that metatrain.runs() lists",
            )

    @property
    def result(self) -> pd.DataFrame:
        """The scores, a row for each evaluation and norm; the first is the result."""
        import pandas as pd

        found = pd.DataFrame(scores(read_result(self._place)))
        first = [name for name in FIRST if name in found]
        return found[[*first, *(name for name in found if name not in FIRST)]]

    @property
    def metrics(self) -> pd.DataFrame:
        """The metrics of each outer step, indexed by step."""
        import pandas as pd

        found = rows(read(f"{self._home}/metrics.jsonl") or b"")
        frame = pd.DataFrame(found, columns=None if found else ["step"])
        frame = frame.apply(pd.to_numeric, errors="coerce").astype({"step": int})
        frame = frame.drop_duplicates("step", keep="last").set_index("step")
        return frame.astype(float).sort_index()

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
        """Return what it learned, ready to adapt to examples."""
        from metatrain import inference

        return inference.load(self._place)

    def compare(self, other: Run | str | Path) -> Comparison:
        """Return the paired difference of the results, `other` minus this one, on the same tasks.

        It has a 95 % interval, and is computed in this process. Raises InputError if the other
        run's evaluation draws other tasks.
        """
        with front_door("metatrain.Run.compare()"):
            from cluster.comparison import compare

            place = other.folder if isinstance(other, Run) else str(other)
            (found,) = compare(self.folder, [place])
            return found

    @property
    def _home(self) -> str:
        """The folder of the training run: of a sweep, the winner's."""
        if not self.is_sweep:
            return self._place
        return f"{self._place}/trials/{read_result(self._place)['winner']:02d}"

    def _cells(self) -> list[str]:
        """Return name, progress and results, each a few words."""
        try:
            known = summary(self._place)
            found = scores(read_result(self._place)) if known.metric else []
        except Exception as error:  # to look at a run never fails
            return [f"cannot be read ({error})"]
        steps = [] if known.steps is None else [f"{known.steps} of {known.of} steps"]
        results = []
        for score in found:
            metric = metric_of(score)
            text = f"{metric.name} {metric.brief(score['mean'])} ± {metric.brief(score['ci95'])}"
            if score.get("diverged"):
                lost = f"{score['diverged']} of {score['tasks']} tasks diverged"
                text = f"{metric.name} {metric.brief(score['median'])} (median), {lost}"
            evaluation = score.get("evaluation")
            results.append(f"{evaluation}: {text}" if evaluation else text)
        return [known.name, *steps, *results]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder!r}: {one_line(', '.join(self._cells()))})"

    def _repr_html_(self) -> str:
        texts = [html.escape(one_line(cell)) for cell in [*self._cells(), self.folder]]
        return f"<table><tr>{''.join(f'<td>{text}</td>' for text in texts)}</tr></table>"


class Picture(PosixPath):
    """The path of a picture, which a notebook shows."""

    folder: storage.Folder  # a local copy of a storage's folder lasts as long as this object

    def _repr_png_(self) -> bytes:
        return self.read_bytes()


class Figures(dict[str, Picture]):
    """Pictures by name, side by side in a notebook."""

    def __init__(self, folder: str) -> None:
        kept = storage.Folder(folder)
        found = (path for path in sorted((kept / "").glob("*.png")) if path.is_file())
        super().__init__((path.stem, Picture(path)) for path in found)
        for picture in self.values():
            picture.folder = kept

    def _repr_html_(self) -> str:
        return "".join(
            f'<figure style="display: inline-block"><img alt="{html.escape(name)}" '
            f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, path in self.items()
        )
