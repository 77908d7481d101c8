"""The commands as a person types them: results, interrupts, and errors of one sentence with exit
code 2.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import socketserver
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from cases import GLYPHS, REPTILE, SINUSOID, config
from photos import album
from services import Done, command

import metatrain
from cluster import results, tables
from metatrain import bundle, console, schema
from metatrain import cli as metatrain_cli
from metatrain.core import InputError, Norm
from metatrain.data.sources import SOURCES
from metatrain.evaluate import Score
from metatrain.metrics import ACCURACY, MSE, RETURN, Metric
from tuning.cli import app


def spawned(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which may start or join a Ray of its own."""
    full = [sys.executable, "-m", "tuning.cli", *arguments]
    return subprocess.run(
        full, capture_output=True, text=True, check=False, env=os.environ | (env or {}), timeout=600
    )


def write(base: dict[str, Any], path: Path, **overrides: Any) -> str:
    path.write_text(yaml.safe_dump(schema.dump(config(base, **overrides))))
    return str(path)


def pasted(errors: str, *more: str) -> Done:
    """Run the command that the last line says."""
    program, *arguments = shlex.split(errors.splitlines()[-1].removeprefix("to continue: "))
    assert program == "metatrain"
    return command(*arguments, *more)


def refused(done: Done | subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, line), line


@pytest.mark.usefixtures("pictures")
def test_train_ends_with_the_result_and_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    recipe = write(GLYPHS, tmp_path / "g.yaml", evaluation__norm=["transductive", "support+1"])
    done = command(
        "train",
        recipe,
        "--set",
        "outer.steps=4",
        "--set",
        "output=out",
        "--set",
        "validation.every_steps=2",
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert re.match(
        r'^result: accuracy=\d+\.\d\d% ci95=\d+\.\d\d tasks=30 protocol=".*bn=transductive,.*"$',
        last,
    )
    table, rest = lines[:9], lines[9:]
    assert re.match(
        r"accuracy on 30 tasks +mean +95 % +on the same tasks, the result is$", table[0]
    )
    for line, row in zip(
        table[1:],
        (
            "before adaptation, norm transductive",
            "after 1 step, norm transductive (result)",
            "after 1 step, norm support+1",
            "macro precision",
            "macro recall",
            "macro f1",
            "ece",
            "nearest neighbour on pixels",
        ),
        strict=True,
    ):
        number = r"\d+\.\d\d% +± \d+\.\d\d" if "norm" in row or "before" in row else r"\d\d?\.\d\d"
        assert re.match(rf"{re.escape(row)} +{number}", line)
    assert re.search(
        r"\d\.\d\d points (better|worse)$|no clear difference: -?\d+\.\d\d ± \d+\.\d\d points$",
        table[-1],
    )
    pictures = (
        f"out/figures/{name}.png"
        for name in ("adaptation_curve", "example", "learning_curve", "reliability")
    )
    assert rest == [
        "folder: out",
        f"pictures: {' '.join(pictures)}",
        "next: metatrain adapt out --support few --query new",
        "  few: one folder of images per class; new: images to classify",
    ]
    assert done.stderr.count("evaluating on 30 test tasks") == 1
    assert re.search(r"step 4/4  loss \d.*accuracy .*val .*tasks/s  ETA 0:00", done.stderr)
    found = {str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file()}
    assert {"config.yaml", "metrics.jsonl", "result.json", "bundle/meta.safetensors"} <= found
    for picture in ("learning_curve.png", "adaptation_curve.png"):
        assert (Path("out") / "figures" / picture).read_bytes().startswith(b"\x89PNG")
    result = json.loads(Path("out/result.json").read_text())["scores"]
    assert f"accuracy={100 * result[0]['mean']:.2f}%" in last
    again = command("evaluate", "out", "--set", "workers.max=0")
    assert again.stdout.splitlines() == [*table, last]
    as_json = command("evaluate", "out", "--set", "workers.max=0", "--json")
    assert json.loads(as_json.stdout)["scores"] == result
    assert last in as_json.stderr


def test_config_prints_a_recipe_that_trains_the_same_and_where_each_value_is_from(
    tmp_path: Path,
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SINUSOID))
    done = command(
        "config", str(tmp_path / "s.yaml"), "--set", "outer.lr=0.5", "--set", "model={name: mlp}"
    )
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout) == schema.dump(
        config(SINUSOID | {"model": {"name": "mlp"}}, outer__lr=0.5)
    )
    groups = command(
        "config", str(tmp_path / "s.yaml"), "--set", "outer.groups={'*.0.*': {lr: 0.1}}"
    )
    assert yaml.safe_load(groups.stdout)["outer"]["groups"] == {"*.0.*": {"lr": 0.1}}
    lines = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines() if "#" in line)
    sources = {
        key: (value.split("#")[0].strip(), value.split("# ")[1]) for key, value in lines.items()
    }
    assert sources["inner_lr"] == ("0.01", "recipe")
    assert sources["first_order"] == ("false", "default")
    assert sources["lr"] == ("0.5", "--set")
    assert sources["hidden"] == ("[40, 40]", "default")  # --set replaced the whole model


