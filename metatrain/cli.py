"""Commands that need no cluster, and what all commands share."""

from __future__ import annotations

import io
import logging
import os
import platform
import shlex
import shutil
import signal
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from metatrain.data.images import ImageStore
    from metatrain.files import Predicted

OPTIONAL = ("ray", "optuna")  # what a machine without a cluster may lack
WAYS = 5  # of recipes/own_images.yaml, whose data set is "mine"
MOST_ROWS = 20  # of predicted numbers on a terminal
NAME_COLUMNS = range(8, 61)  # that a class's or a file's name may take in a table on a terminal
Statistics = Literal["transductive", "support", "support+1", "running"]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, and everything else on stderr.")
]

app = typer.Typer(
    help="Meta-training on Ray: sample tasks, adapt to them in parallel, learn to learn.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Data sets: list, import, check.", no_args_is_help=True)
app.add_typer(data, name="data")


class _Messages(logging.Handler):
    """Log lines on stderr as it is at that moment: above a spinner, if one stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads it any more
            self.handleError(record)


def main(app: Callable[[], object], log_format: str = "%(message)s") -> None:
    """Run a command. An error that the user can fix is one sentence and exit code 2, and Ctrl-C is
    exit code 130.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"stopped\n")  # print() might be what was interrupted
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(130)  # C extensions swallow an exception in their import, or abort on it
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a name may have characters that the terminal has not
    logging.basicConfig(
        level=logging.INFO, format=log_format, datefmt="%H:%M:%S", handlers=[_Messages()]
    )
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        app()
    except ValueError as error:
        from metatrain.core import InputError  # here, since it brings torch

        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        print(
            f"error: {error.name} is not installed: pip install 'ray[default,tune,train]' optuna",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be written
        logging.getLogger(__name__).debug("the operating system refused", exc_info=True)
        print(
            f"error: {error.strerror or error}: {error.filename or 'see --help'}", file=sys.stderr
        )
        sys.exit(2)


def program() -> str:
    """What to type for this command again: its name if it is on the PATH, else its path as it was
    typed.
    """
    typed = sys.argv[0]
    return (
        typed
        if Path(typed).name == "metatrain" and shutil.which("metatrain") != typed
        else "metatrain"
    )


def version() -> str:
    """What a report of a fault has to name. Read from the packages' metadata: nothing is
    imported.
    """
    from metatrain import __version__

    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "ray", "mlflow"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"metatrain {__version__} ({', '.join(found)})"


def print_table(table: Table) -> None:
    """Print a table: without lines and colours if stdout is no terminal, and as wide as it is."""
    from rich.console import Console

    console = Console(
        width=None if sys.stdout.isatty() else 10_000, markup=False, emoji=False, highlight=False
    )
    if sys.stdout.isatty():
        console.print(table)
        return
    table.box, table.pad_edge = None, False
    with console.capture() as printed:
        console.print(table)
    print(*map(str.rstrip, printed.get().splitlines()), sep="\n")


@contextmanager
def printing_json(alone: bool) -> Iterator[Callable[[object], None]]:
    """If JSON is to stand `alone` on stdout, everything but what the context is given to print goes
    to stderr.
    """
    from metatrain.plain import to_json

    stdout = sys.stdout

    def show(value: object) -> None:
        print(to_json(value, indent=1), file=stdout)

    with redirect_stdout(sys.stderr if alone else stdout):
        yield show


def again(arguments: Sequence[str], *way: str) -> str:
    """The command with these arguments, but for its --name and --resume, and with what is `way` to
    continue it.
    """
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in ("--name", "--resume"):
            next(rest, None)
        elif not argument.startswith(("--name=", "--resume=")):
            kept.append(argument)
    return shlex.join([program(), *kept, *way])


@data.command("list")
def list_(json: AsJson = False) -> None:
    """List the data sets that can be used. Example: metatrain data list"""
    from rich.table import Table

    from metatrain.core import InputError
    from metatrain.data.images import ImageStore
    from metatrain.data.sources import SOURCES
    from metatrain.names import printable
    from metatrain.plain import to_json
    from metatrain.storage import cache

    imported = {path.parent.name for path in cache().glob("*/manifest.json")}
    rows: list[dict[str, object]] = []
    for name in sorted(imported | set(SOURCES)):
        if name not in imported:
            state = (
                "drawn at first use"
                if name == "glyphs"
                else f"not imported: {program()} data import {name}"
            )
            rows.append({"name": name, "state": state})
            continue
        try:
            store = ImageStore.open(name)
        except InputError as error:
            rows.append({"name": name, "state": str(error)})
            continue
        splits = [scheme.name for scheme in store.schemes]
        counts = {
            "classes": len(store.sizes),
            "images": len(store.images),
            "shape": store.shape,
            "splits": splits,
        }
        state = (
            f"{counts['classes']} classes, {counts['images']} images {_shape(store)}; "
            f"splits {', '.join(splits)}"
        )
        rows.append({"name": name, "state": state, **counts, "checksum": store.checksum})
    if json:
        print(to_json(rows, indent=1))
        return
    table = Table.grid("name", "state", padding=(0, 2))
    for row in rows:
        table.add_row(printable(str(row["name"])), printable(str(row["state"])))
    print_table(table)


@data.command("import")
def import_(
    name: Annotated[
        str, typer.Argument(help="glyphs, omniglot, or a new name for your own images.")
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder with one folder of images per class, or the original files of a "
                "known data set."
            )
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Width and height in pixels. Default: the median of the images, at most 84."
        ),
    ] = None,
    least: Annotated[int, typer.Option(help="Leave out classes with fewer images.")] = 2,
) -> None:
    """Copy a data set into the cache: a known one, or your own folder of class folders.

    Example: metatrain data import mine --source photos
    """
    from rich.console import Console
    from rich.progress import track

    from metatrain.core import InputError
    from metatrain.data.folders import read_folder
    from metatrain.data.images import checksum_of, folder_of
    from metatrain.data.sources import SOURCES, import_data

    folder = folder_of(name)
    if name in SOURCES:
        if size is not None or least != 2:
            raise InputError(
                f"{name} comes in its published size",
                remedy=("--size and --least are for folders of your own"),
            )
        store = import_data(name, source)
        print(
            f"imported {name}: {len(store.sizes)} classes, {len(store.images)} images "
            f"{_shape(store)} into {folder}"
        )
        return
    if source is None:
        raise InputError(
            f"{name!r} is none of {', '.join(SOURCES)}",
            remedy=(
                "for images of your own give --source with a folder that holds a folder "
                "for each class"
            ),
        )
    console = Console(stderr=True)

    def watch(paths: list[Path]) -> Iterable[Path]:
        return track(
            paths, "reading", console=console, transient=True, disable=not console.is_terminal
        )

    store, report = read_folder(name, source, size, least, watch)
    earlier = checksum_of(name)
    store.save()
    if earlier not in (None, checksum_of(name)):
        print(
            f"replaced the earlier data set {name}: runs that were trained on it cannot be resumed "
            "with this one"
        )
    for what, why in report.refused:
        print(f"refused {what}: {why}")
    for note in report.notes:
        print(f"note: {note}")
    if report.twins:
        print(
            f"note: {len(report.twins)} images have the pixels of an earlier one; a query may be "
            "its support image:"
        )
    for later, earlier in report.twins:
        print(f"  {later} = {earlier}")
    print(
        f"imported {name}: {len(store.sizes)} classes, {report.taken} images ({report.resized} "
        "resized) "
        f"{_shape(store)} into {folder}"
    )
    splits = store.schemes[0].classes
    for split, members in splits.items():
        print(f"  {split} {len(members)} classes: {_some([store.class_names[c] for c in members])}")
    fewest = min(map(len, splits.values()))
    sets = [f"family.data={name}"] if name != "mine" else []
    sets += [f"family.ways={fewest}"] if fewest < WAYS else []
    sets += ["validation.every_steps=0"] if "val" not in splits else []
    print(f"next: {program()} train recipes/own_images.yaml", *(f"--set {item}" for item in sets))


