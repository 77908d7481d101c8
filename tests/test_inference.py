"""What was learned, put to use: the same probabilities from Python, from the command line and in
the evaluation.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import CASES, GLYPHS, REPTILE, SINUSOID, config
from PIL import Image
from rich.cells import cell_len
from services import Done, cache_in, command
from torch import Tensor

import metatrain
from cluster import run
from cluster.workers.plan import Plan
from cluster.workers.worker import Worker
from metatrain import bundle, cli, figures
from metatrain.core import InputError, Ticket, generator_for
from metatrain.inference import Learned, Predictions
from metatrain.inference.report import Predicted, classified
from metatrain.names import shortened
from metatrain.start import prepare
from metatrain.tasks import FewShot, open_data


class Trained(NamedTuple):
    folder: Path
    task: list[
        tuple[Tensor, str, str]
    ]  # of the evaluation's first ticket: image, label, "support" or "query"
    probabilities: dict[
        str, Tensor
    ]  # by norm, what the evaluation gives each query image: [Q, classes]


NORMS = ("transductive", "support+1")


@pytest.fixture(scope="module", params=["maml", "reptile"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A short run, one test episode of it, and the probabilities that its evaluation computes
    there.
    """
    base = {"maml": GLYPHS, "reptile": REPTILE}[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "run"
    settings = config(
        base,
        output=str(folder),
        outer__steps=5,
        evaluation={
            "tasks": 4,
            "tasks_per_ticket": 1,
            "family": {"shots": 3, "queries": 2},
            "algorithm": {"inner_steps": 4},
            "norm": NORMS,
        },
    )
    run.train(settings)
    recipe, meta = bundle.load(str(folder / "bundle"))
    prepared = prepare(recipe)
    worker = Worker(prepared, Plan("reference", "cpu", 1))
    worker.load(0, worker.layout.flatten(meta))
    ticket = Ticket("score", "test", 0, 0)
    setting, problem = prepared.settings[ticket.purpose], prepared.problems[ticket.purpose]
    seen: list[Tensor] = []

    def spy(prediction: Tensor, _: Tensor) -> Tensor:
        seen.append(prediction.softmax(-1)[0])
        return torch.zeros(len(prediction))

    problem.metrics["spy"] = spy
    worker.compute(ticket)
    task = setting.family.sample(generator_for(setting.seed, ticket, "tasks"), 1, "test")
    support = [
        (x, f"class {y}", "support")
        for x, y in zip(task.support_x[0], task.support_y[0], strict=True)
    ]
    query = [
        (x, f"class {y}", "query") for x, y in zip(task.query_x[0], task.query_y[0], strict=True)
    ]
    return Trained(folder, support + query, dict(zip(NORMS, seen[-len(NORMS) :], strict=True)))


def part(trained: Trained, which: str) -> tuple[list[Tensor], list[str]]:
    return [x for x, _, p in trained.task if p == which], [
        label for _, label, p in trained.task if p == which
    ]


def files(trained: Trained, folder: Path) -> Path:
    """The episode as folders support/ and query/ of class folders."""
    for i, (image, label, which) in enumerate(trained.task):
        path = folder / which / label / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return folder


def adapt(trained: Trained, folder: Path, *more: str) -> tuple[Done, Any]:
    arguments = ["--support", str(folder / "support"), "--query", str(folder / "query"), *more]
    done = command("adapt", str(trained.folder), *arguments)
    return done, json.loads(
        Path("adapted/predictions.json").read_text()
    ) if done.returncode == 0 else None


@pytest.mark.ray  # takes seconds
@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("norm", NORMS)
def test_python_the_command_and_the_evaluation_give_equal_probabilities(
    trained: Trained, norm: Any, tmp_path: Path
) -> None:
    expected = trained.probabilities[norm]
    query, truth = part(trained, "query")
    adapted = metatrain.load(trained.folder).adapt(*part(trained, "support"), norm=norm)
    found = adapted.predict(query)
    assert found.classes == [f"class {i}" for i in range(5)]
    assert torch.equal(found.probabilities, expected)
    assert found.labels == [found.classes[i] for i in expected.argmax(-1)]
    done, written = adapt(trained, files(trained, tmp_path), "--norm", norm)
    assert done.returncode == 0, done.stderr
    rows = written["predictions"]
    assert [row["class"] for row in rows] == truth
    assert [row["prediction"] for row in rows] == found.labels
    assert torch.equal(
        torch.tensor([list(row["probabilities"].values()) for row in rows]), expected
    )
    assert written["norm"] == norm
    assert written["adaptation_ms"] > 0
    right = sum(label == predicted for label, predicted in zip(truth, found.labels, strict=True))
    assert written["accuracy"] == right / len(truth)
    assert f"accuracy: {100 * right / len(truth):.1f}% of {len(truth)} images" in done.stdout
    assert done.stdout.count("✓") == right
    assert done.stdout.count("✗") == len(truth) - right
    assert Path("adapted/predictions.png").read_bytes().startswith(b"\x89PNG")
    assert ("pass --norm support+1" in done.stdout) == (norm == "transductive")


def test_images_may_be_arrays_tensors_pictures_or_paths_and_labels_of_any_kind(
    trained: Trained, tmp_path: Path
) -> None:
    images, labels = part(trained, "support")
    query, _ = part(trained, "query")
    learned = metatrain.load(str(trained.folder / "bundle"))
    expected = learned.adapt(images, labels).predict(query).probabilities
    numbers = [int(label.split()[1]) for label in labels]
    pictures = [Image.fromarray(image[0].numpy()) for image in images]
    paths = sorted(files(trained, tmp_path).glob("support/*/*"))
    for x, y in [
        (torch.stack(images), torch.tensor(numbers)),
        (torch.stack(images).numpy()[:, 0], np.array(numbers)),
        (torch.stack(images).float() / 255, labels),
        (pictures, numbers),
        (paths, labels),
    ]:
        adapted = learned.adapt(x, y)
        assert torch.equal(adapted.predict(torch.stack(query)).probabilities, expected)
    assert adapted.predict(query[0]).probabilities.shape == (1, 5)


def test_without_common_statistics_a_prediction_does_not_depend_on_the_others(
    trained: Trained,
) -> None:
    query, _ = part(trained, "query")
    adapted = metatrain.load(trained.folder).adapt(*part(trained, "support"), norm="support+1")
    together = adapted.predict(query).probabilities
    for image, expected in zip(query, together, strict=True):
        torch.testing.assert_close(adapted.predict([image]).probabilities[0], expected)
    transductive = metatrain.load(trained.folder).adapt(
        *part(trained, "support"), norm="transductive"
    )
    assert not torch.allclose(
        transductive.predict(query[:1]).probabilities, transductive.predict(query).probabilities
    )


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import metatrain
learned = metatrain.load(sys.argv[1])
assert learned._bind(learned.recipe.family, "transductive").path == "fused"
images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
adapted = learned.adapt(images, [0, 1, 2, 3, 4])
assert adapted.predict(images).probabilities.shape == (5, 5)
memory = dict(line.split(":", 1) for line in open("/proc/self/status"))
loaded = {m.split(".")[0] for m in sys.modules}
unwanted = {"ray", "mlflow", "matplotlib", "torchvision", "cluster", "tuning"} & loaded
print(int(memory["RssAnon"].split()[0]) // 1024, *sorted(unwanted))
"""


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
def test_a_bundle_alone_is_enough_in_half_a_gigabyte(tmp_path: Path) -> None:
    """No data set, no Ray, no MLflow: a conv4 of 64 filters adapts to 5-way 1-shot in a process of
    its own, fused.

    Counted is the memory that the process holds; the pages of PyTorch's libraries belong to the
    file cache.
    """
    settings = config(
        GLYPHS, model__filters=64, output=str(tmp_path / "run"), outer__steps=1, evaluation__tasks=2
    )
    run.train(settings)
    alone = shutil.copytree(tmp_path / "run" / "bundle", tmp_path / "alone")
    environment = os.environ | {"METATRAIN_CACHE": str(cache_in(tmp_path / "cache"))}
    arguments = [sys.executable, "-c", SCRIPT, str(alone)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, *unwanted = done.stdout.split()
    assert not unwanted
    assert int(megabytes) < 500
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".compiled"]


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (
            3,
            [0, 1, 2],
            r"tells 5 classes apart, got labels of 3 \(0, 1, 2\): give examples of 5 classes",
        ),
        (1, [0], "all examples have the same label, so there is nothing to tell apart"),
        (5, [0, 1], "there are 5 examples but 2 labels"),
        (2, [0, "a"], "labels must be numbers or strings, all of one kind"),
        (5, torch.eye(5), "labels must be one number or string for each example, not vectors"),
    ],
)
def test_a_support_set_that_does_not_fit_is_one_sentence(
    trained: Trained, images: int, labels: list[Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        metatrain.load(trained.folder).adapt(torch.zeros(images, 28, 28), labels)


def test_the_command_says_what_is_wrong_and_leaves_nothing(
    trained: Trained, tmp_path: Path
) -> None:
    folder = files(trained, tmp_path)

    def refused(sentence: str, bundle: str, support: str, query: str) -> None:
        done = command("adapt", bundle, "--support", support, "--query", query)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert sentence in done.stderr
        assert not Path("adapted").exists()

    ours, support, query = str(trained.folder), str(folder / "support"), str(folder / "query")
    (folder / "empty").mkdir()
    refused("nowhere holds no bundle or checkpoint", "nowhere", support, query)
    refused("nowhere does not exist: give image files, or a folder of them", ours, "nowhere", query)
    refused("new.png does not exist", ours, support, "new.png")
    refused("empty holds no images", ours, support, str(folder / "empty"))
    refused(
        "tells 5 classes apart, got labels of 6 (class 0, class 1, class 2, class 3, class 4, "
        "class 5)",
        ours,
        str(album_of_six(folder)),
        query,
    )
    (folder / "support" / "loose.png").write_bytes(
        next((folder / "query").rglob("*.png")).read_bytes()
    )
    refused(
        "has images outside of class folders: put each into a folder named after its class",
        ours,
        support,
        query,
    )
    (folder / "support" / "loose.png").unlink()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"no image")
    refused(
        "none of the query images can be read: give others", ours, support, str(folder / "broken")
    )
    Path("taken").write_text("")
    done = command("adapt", ours, "--support", support, "--query", query, "--output", "taken")
    assert done.returncode == 2
    assert "--output taken is a file: give a folder" in done.stderr


def album_of_six(folder: Path) -> Path:
    six = shutil.copytree(folder / "support", folder / "six")
    shutil.copytree(six / "class 0", six / "class 5")
    return six


def test_a_damaged_bundle_and_one_of_episodes_are_refused(trained: Trained, tmp_path: Path) -> None:
    damaged = shutil.copytree(trained.folder / "bundle", tmp_path / "damaged")
    tensors = damaged / "meta.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(
        InputError, match=r"damaged is damaged: meta\.safetensors is not what was saved"
    ):
        metatrain.load(damaged)
    bandit = {"name": "bandit", "pulls": 2, "episodes": 2}
    run.train(config(SINUSOID, family=bandit, output=str(tmp_path / "bandit"), outer__steps=1))
    with pytest.raises(
        InputError,
        match="learned from bandit tasks, which are episodes: give a run that learned from",
    ):
        metatrain.load(tmp_path / "bandit")


@pytest.mark.parametrize(
    "family", [{"name": "cipher"}, {"name": "bandit_history", "shots": [3, 3]}]
)
def test_tasks_that_take_no_examples_of_ones_own_are_refused(family: dict[str, Any]) -> None:
    """Letters would be numbered anew, and of pulls an arm's score would be a prediction."""
    case = CASES["decisions"] | {"family": family}
    if family["name"] == "cipher":
        case |= {"model": {"name": "byte_mlp", "width": 4}, "algorithm": {"name": "ridge"}}
    recipe = config(case).recipe()
    with pytest.raises(InputError, match="take no examples of your own") as error:
        Learned(recipe, prepare(recipe).meta, "made up")
    assert "metatrain evaluate" in error.value.remedy


def test_a_norm_that_does_not_exist_is_refused(trained: Trained) -> None:
    with pytest.raises(
        InputError, match="norm is 'suport', expected one of transductive, support, support"
    ):
        metatrain.load(trained.folder).adapt(*part(trained, "support"), norm="suport")


def test_many_images_are_predicted_in_parts(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, _ = part(trained, "query")
    adapted = metatrain.load(trained.folder).adapt(*part(trained, "support"), norm="support+1")
    whole = adapted.predict(query).probabilities
    monkeypatch.setattr("metatrain.inference.adapted.CHUNK", 3)
    assert torch.equal(adapted.predict(query).probabilities, whole)


def test_images_that_are_normalised_together_are_predicted_at_once(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, _ = part(trained, "query")
    adapted = metatrain.load(trained.folder).adapt(*part(trained, "support"))
    assert adapted.norm == "transductive"
    whole = adapted.predict(query).probabilities
    monkeypatch.setattr("metatrain.inference.adapted.CHUNK", 3)
    assert torch.equal(adapted.predict(query).probabilities, whole)


def test_the_picture_is_of_the_images_and_their_predictions(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    original = figures.episode

    def spy(**kwargs: Any) -> Any:
        drawn.update(kwargs)
        return original(**kwargs)

    monkeypatch.setattr(figures, "episode", spy)
    adapt(trained, files(trained, tmp_path), "--norm", "support+1")
    (images, labels), (queries, truth) = part(trained, "support"), part(trained, "query")
    for pictures, x, y in ((drawn["support"], images, labels), (drawn["query"], queries, truth)):
        assert [label for _, label, *_ in pictures] == y
        assert all(
            torch.equal(image, expected) for (image, *_), expected in zip(pictures, x, strict=True)
        )
    assert [caption for *_, caption in drawn["query"]] == truth
    assert torch.equal(drawn["after"], trained.probabilities["support+1"])
    learned = metatrain.load(trained.folder)
    before = learned.adapt(images, labels, norm="support+1").before
    assert all(torch.equal(before[name][0], p) for name, p in learned.meta.model.items())
    assert not torch.allclose(drawn["before"], drawn["after"])


@pytest.mark.usefixtures("pictures")
@pytest.mark.ray
def test_names_are_shown_as_they_are_and_unknown_classes_are_told(
    trained: Trained, tmp_path: Path
) -> None:
    folder = files(trained, tmp_path)
    names = {
        "class 0": "[red]",
        "class 1": "$_$",
        "class 2": "[b]x[",
        "class 3": ":cat:",
        "class 4": "类别",
    }
    for which in ("support", "query"):
        for old, new in names.items():
            (folder / which / old).rename(folder / which / new)
    (folder / "query" / "[red]").rename(folder / "query" / "Red")
    done, written = adapt(trained, folder)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["image", "class", "prediction", "probability", "runner-up"]
    assert [re.split(" {2,}", line)[1] for line in lines[:10]] == [
        row["class"] for row in written["predictions"]
    ]
    assert all(name in "".join(lines[:10]) for name in list(names.values())[1:])
    assert "of 8 images" in done.stdout
    assert "not counted: images of classes that the support set does not have (Red)" in done.stdout
    assert [row["class"] for row in written["predictions"]].count("Red") == 2
    said = done.stderr.splitlines()
    assert said[:2] == ["reading 10 images", "drawing predictions.png"]
    assert len(said) <= 3  # where no font has the characters, one line says so
    assert Path("adapted/predictions.png").read_bytes().startswith(b"\x89PNG")


def test_a_bundle_knows_its_images(trained: Trained) -> None:
    recipe, _ = bundle.load(str(trained.folder / "bundle"))
    assert isinstance(recipe.family, FewShot)
    assert recipe.family.shape == (1, 28, 28)
    assert recipe.family.splits == "glyphs"
    assert recipe.family.checksum == open_data("glyphs").checksum
    protocol = metatrain.load(trained.folder).protocol
    assert protocol.startswith(
        f"glyphs/glyphs 5-way {recipe.family.shots}-shot, 28x28 grey, {recipe.algorithm.name}, 5"
    )
    assert len(repr(metatrain.load(trained.folder).adapt(*part(trained, "support")))) < 200


def test_a_query_image_that_is_broken_is_told_and_left_out(
    trained: Trained, tmp_path: Path
) -> None:
    folder = files(trained, tmp_path)
    (folder / "query" / "broken.png").write_bytes(b"no image")
    done, written = adapt(trained, folder)
    assert done.returncode == 0
    assert re.search(
        r"\nrefused .*/query/broken\.png cannot be read as an image .*: replace or remove it\n",
        done.stdout,
    )
    assert len(written["predictions"]) == len(part(trained, "query")[0])
    assert f"learned from {metatrain.load(trained.folder).protocol}" in done.stdout


@pytest.mark.ray
def test_the_table_says_which_class_how_probable_and_what_is_next(
    trained: Trained, tmp_path: Path
) -> None:
    """No column is empty, stdout has all names in full, and with --json nothing but the
    predictions.
    """
    folder = files(trained, tmp_path)
    (folder / "new").mkdir()
    for i, file in enumerate(sorted((folder / "query").rglob("*.png"))):
        file.rename(folder / "new" / f"{'long' * 20}{i}.png")
    arguments = [
        "adapt",
        str(trained.folder),
        "--support",
        str(folder / "support"),
        "--query",
        str(folder / "new"),
    ]
    done = command(*arguments)
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["image", "prediction", "probability", "runner-up"]
    text = Path("adapted/predictions.json").read_text()
    rows = json.loads(text)["predictions"]
    for line, row in zip(lines, rows, strict=False):
        ranked = sorted(row["probabilities"], key=row["probabilities"].__getitem__, reverse=True)
        shown = [f"{100 * row['probabilities'][name]:.1f}%" for name in ranked]
        expected = [row["image"], ranked[0], shown[0], f"{ranked[1]} {shown[1]}"]
        assert re.split(" {2,}", line) == expected
    as_json = command(*arguments, "--json")
    assert json.loads(as_json.stdout)["predictions"] == rows
    assert "adapted to" in as_json.stderr
    assert "written: adapted/predictions.json" in as_json.stderr


@pytest.mark.parametrize("columns", [60, 100])
def test_on_a_terminal_long_names_are_cut_in_the_middle_and_stay_apart(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"photographs_from_the_{'north' * 8}_{i}.png" for i in range(9)]
    classes = [f"{'a_class_of_things' * 4}{letter}" for letter in "ABC"]

    def shown(count: int | None, most: int | None) -> dict[str, list[str]]:
        short = shortened([*names, *classes], most or 1000)
        found = [short[classes[i % 3]] for i in range(9)]
        table = {
            "image": [short[name] for name in names],
            "prediction": [f"✓ {name}" for name in found],
        }
        return table | {
            "probability": ["99.9%"] * 9,
            "runner-up": [f"{name} 0.1%" for name in found],
        }

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli._print_predictions(Predicted(shown, [], {}, None, []))
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) == 9 + 4  # none is wrapped
    assert {len(line) for line in lines} <= set(range(columns - 3, columns + 1))
    for i, line in enumerate(lines[3:-1]):
        image, prediction, _, second = (cell.strip() for cell in line.strip("│").split("│"))
        assert image.endswith(f"{i}.png")
        assert prediction.startswith("✓ a_")
        assert prediction.endswith("ABC"[i % 3])
        assert "ABC"[i % 3] in second


def test_the_runner_up_is_another_class_also_if_two_are_as_probable(trained: Trained) -> None:
    learned = metatrain.load(trained.folder)
    adapted = learned.adapt(*part(trained, "support"))
    classes = list(adapted.classes or ())
    found = Predictions(classes, torch.full((2, len(classes)), 1 / len(classes)))
    shown, *_ = classified(learned, adapted, found, "image", ["a.png", "b.png"], [None, "\x1b[31m"])
    for count in (1, None):
        table = shown(count, None)
        assert len(table["image"]) == (count or 2)
        for predicted, second in zip(table["prediction"], table["runner-up"], strict=True):
            assert not second.startswith(f"{predicted.removeprefix('✓ ').removeprefix('✗ ')} ")
    assert "\x1b" not in "".join(table["class"])


def test_many_names_are_cut_in_no_time() -> None:
    seen = []

    class Name(str):  # counts how often it is looked at
        __slots__ = ()

        def __hash__(self) -> int:
            seen.append(None)
            return super().__hash__()

    shortened([Name(f"few.csv row {i}") for i in range(1000)], 8)
    assert len(seen) < 30_000


def test_a_name_is_shown_from_where_it_differs_if_its_ends_do_not_tell_it_apart() -> None:
    assert shortened(["short", "very_long_class_name_here.png"], 16) == {
        "short": "short",
        "very_long_class_name_here.png": "very_lon…ere.png",
    }
    for names, most in (
        ([f"things_{letter}_of_a_certain_kind" for letter in "ABC"], 12),
        (
            [f"{'a' * 30}{x}{'b' * 20}{y}{'e' * 30}" for x in "xy" for y in "12"],
            14,
        ),  # differ in two places
        (["x" * 40, "x" * 41, "x" * 40 + "1" + "y" * 40, "x" * 40 + "2" + "y" * 40], 10),
        ([f"甲骨文字符号的类别{n}的很多图片" for n in range(12)], 11),
        (["one\ntwo\x1b[31m" * 9, "one\ntwo\x1b[31m" * 8], 20),
    ):
        found = shortened(names, most)
        assert len(set(found.values())) == len(names)
        assert all(cell_len(text) <= most and text.isprintable() for text in found.values())
    assert found != shortened(names, 1000)
