"""The command `metatrain pretrain`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from metatrain import console

app = typer.Typer()


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A YAML file such as those in recipes/.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join. Default: start one on this machine.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto",
            help="Continue a pre-training: its folder, or auto: that in the output, or the newest.",
        ),
    ] = None,
) -> None:
    """Train a recipe's network with supervision on all training examples.

    Example: metatrain pretrain recipes/demo.yaml --set pretraining.steps=500
    """
    from cluster import recipe_file
    from cluster.closing import is_saved, to_continue
    from cluster.collector import Interrupted
    from cluster.jobs.job import SAVED
    from cluster.pretraining import run
    from metatrain.core import InputError
    from metatrain.learner import Diverged

    config = recipe_file.read(recipe, set_ or [], "pretrain")
    try:
        folder = run.pretrain(config, address, resume, source=recipe)
    except Interrupted as stopped:
        print(stopped, *to_continue(stopped, config, resume), sep="\n", file=sys.stderr)
        raise typer.Exit(130) from None
    except Diverged:
        what, remedy = "the update of a step is not finite", "set pretraining.lr lower"
        print(f"error: {InputError(what, remedy=remedy)}", file=sys.stderr)
        raise typer.Exit(2) from None
    except Exception as error:
        if is_saved(error):
            error.add_note("\n".join(to_continue(error, config, resume) or [SAVED]))
        raise
    print(f"folder: {folder}")
    print("next:")
    for words in (
        ["train", recipe, "--init", str(folder)],
        ["evaluate", "RUN", "--baselines", "--pretrained", str(folder)],
    ):
        print(f"  {shlex.join([console.program(), *words])}")
