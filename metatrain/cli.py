"""Commands that need no cluster."""

from __future__ import annotations

import sys
from bisect import bisect_right
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metatrain.console import AsJson, Commands, print_table, printing_json, program
from metatrain.data import cli as data

if TYPE_CHECKING:
    from rich.table import Table

    from metatrain.inference.report import Predicted

MOST_ROWS = 20  # of predicted numbers on a terminal
NAME_COLUMNS = range(8, 61)  # that a class's or a file's name may take in a table on a terminal
# Norm without "none", which no option has to ask for; tests hold it to core.Norm.
NormOption = Literal["transductive", "support", "support+1", "running"]

app = typer.Typer(
    cls=Commands,
    help="Meta-training on Ray: sample tasks, adapt to them in parallel, learn to learn.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data.app, name="data")


@app.command()
def algorithms() -> None:
    """List all methods: paper, what each needs, what it costs, and when to choose it.

    Example: metatrain algorithms
    """
    from rich.table import Table

    from metatrain.methods import METHODS

    table = Table("method", "family", "paper", "needs", "cost", "choose it if", "algorithm")
    for method in METHODS:
        table.add_row(*method.row())
    print_table(table)
    print("cost: processor time of a training task, times that of first-order MAML")


@app.command()
def suggest(
    images: Annotated[bool, typer.Option("--images", help="Images of classes (default).")] = False,
    table: Annotated[bool, typer.Option("--table", help="Rows of a table.")] = False,
    episodes: Annotated[bool, typer.Option("--episodes", help="Episodes with rewards.")] = False,
    ways: Annotated[
        int | None, typer.Option(help="Classes of a task of images; 5 if not given.")
    ] = None,
    shots: Annotated[
        int, typer.Option(help="Images of a class, rows or episodes to learn a new task from.")
    ] = 1,
    seconds_per_task: Annotated[
        float | None, typer.Option(help="In which one core must learn a new task.")
    ] = None,
) -> None:
    """Suggest two or three methods for your tasks, with reasons and a recipe to start from.

    Example: metatrain suggest --images --ways 5 --shots 5 --seconds-per-task 1
    """
    from metatrain import choosing
    from metatrain.core import InputError

    kinds: dict[choosing.Kind, bool] = {"images": images, "table": table, "episodes": episodes}
    given = [kind for kind, chosen in kinds.items() if chosen]
    if len(given) > 1:
        raise InputError("what is given", got=given, expected="--images, --table or --episodes")
    kind = given[0] if given else "images"
    found = choosing.suggest(kind, ways=ways, shots=shots, seconds_per_task=seconds_per_task)
    for number, choice in enumerate(found, 1):
        print(f"{number}. {choice.method}: {choice.reason}")
        print(f"   {program()} train {choice.start}")
    print(choosing.OWN_DATA[kind])


@app.command()
def adapt(
    bundle: Annotated[str, typer.Argument(help="A run's folder or its bundle.")],
    support: Annotated[
        str,
        typer.Option(
            help="Labelled examples: a folder with one folder of images per class, or a file of "
            "rows."
        ),
    ],
    query: Annotated[
        list[str],
        typer.Option(
            help="Examples to predict: images or folders of them, or files of rows; labelled or "
            "not."
        ),
    ],
    more: Annotated[
        list[str] | None, typer.Argument(help="More examples to predict, as after --query *.png.")
    ] = None,
    norm: Annotated[
        NormOption | None,
        typer.Option(
            help="Images whose statistics normalise a prediction. Default: as in the run's "
            "evaluation."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Column of the rows to predict. Default: the recipe's, the column y, or the last."
        ),
    ] = None,
    output: Annotated[
        str, typer.Option(help="Folder for predictions.json and the other results.")
    ] = "adapted",
    json: AsJson = False,
) -> None:
    """Adapt a trained run to a few examples, and predict others.

    Examples are images, or rows of CSV, Parquet or NPZ files. Rows may also be at an address, such
    as s3://bucket/few.csv.

    Example: metatrain adapt runs/mine --support few --query new

    Example: metatrain adapt runs/table --support few.csv --query new.csv

    Example: metatrain adapt runs/tables --support known.csv --query asked.csv --target kind
    """
    from metatrain import inference
    from metatrain.core import InputError
    from metatrain.inference import files, report
    from metatrain.names import printable
    from metatrain.storage import local

    folder = local(output, "--output")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {output} is a file", remedy="give a folder")
    with printing_json(json) as show:
        learned, queries = inference.load(bundle), [*query, *(more or [])]
        found = files.predict(learned, support, queries, norm, target)
        written = report.write(found, folder)
        if json:
            show(found.result)
        else:
            _print_predictions(found)
        notes = [*found.notes, f"written: {' '.join(map(str, written))}"]
        print(*map(printable, notes), sep="\n")


def _print_predictions(found: Predicted) -> None:
    """Print a row for each prediction: all of images, the first ones of rows.

    Names are cut so that the table fits the terminal.
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
        options = console.options.update(width=10_000)
        return table(name_columns).__rich_measure__(console, options).maximum

    if sys.stdout.isatty():
        fitting = bisect_right(NAME_COLUMNS, console.width, key=width)
        print_table(table(NAME_COLUMNS[max(fitting - 1, 0)]))
    else:
        print_table(table(None))
    if most is not None and len(found.rows) > most:
        print(f"and {len(found.rows) - most} more rows")