@data.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set of `metatrain data list`.")],
) -> None:
    """Verify a data set: checksum, counts, sizes, splits, duplicates. Example: metatrain data check
    glyphs
    """
    from metatrain.data.images import duplicates, twins
    from metatrain.data.sources import open_data

    def told(image: int) -> str:
        c = store.class_of(image)
        return f"{store.class_names[c]} image {1 + image - int(store.offsets[c])}"

    store = open_data(name)
    sizes = store.sizes
    print(
        f"{name}: the checksum is right; {len(sizes)} classes, {len(store.images)} images "
        f"{_shape(store)}"
    )
    print(f"  {sizes.min()} to {sizes.max()} images a class, median {sizes.median()}")
    pairs = twins(store)
    for what, same in (("twice in their class", True), ("in two classes", False)):
        equal = [
            f"{told(a)} = {told(b)}"
            for a, b in pairs
            if (store.class_of(a) == store.class_of(b)) is same
        ]
        if equal:
            print(f"  {len(equal)} images are {what}: {_some(equal)}")
    for scheme in store.schemes:
        counts = ", ".join(f"{split} {len(members)}" for split, members in scheme.classes.items())
        found = duplicates(store, scheme)
        twice = (
            f"{len(found)} images are in two splits: {_some(found)}"
            if found
            else "no image is in two of them"
        )
        print(f"  splits {scheme.name}: {counts} classes, disjoint; {twice}")