def every_command(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, below in group.commands.items():
        found += (
            every_command(below, (*path, name)) if hasattr(below, "commands") else [(*path, name)]
        )
    return found


@pytest.mark.parametrize("path", every_command(typer.main.get_command(app)), ids=" ".join)
def test_every_command_has_help_with_a_worked_example(path: tuple[str, ...]) -> None:
    done = command(*path, "--help")
    assert done.returncode == 0
    assert re.search(rf"Example:\s+metatrain {' '.join(path)}\b", done.stdout), done.stdout


@pytest.mark.ray
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_an_interrupt_saves_and_the_run_goes_on_exactly(
    number: signal.Signals, workers: int, tmp_path: Path
) -> None:
    """The signal goes to the whole process group, workers included, as from a terminal."""
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=10**6, workers__max=workers)
    arguments = [sys.executable, "-m", "tuning.cli", "train", recipe, "--set", "output=stopped"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = Path("stopped/metrics.jsonl")
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in errors
    stopped = re.search(r"^stopped after (\d+) of 1000000 outer steps$", errors, re.MULTILINE)
    assert stopped, errors
    assert not Path("stopped/bundle").exists()
    longer = ("--set", f"outer.steps={int(stopped[1]) + 20}")
    done = pasted(errors, *longer)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming .*step-\d+ after \d+ steps", done.stderr)
    straight = ("--set", "output=straight", "--set", "workers.max=0", *longer)
    assert command("train", recipe, *straight).returncode == 0
    models = [bundle.load(f"{folder}/bundle")[1].model for folder in ("straight", "stopped")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.ray
@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="sees in /proc when Python has started"
)
def test_ctrl_c_before_the_first_step_ends_in_a_sentence_too(tmp_path: Path) -> None:
    recipe = write(GLYPHS, tmp_path / "g.yaml", outer__steps=10**6)
    arguments = [sys.executable, "-m", "tuning.cli", "train", recipe, "--set", "output=out"]
    for seconds in (0.0, 0.3, 0.8, 1.5):
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        loaded = Path(f"/proc/{process.pid}/maps")
        while "libtorch" not in loaded.read_text():  # Python itself has started by then
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "stopped" in errors
        shutil.rmtree("out", ignore_errors=True)


def test_what_does_not_fit_what_was_trained_is_one_sentence(tmp_path: Path) -> None:
    recipe = write(GLYPHS, tmp_path / "g.yaml", outer__steps=2, evaluation__tasks=4)
    assert command("train", recipe, "--set", "output=out").returncode == 0
    needs = (
        "the evaluation needs .* of shape .*: evaluate with the model, algorithm, norm "
        "and family of training: ways, columns and classes decide shapes"
    )
    changes = (
        "--set .* would change what was trained: an evaluation takes keys of "
        "evaluation and workers, such as"
    )
    for item, sentence in (
        ("evaluation.family.ways=3", needs),
        ("family.ways=3", changes),
        ("seed=3", changes),
    ):
        refused(command("evaluate", "out", "--set", "workers.max=0", "--set", item), sentence)
    done = command("train", recipe, "--set", "evaluation.family.ways=3", "--set", "output=other")
    refused(done, "evaluate with the model, algorithm, norm and family of training")
    refused(
        command("evaluate", recipe), "is a file: give a run's folder, a checkpoint's or a bundle's"
    )
    faster = ("--set", "output=out", "--set", "outer.lr=0.1")
    done = command("train", recipe, *faster, "--resume", "auto")
    refused(
        done,
        "has made 2 outer steps, so outer.lr = 0.1 would change nothing: ask for more outer.steps",
    )
    assert yaml.safe_load(Path("out/config.yaml").read_text())["outer"]["lr"] == 0.003
    other = write(REPTILE, tmp_path / "r.yaml", outer__steps=4)
    done = command("train", other, "--set", "output=out", "--resume", "auto")
    refused(done, "was trained with algorithm.name = 'maml' and cannot resume with 'reptile'")


@pytest.mark.ray
def test_resume_auto_finds_the_newest_run_of_the_recipe(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=3)
    first = command("train", recipe, "--resume", "auto")
    assert "nothing to resume" in first.stderr
    (folder,) = Path("runs/sinusoid").iterdir()
    more = command("train", recipe, "--resume", "auto", "--set", "outer.steps=5")
    assert "after 3 steps" in more.stderr
    assert [p.name for p in Path("runs/sinusoid").iterdir()] == [folder.name]
    by_name = command("train", recipe, "--resume", str(folder), "--set", "outer.steps=6")
    assert "after 5 steps" in by_name.stderr


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (
            ["algorithm.inner_rl=1"],
            "algorithm.inner_rl is not a key of a recipe: did you mean 'inner_lr'",
        ),
        (["outer.lr=fast"], "outer.lr is 'fast', expected a valid number"),
        (["outer.lr"], "--set is 'outer.lr', expected key=value"),
        (["seed.x=1"], "seed.x cannot be set: seed is a value"),
        (
            ["family={name: fewshot, ways: 2000}", "model.name=mlp"],
            "2000 ways were asked for.* has 700 classes",
        ),
        (
            ["family={name: fewshot, data: omniglot}"],
            "not imported yet: run `metatrain data import omniglot`",
        ),
        (
            ["workers={max: 0, gpus: 1}"],
            "asks for a GPU, but torch sees none here: set workers.gpus to 0",
        ),
        pytest.param(
            ["tracking.uri=http://127.0.0.1:9"],
            "MLflow does not answer at http://127.0.0.1:9",
            marks=pytest.mark.ray,
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(sets: list[str], sentence: str, tmp_path: Path) -> None:
    if "gpus" in sets[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    recipe = write(SINUSOID, tmp_path / "s.yaml")
    refused(
        command("train", recipe, *[part for item in sets for part in ("--set", item)]), sentence
    )


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    recipe = write(SINUSOID, tmp_path / "s.yaml", output=str(tmp_path / "taken" / "run"))
    refused(
        command("train", recipe),
        r"cannot write to .*taken/run \(Not a directory\): give another output",
    )


def test_a_run_that_diverges_says_what_to_lower_and_is_saved(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__lr=1e30, output="out")
    refused(
        command("train", recipe),
        "are not finite, such as .*: lower algorithm.inner_lr or outer.lr; "
        "the last whole step is saved",
    )
    assert list(Path("out/checkpoints").iterdir())


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=3, output="out")
    assert command("train", recipe).returncode == 0
    file = Path("out/checkpoints/step-00000003/learner.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    sentence = "is damaged: learner.safetensors is not what was saved: use another checkpoint"
    refused(command("train", recipe, "--resume", "out", "--set", "outer.steps=5"), sentence)
    bundled = Path("out/bundle/meta.safetensors")
    bundled.write_bytes(b"x" + bundled.read_bytes()[1:])
    refused(command("evaluate", "out/bundle"), "is damaged: meta.safetensors is not what was saved")
    refused(command("evaluate", "nowhere"), "nowhere holds no checkpoint")


@pytest.mark.ray
def test_an_unreachable_cluster_is_one_sentence(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", workers__max=1)
    sentence = "no Ray cluster answers at 127.0.0.1:%d .*check --address"
    refused(spawned("train", recipe, "--address", "127.0.0.1:1"), sentence % 1)
    with socketserver.TCPServer(
        ("127.0.0.1", 0), socketserver.BaseRequestHandler
    ) as other:  # listens, is no Ray
        port = other.server_address[1]
        sentence = (
            "no Ray cluster answers at 127.0.0.1:%d .*asks for a token: set "
            "RAY_AUTH_MODE=token.*check --address"
        )
        refused(spawned("train", recipe, "--address", f"127.0.0.1:{port}"), sentence % port)


@pytest.mark.ray
def test_a_given_cluster_is_joined_and_left_running(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    recipe = write(SINUSOID, tmp_path / "s.yaml", workers__max=1, outer__steps=3)
    address = ray.get_runtime_context().gcs_address
    joined = spawned("train", recipe, "--set", "output=a", "--address", address)
    assert joined.returncode == 0, joined.stderr
    too_much = ("--set", "workers={min: 2, max: 2, cpus: 3, wait_s: 2}")
    surrounding = {"RAY_ADDRESS": address}
    refused(
        spawned("train", recipe, "--set", "output=b", *too_much, env=surrounding),
        r"[01] of workers\.min = 2 workers of 3 CPUs and 0 GPUs could start in workers\.wait_s = 2 "
        r"s",
    )
    assert ray.cluster_resources()["CPU"] == 4


@pytest.mark.ray
def test_more_than_this_machine_has_is_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    recipe = write(SINUSOID, tmp_path / "s.yaml")
    sentence = "1 workers of 1 CPUs and 1 GPUs do not fit on this machine"
    refused(spawned("train", recipe, "--set", "workers={min: 1, gpus: 1}"), sentence)


@pytest.mark.ray
def test_data_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path))

    def listed() -> dict[str, str]:
        lines = command("data", "list").stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    assert listed()["glyphs"] == "drawn at first use"
    assert listed()["omniglot"] == "not imported: metatrain data import omniglot"
    drawn = command("data", "import", "glyphs")
    assert drawn.stdout.startswith(
        "imported glyphs: 1000 classes, 20000 images of 28x28 pixels, grey into "
    )
    checked = command("data", "check", "glyphs").stdout.splitlines()
    assert (
        checked[0]
        == "glyphs: the checksum is right; 1000 classes, 20000 images of 28x28 pixels, grey"
    )
    assert checked[1] == "  20 to 20 images a class, median 20"
    assert checked[2].startswith(
        "  splits glyphs: train 700, val 100, test 200 classes, disjoint; "
    )
    whole = "1000 classes, 20000 images of 28x28 pixels, grey; splits glyphs"
    assert listed()["glyphs"].startswith(whole)
    refused(
        command("data", "import", "omniglut"),
        f"'omniglut' is none of {', '.join(SOURCES)}: .*give --source",
    )
    refused(
        command("data", "import", "omniglot", "--size", "28"),
        "omniglot comes in its published size",
    )
    refused(command("data", "import", "a/b"), "'a/b' cannot name a data set")
    refused(
        command("data", "import", "2024", "--source", "."),
        "'2024' cannot name a data set: .* not a number",
    )
    (tmp_path / "glyphs" / "images.arrow").write_bytes(b"")
    album(tmp_path / "photos", range(4), 2)
    assert command("data", "import", "mine", "--source", str(tmp_path / "photos")).returncode == 0
    damaged = "is not what was imported: run `metatrain data import glyphs` again"
    assert damaged in listed()["glyphs"]
    assert listed()["mine"].startswith("4 classes")
    refused(
        command("data", "import", "omniglot", "--source", "nowhere"),
        "nowhere holds neither a folder images_back",
    )


def test_the_versions_are_one_line_and_read_without_torch() -> None:
    code = (
        "import sys; from tuning.cli import app; app(['--version'], "
        "standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line, modules = done.stdout.splitlines()
    assert re.fullmatch(
        r"metatrain \d\S* \(Python \d\S*, torch \d\S*, ray \d\S*, mlflow \d\S*\)", line
    )
    assert not {"torch", "ray", "mlflow", "pandas", "matplotlib"} & set(modules.split())


def test_the_shells_completion_can_be_installed() -> None:
    program = Path(sys.executable).parent / "metatrain"
    typed = [
        "bash",
        "-c",
        f"{program} --show-completion; true",
    ]  # Typer looks for the shell that it was started from
    done = subprocess.run(typed, capture_output=True, text=True, check=True)
    assert "_METATRAIN_COMPLETE=complete_bash" in done.stdout
    asked = os.environ | {
        "_METATRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "metatrain ev",
        "COMP_CWORD": "1",
    }
    found = subprocess.run(program, capture_output=True, text=True, check=False, env=asked)
    assert found.stdout.split() == ["evaluate"]


def test_what_ends_without_an_output_of_its_own_is_continued_by_its_folder(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "a recipe.yaml", outer__steps=6)
    done = command("train", recipe, "--set", "outer.lr=1e30")
    refused(
        done,
        "are not finite, such as .*: lower algorithm.inner_lr or outer.lr; "
        "the last whole step is saved$",
    )
    (folder,) = Path("runs/sinusoid").iterdir()
    last = done.stderr.splitlines()[-1]
    assert last == f"to continue: metatrain train '{recipe}' --set outer.lr=1e30 --resume {folder}"
    again = pasted(done.stderr)
    refused(again, "are not finite")
    assert f"resuming {folder}/checkpoints" in again.stderr
    assert again.stderr.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("runs/x was removed"), "runs/x was removed$"),
        (OSError(28, "No space left on device", "runs/x"), "No space left on device: runs/x$"),
        (RuntimeError("unheard of"), ""),
    ],
)
def test_whatever_ends_a_run_that_has_saved_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=6)

    def fail(*arguments: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(results, "leave", fail)
        if sentence:
            done = command("train", recipe)
            refused(done, sentence)
            line = done.stderr.splitlines()[-1]
        else:
            with pytest.raises(RuntimeError) as raised:
                command("train", recipe)
            (line,) = console.notes(raised.value)  # a traceback ends with it
    (folder,) = Path("runs/sinusoid").iterdir()
    assert line == f"to continue: metatrain train {recipe} --resume {folder}"
    assert pasted(line).returncode == 0


def test_where_checkpoints_lie_elsewhere_the_command_names_the_output(tmp_path: Path) -> None:
    recipe = write(
        SINUSOID, tmp_path / "s.yaml", outer__lr=1e30, checkpoint__uri=str(tmp_path / "saved")
    )
    done = command("train", recipe)
    (folder,) = Path("runs/sinusoid").iterdir()
    assert done.stderr.splitlines()[-1].endswith(f" --set output={folder} --resume auto")
    assert f"resuming {tmp_path}/saved/step-" in pasted(done.stderr).stderr


def test_a_name_in_the_list_of_runs_does_not_move_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = dict.fromkeys(("when", "steps", "of", "result", "diverged")) | {"kind": "run"}
    names = {"name": "a\x1b[31m", "folder": "runs/b\nc\u202e"}
    console.print_table(tables.of_runs([row | names]))
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == [r"a\x1b[31m", "run", r"runs/b\nc\u202e"]


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    assert (
        command("runs").stdout
        == "there are no runs in runs: train one with metatrain train RECIPE\n"
    )
    assert json.loads(command("runs", "--json").stdout) == []
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=2, evaluation__tasks=4)
    assert command("train", recipe, "--set", "output=runs/whole").returncode == 0
    assert (
        command("train", recipe, "--set", "output=runs/half", "--set", "outer.lr=1e30").returncode
        == 2
    )
    os.utime("runs/whole/result.json", (0, 0))
    for file in Path("runs/whole").iterdir():
        os.utime(file, (10**9, 10**9))
    head, half, whole = command("runs").stdout.splitlines()
    assert head.split() == ["name", "kind", "when", "steps", "result", "folder"]
    assert re.fullmatch(r"sinusoid +run +20\d\d-\d\d-\d\d \d\d:\d\d +\d of 2 +runs/half", half)
    assert re.fullmatch(
        r"sinusoid +run +2001-09-0\d \d\d:\d\d +2 of 2 +mse \d+\.\d{4} ± \d+\.\d{4} +runs/whole",
        whole,
    )
    first, second = json.loads(command("runs", "--json").stdout)
    assert (first["folder"], first["mean"], second["folder"], second["kind"]) == (
        "runs/half",
        None,
        "runs/whole",
        "run",
    )
    assert (
        second["mean"]
        == json.loads(Path("runs/whole/result.json").read_text())["scores"][0]["mean"]
    )
    refused(command("runs", "nowhere"), "there is no folder nowhere: give one that holds runs")
    refused(command("runs", recipe), "s.yaml is a file: give a folder")


