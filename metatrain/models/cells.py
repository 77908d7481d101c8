"""A transformer over the cells of a table, without positions of rows or of columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.models.transformer import Attention, SharedLinear, normed, standardised


class CellsLayer(nn.Module):
    """Predict rows of a table from others, with a token for each cell.

    Each column is standardised by the support rows. The cell of a number x is a token W x + b, and
    a row's target is one more cell: V y, or u where it is asked for. One row more is always there.
    In each layer a cell attends to that row's and the support rows' cells of its column, and then
    to the cells of its own row (Hollmann et al. 2025; Pfefferle et al. 2025, arXiv 2511.03634).
    Columns that are constant in the support rows are not attended to. The order of rows and that
    of columns make no difference.

    `support` [S, features] and `targets` [S, feedback] are parameters that an algorithm replaces by
    those of a task; S may be 0.
    """

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(
        self, features: int, outputs: int, feedback: int, *, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.support = nn.Parameter(torch.empty(0, features))
        self.targets = nn.Parameter(torch.empty(0, feedback))
        self.cell, self.target = SharedLinear(1, width), SharedLinear(feedback, width)
        self.prior, self.asked = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.blocks = nn.ModuleList(CellsBlock(width, heads) for _ in range(depth))
        self.out = SharedLinear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., Q, features] -> [..., Q, outputs]."""
        known: Tensor = self.support
        x, known, varies = standardised(x, known)
        absent = torch.cat([~varies, torch.zeros_like(varies[..., :1])], -1)  # [..., 1, columns]
        cells = self.cell(torch.cat([known, x], -2)[..., None])  # [..., S + Q, features, width]
        told = self.target(self.targets)
        asked = self.asked[..., None, :].expand(*x.shape[:-1], -1)
        targets = torch.cat([told, asked], -2)[..., None, :]
        rows = torch.cat([cells, targets], -2)
        prior = self.prior[..., None, None, :].expand_as(rows[..., :1, :, :])
        rows = torch.cat([prior, rows], -3)
        seen = 1 + known.shape[-2]
        for block in self.blocks:
            rows = block(rows, seen, absent[..., None, None, :])
        predicted: Tensor = self.out(normed(rows[..., seen:, -1, :]))
        return predicted


class CellsBlock(nn.Module):
    """Attention within columns and within rows, then hidden units, each added to what it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.down, self.across = Attention(width, heads, False), Attention(width, heads, False)
        self.wide, self.narrow = SharedLinear(width, 4 * width), SharedLinear(4 * width, width)

    def forward(self, rows: Tensor, seen: int, absent: Tensor) -> Tensor:
        """Cells [..., R, C, width]; the first rows are `seen`, `absent` [..., 1, 1, 1, C] not."""
        columns = normed(rows).transpose(-2, -3)
        rows = rows + self.down(columns, columns[..., :seen, :]).transpose(-2, -3)
        cells = normed(rows)
        rows = rows + self.across(cells, cells, absent)
        return rows + self.narrow(F.gelu(self.wide(normed(rows))))