@data.command()
def push(
    name: Annotated[str, typer.Argument(help="A data set of `metatrain data list`.")],
    uri: Annotated[
        str, typer.Argument(help="A folder, or an address such as s3://bucket/omniglot.")
    ],
) -> None:
    """Copy a data set to a place that all machines of a cluster can read. Recipes name it:
    family.data=URI.

    Example: metatrain data push glyphs /mnt/data/glyphs
    """
    from metatrain.core import InputError
    from metatrain.data import remote
    from metatrain.data.sources import open_data

    if not remote.is_elsewhere(uri):
        raise InputError(
            f"{uri!r} could be the name of a data set", remedy="give a path with a /, or an address"
        )
    store = open_data(name)
    remote.push(store, uri)
    print(f"pushed {name} (checksum {store.checksum}) to {uri}")
    print(f"use it with --set family.data={uri}")


@app.command()
def adapt(
    bundle: Annotated[str, typer.Argument(help="A run's folder or its bundle.")],
    support: Annotated[
        Path,
        typer.Option(
            help=(
                "Labelled examples: a folder with one folder of images per class, or a "
                "file of rows."
            )
        ),
    ],
    query: Annotated[
        list[Path],
        typer.Option(
            help=(
                "Examples to predict: images or folders of them, or files of rows; labelled or not."
            )
        ),
    ],
    more: Annotated[
        list[Path] | None, typer.Argument(help="More examples to predict, as after --query *.png.")
    ] = None,
    norm: Annotated[
        Statistics | None,
        typer.Option(
            help=(
                "Images whose statistics normalise a prediction. Default: as in the "
                "run's evaluation."
            )
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for predictions.json and the other results.")
    ] = Path("adapted"),
    json: AsJson = False,
) -> None:
    """Adapt a trained run to a few examples, and predict others: images, or rows of CSV, Parquet or
    NPZ files.

    Example: metatrain adapt runs/mine --support few --query new

    Example: metatrain adapt runs/table --support few.csv --query new.csv
    """
    from metatrain import figures, files, inference
    from metatrain.awaiting import awaiting
    from metatrain.core import InputError
    from metatrain.names import printable
    from metatrain.plain import to_json

    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file", remedy="give a folder")
    with printing_json(json) as show:
        found = files.predict(inference.load(bundle), support, [*query, *(more or [])], norm)
        output.mkdir(parents=True, exist_ok=True)
        for path in output.glob("predictions.*"):
            if path.suffix in (".json", ".csv", ".png"):
                path.unlink()  # of other predictions
        written = [output / "predictions.json"]
        written[0].write_text(to_json(found.result, indent=1))
        if found.rows:
            written.append(output / "predictions.csv")
            _write_csv(found.rows, written[-1])
        if found.picture is not None:
            with awaiting("drawing predictions.png"):
                written.append(figures.save(found.picture, output / "predictions.png"))
        notes = [
            printable(note) for note in (*found.notes, f"written: {' '.join(map(str, written))}")
        ]
        if json:
            show(found.result)
            print(*notes, sep="\n")
        else:
            _print_predictions(found)
            print(*notes, sep="\n")


def _write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    import csv

    names = [name for name in rows[0] if name != "probabilities"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _print_predictions(found: Predicted) -> None:
    """A row for each prediction: all of images, the first ones of rows. Names are cut to the
    terminal's width.
    """
    from rich.console import Console
    from rich.table import Table

    most = MOST_ROWS if found.rows else None
    console = Console(markup=False, emoji=False)

    def table(name_columns: int | None) -> Table:
        columns = found.shown(most, name_columns)
        made = Table(*columns)
        for row in zip(*columns.values(), strict=True):
            made.add_row(*row)
        return made

    def width(name_columns: int) -> int:
        return (
            table(name_columns)
            .__rich_measure__(console, console.options.update(width=10_000))
            .maximum
        )

    if sys.stdout.isatty():
        fitting = bisect_right(NAME_COLUMNS, console.width, key=width)
        print_table(table(NAME_COLUMNS[max(fitting - 1, 0)]))
    else:
        print_table(table(None))
    if most is not None and len(found.rows) > most:
        print(f"and {len(found.rows) - most} more rows")


def _shape(store: ImageStore) -> str:
    channels, height, width = store.shape
    return f"of {width}x{height} pixels, {'grey' if channels == 1 else 'RGB'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