def test_config_takes_a_runs_folder_and_a_bundle(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=1, evaluation__tasks=4)
    assert command("train", recipe, "--set", "output=out").returncode == 0
    of_run = command("config", "out", "--set", "seed=3")
    assert yaml.safe_load(of_run.stdout) == yaml.safe_load(Path("out/config.yaml").read_text()) | {
        "seed": 3
    }
    assert re.search(r"^name: sinusoid +# run's folder$", of_run.stdout, re.MULTILINE)
    of_bundle = yaml.safe_load(command("config", "out/bundle").stdout)
    assert of_bundle["outer"] == yaml.safe_load(of_run.stdout)["outer"]
    assert command("config", "out/checkpoints/step-00000001").returncode == 0
    refused(
        command("train", "out"),
        "out is a run's folder: continue it with metatrain train out/config.yaml --resume out",
    )
    assert (
        command("train", "out/config.yaml", "--resume", "out", "--set", "outer.steps=2").returncode
        == 0
    )
    refused(command("config", "out/figures"), r"cannot read out/figures \(")


def test_a_sweep_given_to_train_names_the_command_that_takes_it(tmp_path: Path) -> None:
    (tmp_path / "a sweep.yaml").write_text("name: s\nrecipe: s.yaml\nspace: {}\n")
    for name in ("train", "config"):
        refused(
            command(name, "a sweep.yaml"),
            "^error: a sweep.yaml is a sweep: metatrain tune 'a sweep.yaml'$",
        )
    with pytest.raises(InputError, match=r"a sweep\.yaml is a sweep: metatrain\.tune takes it"):
        metatrain.train("a sweep.yaml")


