"""The end of a step on a GPU in one launch: the commit of ``TokenBuffer.advance``, and what the host hears."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _commit(
    tokens, escalates, rows, n, ids, writers, places, lengths, limits, batch, eos, ends, greatest, models, said,
    ROWS: tl.constexpr, BATCH: tl.constexpr, ENDS: tl.constexpr, MODELS: tl.constexpr,
    DECIDED: tl.constexpr, VERIFY: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, BATCH)
    there = row < batch
    at = tl.arange(0, ROWS)
    mine = tl.load(rows + at, mask=at < n, other=-1)[None, :] == row[:, None]
    has = tl.max(mine.to(tl.int32), 1) > 0
    drawn = tl.load(tokens + at, mask=at < n, other=0)
    token = tl.sum(tl.where(mine, drawn[None, :], 0), 1)
    end = tl.arange(0, ENDS)
    final = tl.load(eos + end, mask=end < ends, other=-1)
    ended = tl.max((token[:, None] == final[None, :]).to(tl.int32), 1) > 0
    length = tl.load(lengths + row, mask=there, other=0)
    limit = tl.load(limits + row, mask=there, other=0)
    going = there & has & (length < limit)
    up = going & (row < 0)
    if DECIDED:
        said_so = tl.load(escalates + at, mask=at < n, other=0).to(tl.int32)
        up = going & (tl.sum(tl.where(mine, said_so[None, :], 0), 1) > 0)
        if VERIFY:
            up = up | (going & ended)
    commits = going & ~up
    where = row.to(tl.int64) * places + length
    tl.store(ids + where, token, mask=commits)
    tl.store(writers + where, tl.zeros([BATCH], tl.int8), mask=commits)
    length = length + commits.to(tl.int64)
    limit = tl.where(commits & ended, length, limit)
    tl.store(lengths + row, length, mask=there)
    tl.store(limits + row, limit, mask=there)
    tl.store(said + row, up.to(tl.int64), mask=there)
    tl.store(said + batch + row, length, mask=there)
    tl.store(said + 2 * batch + row, limit, mask=there)
    model = tl.arange(0, MODELS)
    most = tl.load(greatest + model, mask=model < models, other=0.0)
    tl.store(said + 3 * batch, tl.max((most != most).to(tl.int64), 0))


@torch.library.custom_op("decoding::commit", mutates_args=("ids", "writers", "lengths", "limits"))
def commit(
    tokens: Tensor,
    escalates: Tensor | None,
    rows: Tensor,
    ids: Tensor,
    writers: Tensor,
    lengths: Tensor,
    limits: Tensor,
    eos: Tensor,
    greatest: Tensor,
    verify_eos: bool,
) -> Tensor:
    """Append ``tokens`` [r] by writer 0 to ``rows`` [r] but for those that ``escalates`` [r] or that have ended.

    The other tensors are those of a ``TokenBuffer``, and the greatest logits [models]. Returns what the host hears, as
    ``AheadSteps`` says it.
    """
    batch, power = len(lengths), triton.next_power_of_2
    said = torch.empty(3 * batch + 1, dtype=torch.long, device=ids.device)
    _commit[(1,)](
        tokens, tokens if escalates is None else escalates, rows, len(rows), ids, writers, ids.shape[1],
        lengths, limits, batch, eos, len(eos), greatest, len(greatest), said,
        ROWS=power(max(len(rows), 2)), BATCH=power(max(batch, 2)), ENDS=power(max(len(eos), 2)),
        MODELS=power(max(len(greatest), 2)), DECIDED=escalates is not None, VERIFY=verify_eos,
    )  # fmt: skip
    return said
