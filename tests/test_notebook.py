"""A real kernel runs the quickstart, shows one line of progress, and survives an interrupt that
loses nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from cases import SINUSOID
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager
from nbclient import NotebookClient
from services import free_port

QUICKSTART = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"
Message = dict[str, Any]

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]  # of Jupyter's own libraries


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the user's profile, and none leaves connection files with it."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / ".jupyter"))


def ports() -> dict[str, Any]:
    """A kernel manager's, which nobody else is given until the kernel listens there: those that it
    would take itself are the system's, for anybody who asks.
    """
    kinds = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
    return {"cache_ports": False, **{kind: free_port() for kind in kinds}}


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager(**ports())
    manager.start_kernel(cwd=str(tmp_path), env=os.environ.copy())
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=600)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(
    client: BlockingKernelClient, code: str, watch: Callable[[Message], None] = lambda message: None
) -> list[Message]:
    """What a cell gives: its messages, in order."""
    found: list[Message] = []

    def hook(message: Message) -> None:
        found.append(message)
        watch(message)

    client.execute_interactive(code, timeout=600, output_hook=hook)
    return found


def of(messages: list[Message], kind: str) -> list[dict[str, Any]]:
    return [message["content"] for message in messages if message["header"]["msg_type"] == kind]


def test_the_quickstart_runs_as_it_stands(tmp_path: Path) -> None:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    here = {"metadata": {"path": str(tmp_path)}}
    options = {"timeout": 600, "startup_timeout": 600, "resources": here}
    manager = AsyncKernelManager(**ports())
    NotebookClient(notebook, manager, **options).execute(cleanup_kc=True)
    trained, curve, predicted, compared, listed = cells
    progress = [out.data for out in trained.outputs if out.output_type == "display_data"]
    assert len(progress) == 1
    assert progress[0]["text/plain"].startswith("step 50/50 ")
    html = trained.outputs[-1].data["text/html"]
    assert "demo</td><td>50 of 50 steps</td><td>accuracy " in html
    assert curve.outputs[-1].data["image/png"]
    labels = eval(predicted.outputs[-1].data["text/plain"])
    assert len(labels) == 5
    assert set(labels) <= {900, 910, 920, 930, 940}
    assert re.search("difference: a (tie|difference)", compared.outputs[-1].data["text/html"])
    table = listed.outputs[-1].data["text/html"]
    assert table.index("demo-head") < table.index("runs/demo/")


def test_the_quickstart_is_short() -> None:
    cells = nbformat.read(QUICKSTART, as_version=4).cells
    lines = [
        line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()
    ]
    code = [
        line for line in lines if line and not line.startswith((" ", "}"))
    ]  # a recipe's dict is one statement
    assert len(code) <= 12


def test_an_interrupt_saves_the_run_and_the_kernel_goes_on_with_it(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = kernel
    endless = SINUSOID | {"outer": SINUSOID["outer"] | {"steps": 10**6}}

    def interrupt(message: Message) -> None:
        if message["header"]["msg_type"] == "update_display_data" and not interrupted:
            interrupted.append(message)
            manager.interrupt_kernel()

    interrupted: list[Message] = []
    messages = run(
        client,
        f"import metatrain\nrecipe = {endless!r}\nmetatrain.train(recipe, output='run')",
        interrupt,
    )
    assert len(of(messages, "display_data")) == 1  # one line, that is updated
    (error,) = of(messages, "error")
    assert error["ename"] == "Interrupted"
    assert re.fullmatch(
        r"stopped after \d+ of 1000000 outer steps; metatrain.train\(..., resume='auto'\) "
        r"continues",
        error["evalue"],
    )
    assert error["traceback"] == [f"Interrupted: {error['evalue']}"]
    again = "made = metatrain.Run('run').metrics.index[-1]\n"
    again += (
        "metatrain.train(recipe, output='run', resume='auto', outer={'steps': made + "
        "2}).metrics.index[-1] - made"
    )
    messages = run(client, again)
    assert of(messages, "execute_result")[0]["data"]["text/plain"].endswith("2")
    assert "resuming" in "".join(content["text"] for content in of(messages, "stream"))


def test_what_is_wrong_is_one_sentence_in_a_notebook(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    _, client = kernel
    messages = run(client, f"import metatrain\nmetatrain.train({SINUSOID!r}, outer={{'stepz': 3}})")
    (error,) = of(messages, "error")
    assert error["traceback"] == [
        "InputError: the recipe: outer.stepz is not a key of a recipe: did you mean 'steps'?"
    ]


@pytest.mark.ray
def test_ray_works_in_a_kernel_twice_and_a_sweep_keeps_its_line(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    _, client = kernel
    recipe = SINUSOID | {
        "outer": SINUSOID["outer"] | {"steps": 2},
        "workers": {"max": 1, "wait_s": 600},
    }
    sweep = {
        "name": "rates",
        "recipe": recipe,
        "set": {"validation.every_steps": 1},
        "budget": {"trials": 1},
    }
    sweep["space"] = {"outer.lr": {"choice": [0.001]}}
    for code in (
        f"import metatrain\nmetatrain.train({recipe!r}, output='run')",
        f"metatrain.tune({sweep!r})",
    ):
        messages = run(client, code)
        assert not of(messages, "error")
        assert len(of(messages, "display_data")) == 1
        assert not of(messages, "clear_output")
        assert "2 of 2 steps, mse " in of(messages, "execute_result")[0]["data"]["text/plain"]
