"""A run's folder: nothing that lies there is overwritten, and what an early end leaves is no
hindrance.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cases import SINUSOID, config
from services import S3, command

from cluster import checkpoint, output, run
from cluster.lines import whole_lines
from metatrain import schema, storage
from metatrain.core import InputError
from metatrain.data import remote
from metatrain.data.sources import open_data

SHORT = {"outer__steps": 4, "checkpoint__every_steps": 2, "evaluation__tasks": 7}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        run.train(config(SINUSOID, output="run", **SHORT))
    return folder


@pytest.fixture
def done(trained: Path, tmp_path: Path) -> Path:
    """A run that is over, in a folder of this test's."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def project(folder: Path) -> Path:
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    for name in ("config.yaml", "result.json", "README.md"):
        (folder / name).write_text("port: 80")
    return folder


def just_a_config(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("port: 80")
    return folder


def own_recipe(folder: Path) -> Path:
    """A person's recipe, that is called as a run's record of it."""
    folder.mkdir()
    (folder / "config.yaml").write_text("# mine\n" + yaml.safe_dump(SINUSOID))
    return folder


def just_figures(folder: Path) -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "learning_curve.png").write_bytes(b"mine")
    return folder


def checkpoints_of_another_program(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.ckpt").write_bytes(b"mine")
    return folder


def metrics_of_another_program(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    return folder


def only_git(folder: Path) -> Path:
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    return folder


def parent_of_runs(folder: Path) -> Path:
    (folder / "sinusoid" / "20260101-000000").mkdir(parents=True)
    (folder / "sinusoid" / "20260101-000000" / "metrics.jsonl").write_text("")
    return folder


def data_set(folder: Path) -> Path:
    remote.push(open_data("glyphs"), str(folder))
    return folder


def sweep(folder: Path) -> Path:
    (folder / "trials" / "00").mkdir(parents=True)
    for name in ("sweep.yaml", "recipe.yaml", "journal.jsonl", "mlflow.json", "result.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize(
    "made",
    [
        project,
        just_a_config,
        own_recipe,
        just_figures,
        checkpoints_of_another_program,
        metrics_of_another_program,
        only_git,
        parent_of_runs,
        data_set,
        sweep,
    ],
)
def test_a_folder_with_something_else_is_refused(
    made: Callable[[Path], Path], resume: str | None, tmp_path: Path
) -> None:
    folder = made(tmp_path / "taken")
    before = files(folder)
    with pytest.raises(InputError, match=r"taken holds \S+ and no run: give another output"):
        run.prepare(config(SINUSOID, output=str(folder)), resume)
    assert files(folder) == before


def test_the_folder_of_a_project_by_its_dot_is_refused_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path / "mine"))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SINUSOID))
    before = files(tmp_path)
    done = command("train", "../s.yaml", "--set", "output=.")
    assert done.returncode == 2
    assert done.stderr == "error: . holds .git and no run: give another output\n"
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "inside", ["checkpoints", "checkpoints/step-00000004", "bundle", "figures"]
)
def test_a_folder_of_a_runs_is_no_runs_folder(inside: str, done: Path) -> None:
    (done / "figures" / "curve.png").write_bytes(b"a picture")  # tests draw none themselves
    before = files(done)
    with pytest.raises(InputError, match=r"holds \S+ and no run"):
        run.prepare(config(SINUSOID, output=str(done / inside)))
    assert files(done) == before


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_file_is_refused(resume: str | None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file: give a folder as output"):
        run.prepare(config(SINUSOID, output=str(tmp_path / "file")), resume)
    with pytest.raises(
        InputError, match=r"checkpoint\.uri is .*file, which is a file: give a folder"
    ):
        run.prepare(config(SINUSOID, checkpoint__uri=str(tmp_path / "file")), resume)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_an_address_with_other_objects_is_refused(resume: str | None, s3: S3) -> None:
    for name in ("data.bin", "deep/er/data.bin"):
        where = f"s3://bucket/{resume}-{len(name)}"
        storage.write(f"{where}/{name}", b"mine")
        s3.log.write_text("")
        with pytest.raises(InputError, match=f"holds {name.partition('/')[0]} and no run: give"):
            run.prepare(config(SINUSOID, output=where), resume)
        assert not s3.asked(
            "GET", f"{where.removeprefix('s3://bucket/')}/{name}"
        )  # which may be large
    storage.write("s3://bucket/object", b"mine")
    with pytest.raises(InputError, match="s3://bucket/object is a file: give a folder as output"):
        run.prepare(config(SINUSOID, output="s3://bucket/object"), resume)


LEFT: dict[str, dict[str, str]] = {
    "nothing": {},
    "mlflow.json": {"mlflow.json": "{}"},
    "its trial's error": {"error.txt": "no room"},
    "hidden files": {".DS_Store": "", ".nfs0001": ""},
    "a record": {"config.yaml": "RECORD"},
    "a record and half of another": {"config.yaml": "RECORD", "config.yaml.partial": "name: s"},
    "no step": {"config.yaml": "RECORD", "mlflow.json": "{}", "metrics.jsonl": ""},
    "half a line": {"config.yaml": "RECORD", "metrics.jsonl": '{"step'},
}
BEFORE_THE_FIRST: dict[str, dict[str, str]] = {
    "some steps": {"config.yaml": "RECORD", "metrics.jsonl": '{"step": 0}\n{"step": 1}\n{"step"'},
    "all steps": {"config.yaml": "RECORD", "metrics.jsonl": '{"step": 1}\n{"step": 2}\n'},
    "half a checkpoint": {"config.yaml": "RECORD", "checkpoints/step-00000002/learner.json": "{"},
}


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("left", [*LEFT, *BEFORE_THE_FIRST])
def test_what_an_early_end_leaves_is_no_hindrance(
    left: str, resume: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder, settings = tmp_path / "run", config(SINUSOID, output=str(tmp_path / "run"), **SHORT)
    for name, text in (LEFT | BEFORE_THE_FIRST)[left].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            yaml.safe_dump(schema.dump(settings)) if text == "RECORD" else text
        )
    if resume is None and left in BEFORE_THE_FIRST:
        with pytest.raises(
            InputError, match="already holds a run: pass --resume auto to continue it"
        ):
            run.prepare(settings)
        return
    assert run.prepare(settings, resume).learner.version == 0
    assert (resume is not None) == (
        "there is nothing to resume for sinusoid: starting a new run" in caplog.messages
    )


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("left", ["all", "a half", "metrics", "result.json", "bundle"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_over(
    left: str, resume: str | None, done: Path
) -> None:
    if left == "a half":
        for manifest in done.glob("checkpoints/*/manifest.json"):
            manifest.unlink()
    else:
        shutil.rmtree(done / "checkpoints")
    if left in ("metrics", "result.json", "bundle"):
        shutil.rmtree(done / "figures")
        for name in {"result.json", "bundle", "metrics.jsonl"} - {left, f"{left}.jsonl"}:
            shutil.rmtree(done / name) if (done / name).is_dir() else (done / name).unlink()
        (done / "mlflow.json").write_text("{}")
    before = files(done)
    sentence = r"run holds a run whose checkpoints are gone from \S+run/checkpoints: give another"
    with pytest.raises(InputError, match=sentence):
        run.prepare(config(SINUSOID, output=str(done), **SHORT), resume)
    assert files(done) == before


@pytest.mark.parametrize("given", [True, False])
def test_a_run_whose_checkpoint_uri_is_gone_is_not_started_over(
    given: bool, tmp_path: Path
) -> None:
    settings = config(SINUSOID, output="run", checkpoint__uri="elsewhere", **SHORT)
    run.train(settings)
    with pytest.raises(
        InputError, match="run already holds a run: pass --resume auto to continue it"
    ):
        run.prepare(settings)
    again = settings if given else config(SINUSOID, output="run", **SHORT)
    assert run.prepare(again, "auto").learner.version == 4  # which its own record says
    shutil.rmtree("elsewhere")
    before = files(tmp_path)
    for resume in (None, "auto"):
        with pytest.raises(
            InputError,
            match="whose checkpoints are gone from elsewhere: give another",
        ):
            run.prepare(again, resume)
    assert files(tmp_path) == before


def test_a_checkpoint_uri_that_another_run_uses_is_refused(tmp_path: Path) -> None:
    """By whatever start: its checkpoints would be replaced."""
    first = config(SINUSOID, output="first", checkpoint__uri="shared", **SHORT)
    run.train(first)
    run.train(config(SINUSOID, output="third", **SHORT))
    before = files(tmp_path)
    second = config(SINUSOID, output="second", checkpoint__uri="shared", **SHORT)
    plain = config(SINUSOID, checkpoint__uri="./shared/", **SHORT)
    third = config(SINUSOID, output="third", checkpoint__uri="shared", **SHORT)
    sentence = (
        "checkpoint.uri is .*shared/?, which holds the checkpoints of another run: give another one"
    )
    starts = [
        (second, None),
        (second, "auto"),
        (plain, None),
        (plain, "auto"),
        (third, "auto"),
        (third, "third"),
    ]
    for settings, resume in starts:
        with pytest.raises(InputError, match=sentence):
            run.prepare(settings, resume)
    assert files(tmp_path) == before
    assert run.prepare(first, "auto").learner.version == 4
    shutil.rmtree("first")
    assert run.prepare(first, "auto").learner.version == 4  # which its checkpoints say
    assert run.prepare(second, "shared").learner.version == 4  # as it was told


def test_a_run_may_move_its_checkpoints(done: Path) -> None:
    settings = config(
        SINUSOID, output=str(done), checkpoint__uri="elsewhere", **SHORT | {"outer__steps": 6}
    )
    run.train(settings, resume="auto")
    assert checkpoint.load("elsewhere").scalars["version"] == 6
    assert (
        run.prepare(
            config(SINUSOID, output=str(done), **SHORT | {"outer__steps": 8}), "auto"
        ).learner.version
        == 6
    )


def test_the_newest_run_that_has_a_checkpoint_is_continued(trained: Path) -> None:
    for day, version in ((1, 4), (2, 2)):
        step = f"checkpoints/step-{version:08d}"
        shutil.copytree(trained / step, f"runs/sinusoid/2026010{day}-000000/{step}")
    Path("runs/sinusoid/20260103-000000").mkdir()  # it ended before its first one
    folder, saved = output.choose(config(SINUSOID), "auto")
    assert str(folder) == "runs/sinusoid/20260102-000000"
    assert saved is not None
    assert saved.version == 2


def test_a_run_continues_in_its_own_folder_or_in_a_free_one(
    done: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "other")
    tree = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text()) | {
        "output": str(tmp_path / "other")
    }
    (tmp_path / "other" / "config.yaml").write_text(yaml.safe_dump(tree))
    more = SHORT | {"outer__steps": 6}
    before = files(tmp_path)
    for name, sentence in (
        ("other", "other already holds a run"),
        ("other/bundle", r"bundle holds \S+ and no run"),
    ):
        with pytest.raises(InputError, match=sentence):
            run.prepare(config(SINUSOID, output=str(tmp_path / name), **more), str(done))
    assert files(tmp_path) == before
    for into in ("run", "new"):
        ready = run.prepare(
            config(SINUSOID, output=str(tmp_path / into), **more),
            f"{done}/checkpoints/step-00000002",
        )
        assert ready.learner.version == 2
    own = config(SINUSOID, output=str(tmp_path / "other"), **more)
    assert run.prepare(own, str(done), trial=True).learner.version == 4


def test_what_people_put_beside_a_run_does_not_keep_it_from_going_on(done: Path) -> None:
    (done / "notes.txt").write_text("mine")
    assert (
        run.prepare(
            config(SINUSOID, output=str(done), **SHORT | {"outer__steps": 6}), "auto"
        ).learner.version
        == 4
    )


HALVES = [
    b'{"step": 3, "tr',
    b"\0\0\0\0",
    b"null",
    b"5",
    b"[]",
    b"{}",
    b'"step"',
    b'{"step": null}',
    b'{"step": "3"}',
]
HALVES += [
    b'{"step": 3}\xff\xfe',
    b'{"step": true}',
    b'{"step": NaN}',
    b"[" * 100_000,
    b"",
    b'{"step": [3]}',
]


def test_lines_that_are_no_steps_are_left_out_on_resuming(
    done: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (done / "metrics.jsonl").read_bytes().splitlines()
    (done / "metrics.jsonl").write_bytes(
        b"\n".join([*HALVES, *whole[:2], *HALVES, whole[3], *HALVES])
    )
    run.train(config(SINUSOID, output=str(done), **SHORT | {"outer__steps": 5}), resume="auto")
    steps = [json.loads(line)["step"] for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 4, 5]
    assert f"{done}/metrics.jsonl lacks 1 of the 4 outer steps before" in caplog.messages


LEARNED = SINUSOID | {
    "algorithm": {"name": "meta_sgd", "initial_lr": 0.01},
    "validation": {"every_steps": 2},
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned") / "run"
    run.train(config(LEARNED, output=str(folder), **SHORT))
    return folder


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("rest", ["nothing", "no file", "steps", "nulls"])
def test_metrics_that_are_gone_are_said_to_be_and_drawn_without(
    rest: str, learned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(learned, tmp_path / "run")
    path, settings = (
        tmp_path / "run" / "metrics.jsonl",
        config(LEARNED, output=str(tmp_path / "run"), **SHORT),
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    nulls = [{name: value if i % 2 or name == "step" else None for name, value in row.items()}
             for i, row in enumerate(rows)]  # fmt: skip
    left = {
        "nothing": [],
        "no file": [],
        "steps": [{"step": row["step"]} for row in rows],
        "nulls": nulls,
    }[rest]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in left))
    if rest == "no file":
        path.unlink()
    shutil.rmtree(tmp_path / "run" / "figures")
    run.train(settings, resume="auto")
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} >= {
        "learning_curve",
        "learned",
    }
    said = f"{path} lacks 4 of the 4 outer steps before"
    assert (said in caplog.messages) == (not left)
    assert [row for _, row in whole_lines(path.read_bytes())] == [json.dumps(row) for row in left]
