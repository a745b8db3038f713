"""Prompts that a chat model writes itself: given its template up to the user's message, it continues as the user.

From Magpie (Xu et al., 2406.08464): an aligned model writes questions like those that it was tuned on, the widest set
of prompts that its drafter can be trained on, without anyone else's text.
"""

from pathlib import Path

from decoding import LM, Sampling
from decoding.models.chat import render
from train.common.atomic import append_rows, read_rows
from train.common.generations import answers
from train.common.progress import progress
from train.common.rows import SelfPromptRow
from train.data.prompts import Prompt

LEAST = 3  # tokens; shorter prompts are dropped


def write_self_prompts(
    target: LM, count: int, path: Path, max_tokens: int = 96, temperature: float = 0.9, batch: int = 128
) -> None:
    """Append to the jsonl ``path`` (``id``, ``family``, ``prompt``) until it holds ``count`` distinct prompts.

    Prompts that the model does not end within ``max_tokens`` are dropped. A run that was killed goes on.
    Raises ValueError for a model without a chat template, and when a batch brings no new prompt.
    """
    opening = Prompt("", "self", "", "", tuple(user_opening(target.tokenizer)), None)
    rows = read_rows(path, SelfPromptRow)
    known, tried = {row["prompt"] for row in rows}, max((row["batch"] for row in rows), default=-1) + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with progress("the target's own prompts", count, len(known)) as update:
        while len(known) < count:
            written = answers(target, [opening] * batch, max_tokens + 1, Sampling(temperature), tried * batch)
            texts = [target.tokenizer.decode(a[:-1]).strip() for a in written if LEAST < len(a) <= max_tokens]
            new = [text for text in dict.fromkeys(texts) if text and text not in known][: count - len(known)]
            if not new:
                raise ValueError("the target writes no new prompts any more; lower --self-prompts")
            own = [{"id": f"self-{tried}-{i}", "family": "self", "prompt": p} for i, p in enumerate(new)]
            append_rows(path, [row | {"batch": tried} for row in own])
            known.update(new)
            tried += 1
            update(len(known))


def user_opening(tokenizer) -> list[int]:
    """Token ids of the chat template up to the first character of the user's message. ValueError without a template."""
    mark = "\N{REPLACEMENT CHARACTER}mark\N{REPLACEMENT CHARACTER}"
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the target has no chat template, so it cannot write --self-prompts; give --prompts")
    rendered = render(tokenizer, [{"role": "user", "content": mark}])
    before = rendered.split(mark)[0]
    return tokenizer(before, add_special_tokens=False)["input_ids"]
