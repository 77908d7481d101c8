"""Commands that need no cluster."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from metatrain.tasks.images import ImageStore

OPTIONAL = ("ray", "optuna")  # what a machine without a cluster may lack
WAYS = 5  # of recipes/own_images.yaml, whose data set is "mine"
MOST_ROWS = 20  # of predicted numbers on a terminal
Statistics = Literal["transductive", "support", "support+1", "running"]

app = typer.Typer(
    help="Meta-training on Ray: sample tasks, adapt to them in parallel, learn to learn.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Data sets: list, import, check.", no_args_is_help=True)
app.add_typer(data, name="data")


def main(app: typer.Typer) -> None:
    """Run a command; what the user can mend is one sentence and exit code 2, and Ctrl-C is exit code 130."""

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"stopped\n")  # print() might be what was interrupted
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(130)  # C extensions swallow an exception in their import, or abort on it
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
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
        print(f"error: {error.name} is not installed: pip install 'ray[default,tune,train]' optuna", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be written
        logging.getLogger(__name__).debug("the operating system refused", exc_info=True)
        print(f"error: {error.strerror or error}: {error.filename or 'see --help'}", file=sys.stderr)
        sys.exit(2)


def program() -> str:
    """What to type for this command again: its name where it is on the PATH, else its path as it was typed."""
    typed = sys.argv[0]
    return typed if Path(typed).name == "metatrain" and shutil.which("metatrain") != typed else "metatrain"


@data.command("list")
def list_() -> None:
    """Show the data sets that can be used. Example: metatrain data list"""
    from metatrain.core import InputError
    from metatrain.storage import cache
    from metatrain.tasks.images import ImageStore
    from metatrain.tasks.sources import SOURCES

    imported = {path.parent.name for path in cache().glob("*/manifest.json")}
    for name in sorted(imported | set(SOURCES)):
        if name in imported:
            try:
                store = ImageStore.open(name)
            except InputError as error:
                print(f"{name:12} {error}")
                continue
            splits = ", ".join(scheme.name for scheme in store.schemes)
            print(f"{name:12} {len(store.sizes)} classes, {len(store.images)} images {_shape(store)}; splits {splits}")
        else:
            how = "drawn at first use" if name == "glyphs" else f"not imported: metatrain data import {name}"
            print(f"{name:12} {how}")


@data.command("import")
def import_(
    name: str,
    source: Annotated[
        Path | None, typer.Option(help="A folder of class folders, or the original files of a known data set.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side. Default: the images' median, 84 at most.")] = None,
    least: Annotated[int, typer.Option(help="Images a class must have to be taken.")] = 2,
) -> None:
    """Bring a data set into the cache: a known one, or a folder of class folders of your own.

    Example: metatrain data import mine --source photos
    """
    from rich.console import Console
    from rich.progress import track

    from metatrain.core import InputError
    from metatrain.tasks.folders import read_folder
    from metatrain.tasks.images import checksum_of, folder_of
    from metatrain.tasks.sources import SOURCES, import_data

    folder = folder_of(name)
    if name in SOURCES:
        if size is not None or least != 2:
            raise InputError(f"{name} comes in its published size: --size and --least are for folders of your own")
        store = import_data(name, source)
        print(f"imported {name}: {len(store.sizes)} classes, {len(store.images)} images {_shape(store)} into {folder}")
        return
    if source is None:
        raise InputError(
            f"{name!r} is none of {', '.join(SOURCES)}: "
            "for images of your own give --source with a folder that holds a folder for each class"
        )
    console = Console(stderr=True)

    def watch(paths: list[Path]) -> Iterable[Path]:
        return track(paths, "reading", console=console, transient=True, disable=not console.is_terminal)

    store, report = read_folder(name, source, size, least, watch)
    earlier = checksum_of(name)
    store.save()
    if earlier not in (None, checksum_of(name)):
        print(f"replaces the data set {name} that was there: what was trained on that one cannot go on with this one")
    for what, why in report.refused:
        print(f"refused {what}: {why}")
    for note in report.notes:
        print(f"note: {note}")
    if report.twins:
        print(f"note: {len(report.twins)} images have the pixels of an earlier one; a query may be its support image:")
    for later, earlier in report.twins:
        print(f"  {later} = {earlier}")
    print(
        f"imported {name}: {len(store.sizes)} classes, {report.taken} images ({report.resized} resized) "
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
def check(name: str) -> None:
    """Verify a data set: checksum, counts, sizes, splits, duplicates. Example: metatrain data check glyphs"""
    from metatrain.tasks.images import duplicates, twins
    from metatrain.tasks.sources import open_data

    def told(image: int) -> str:
        c = store.class_of(image)
        return f"{store.class_names[c]} image {1 + image - int(store.offsets[c])}"

    store = open_data(name)
    sizes = store.sizes
    print(f"{name}: the checksum is right; {len(sizes)} classes, {len(store.images)} images {_shape(store)}")
    print(f"  {sizes.min()} to {sizes.max()} images a class, median {sizes.median()}")
    pairs = twins(store)
    for what, same in (("twice in their class", True), ("in two classes", False)):
        equal = [f"{told(a)} = {told(b)}" for a, b in pairs if (store.class_of(a) == store.class_of(b)) is same]
        if equal:
            print(f"  {len(equal)} images are {what}: {_some(equal)}")
    for scheme in store.schemes:
        counts = ", ".join(f"{split} {len(members)}" for split, members in scheme.classes.items())
        found = duplicates(store, scheme)
        twice = f"{len(found)} images are in two splits: {_some(found)}" if found else "no image is in two of them"
        print(f"  splits {scheme.name}: {counts} classes, disjoint; {twice}")


@data.command()
def push(
    name: str, uri: Annotated[str, typer.Argument(help="A folder, or an address such as s3://bucket/omniglot.")]
) -> None:
    """Copy a data set to where the machines of a cluster can fetch it: recipes then say family.data=URI.

    Example: metatrain data push glyphs /mnt/data/glyphs
    """
    from metatrain.core import InputError
    from metatrain.tasks import remote
    from metatrain.tasks.sources import open_data

    if not remote.is_elsewhere(uri):
        raise InputError(f"{uri!r} could be a data set's name: give a path with a /, or an address")
    store = open_data(name)
    remote.push(store, uri)
    print(f"pushed {name} (checksum {store.checksum}) to {uri}")
    print(f"use it with --set family.data={uri}")


@app.command()
def adapt(
    bundle: Annotated[str, typer.Argument(help="A run's folder or its bundle.")],
    support: Annotated[
        Path, typer.Option(help="What to adapt to: a folder with a folder of images for each class, or a file of rows.")
    ],
    query: Annotated[
        list[Path],
        typer.Option(
            help="What to predict: images or folders of them, or files of rows; with the truth if it is known."
        ),
    ],
    more: Annotated[list[Path] | None, typer.Argument(help="More to predict, as after --query *.png.")] = None,
    norm: Annotated[
        Statistics | None, typer.Option(help="Whose statistics normalise an image; default: as the run was tested.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for predictions.json and the like.")] = Path("adapted"),
) -> None:
    """Adapt a trained run to a few examples, and predict others: images, or rows of CSV, Parquet or NPZ files.

    Example: metatrain adapt runs/mine --support few --query new

    Example: metatrain adapt runs/table --support few.csv --query new.csv
    """
    from metatrain import figures, files, inference
    from metatrain.core import InputError
    from metatrain.plain import to_json

    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file: give a folder")
    found = files.predict(inference.load(bundle), support, [*query, *(more or [])], norm)
    output.mkdir(parents=True, exist_ok=True)
    written = [output / "predictions.json"]
    written[0].write_text(to_json(found.result, indent=1))
    if found.rows:
        written.append(output / "predictions.csv")
        _write_csv(found.rows, written[-1])
    if found.picture is not None:
        written.append(figures.save(found.picture, output / "predictions.png"))
    _print_table(found.shown)
    print(*found.notes, f"written: {' '.join(map(str, written))}", sep="\n")


def _write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    import csv

    names = [name for name in rows[0] if name != "probabilities"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _print_table(columns: Mapping[str, Sequence[str]]) -> None:
    """A row for each prediction: all of images, the first ones of rows."""
    from rich.console import Console
    from rich.table import Table

    most = None if "image" in columns else MOST_ROWS
    table = Table(*columns)
    rows = list(zip(*columns.values(), strict=True))
    for row in rows[:most]:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 10_000  # no wrapping in files and pipes
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
    if most is not None and len(rows) > most:
        print(f"and {len(rows) - most} more rows")


def _shape(store: ImageStore) -> str:
    channels, height, width = store.shape
    return f"of {width}x{height} pixels, {'grey' if channels == 1 else 'RGB'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
