"""Prompts that a chat model writes itself: given its template up to the user's message, it continues as the user.

From Magpie (Xu et al., 2406.08464): an aligned model writes questions like those that it was tuned on, the widest set
of prompts that its drafter can be trained on, without anyone else's text.
"""

from __future__ import annotations

from pathlib import Path

import torch

from decoding import LM, Autoregressive, Sampling, generate
from train.common.atomic import append_rows, read_rows
from train.common.progress import progress

LEAST = 3
"""tokens; shorter prompts are dropped"""


def write_self_prompts(
    target: LM, count: int, path: Path, max_tokens: int = 96, temperature: float = 0.9, batch: int = 128, seed: int = 0
) -> None:
    """Append to the jsonl ``path`` (``id``, ``family``, ``prompt``) until it holds ``count`` distinct prompts.

    Prompts that the model does not end within ``max_tokens`` are dropped. A run that was killed goes on.
    Raises ValueError for a model without a chat template, and when a batch brings no new prompt.
    """
    opening = user_opening(target.tokenizer)
    rows = read_rows(path)
    known, tried = {row["prompt"] for row in rows}, max((row["batch"] for row in rows), default=-1) + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.tensor([opening] * batch, device=target.device)
    with progress("the target's own prompts", count, len(known)) as update:
        while len(known) < count:
            new = [p for p in _ended(target, ids, max_tokens, temperature, seed + tried * batch) if p not in known]
            new = list(dict.fromkeys(new))[: count - len(known)]
            if not new:
                raise ValueError("the target writes no new prompts any more; lower --self-prompts")
            append_rows(
                path,
                [{"id": f"self-{tried}-{i}", "family": "self", "prompt": p, "batch": tried} for i, p in enumerate(new)],
            )
            known.update(new)
            tried += 1
            update(len(known))


def user_opening(tokenizer) -> list[int]:
    """Token ids of the chat template up to the first character of the user's message. ValueError without a template."""
    mark = "\N{REPLACEMENT CHARACTER}mark\N{REPLACEMENT CHARACTER}"
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the target has no chat template, so it cannot write --self-prompts; give --prompts")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
    before = rendered.split(mark)[0]
    return tokenizer(before, add_special_tokens=False)["input_ids"]


def _ended(target: LM, ids: torch.Tensor, max_tokens: int, temperature: float, seed: int) -> list[str]:
    """The texts of one batch that end with an EOS."""
    result = generate(
        Autoregressive(target), ids, max_new_tokens=max_tokens + 1, sampling=Sampling(temperature), seed=seed
    )
    answers = [
        row[ids.shape[1] :][:n].tolist() for row, n in zip(result.sequences, result.lengths.tolist(), strict=True)
    ]
    ended = [a[:-1] for a in answers if LEAST < len(a) <= max_tokens]
    return [text for text in (target.tokenizer.decode(a).strip() for a in ended) if text]