TERMINAL = """
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.environ |= {"COLUMNS": "100", "TERM": "xterm"}
    os.execv(sys.executable, [sys.executable, "-m", "tuning.cli", *sys.argv[1:]])
try:
    while data := os.read(fd, 4096):
        os.write(1, data)
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.ray
def test_on_a_terminal_the_progress_lines_last_words_stay(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=3, evaluation__tasks=4)
    arguments = [sys.executable, "-c", TERMINAL, "train", recipe]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", done.stdout).splitlines()
    (last,) = [i for i, line in enumerate(shown) if re.match("step 3/3  loss .*ETA 0:00$", line)]
    assert any(re.match("│ after 1 step .result. +│ +\\d", line) for line in shown[last:])


@pytest.mark.ray
def test_a_closed_stdout_loses_nothing(tmp_path: Path) -> None:
    recipe = write(SINUSOID, tmp_path / "s.yaml", outer__steps=1, evaluation__tasks=4)
    line = shlex.join([sys.executable, "-m", "tuning.cli", "train", recipe, "--set", "output=out"])
    done = subprocess.run(
        ["bash", "-c", f"{line} >&-"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert Path("out/result.json").exists()


@pytest.mark.parametrize(
    ("metric", "difference", "said"),
    [
        (ACCURACY, (0.4, 0.02), "40.00 ± 2.00 points better"),
        (MSE, (0.4, 0.02), "0.4000 ± 0.0200 worse"),
        (MSE, (-0.4, 0.02), "0.4000 ± 0.0200 better"),
        (RETURN, (-0.4, 0.02), "0.4000 ± 0.0200 worse"),
        (Metric("f1", "max", "percent"), (0.4, 0.02), "40.00 ± 2.00 points better"),
        (MSE, (-0.01, 0.02), "no clear difference: -0.0100 ± 0.0200"),
        (ACCURACY, (-1e-8, 1e-9), "no clear difference: -0.00 ± 0.00 points"),
        (MSE, (math.nan, math.nan), ""),
    ],
)
def test_the_closing_table_has_few_steps_and_says_what_is_better(
    metric: Metric,
    difference: tuple[float, float],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = [*range(11), 20, 24]
    values = [0.25] * len(steps)
    diverged = [0] * 12 + [3]
    score = Score(
        metric=metric,
        mean=0.25,
        ci95=0.02,
        tasks=40,
        diverged=3,
        median=0.5,
        quartiles=(0.25, 0.75),
        norm="none",
        protocol="p",
        steps=steps,
        curve=values,
        curve_ci95=values,
        curve_diverged=diverged,
        curve_median=values,
        curve_quartiles=[(0.25, 0.75)] * len(steps),
        baselines={"support_mean": 0.5},
        baseline_ci95={"support_mean": 0.03},
        baseline_steps={"support_mean": 7},
        differences={"support_mean": difference},
        measures={},
    )
    console.print_table(tables.of_scores([score]))
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", head)[1:6] == ["mean", "95 %", "median", "quartiles", "diverged"]
    expected = [
        "before adaptation",
        *(f"after {n} step{'s' * (n > 1)}" for n in (1, 3, 5, 10)),
        "after 24 steps (result)",
    ]
    assert [re.split(" {2,}", row)[0] for row in rows] == expected
    assert [re.split(" {2,}", row)[-1] for row in rows] == ["0"] * 5 + ["3"]
    shown = f"support mean, after 7 steps {metric.text(0.5)} ± {metric.width(0.03)}"
    assert " ".join(last.split()).startswith(shown)
    assert last.endswith(said)
    if metric == ACCURACY:
        assert "25.00% to 75.00%" in rows[0]


def test_adapt_offers_each_norm() -> None:
    assert {*get_args(metatrain_cli.NormOption), "none"} == set(get_args(Norm))
