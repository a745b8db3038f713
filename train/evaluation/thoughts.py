"""How much of what a thinking model writes is thought: the tokens from <think> to </think>, these two included."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from train.common.result import Thought
from train.data.prompts import Prompt
from train.evaluation.samples import token_texts

OPEN, CLOSE = "<think>", "</think>"
THOUGHT = re.compile(rf"{OPEN}(.*?)({CLOSE}|\Z)", re.DOTALL)
BEGUN = re.compile(rf"{OPEN}\s*\Z")
TAIL = 16  # tokens at the end of a prompt in which a template may begin the thought


def thought(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> Thought | None:
    """The thought in ``answers``, token ids; None where there is none, or tokenizer and template know of no thoughts.

    A thought may begin in the prompt, as templates do it that leave no choice. One that is blank is none.
    """
    if OPEN not in str(getattr(tokenizer, "chat_template", None)) and OPEN not in tokenizer.get_vocab():
        return None
    thoughts = unfinished = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        begun = BEGUN.search(tokenizer.decode(list(prompt.ids[-TAIL:]))) is not None
        tokens, open_ended = measure(token_texts(tokenizer, list(answer)), begun)
        thoughts, unfinished = thoughts + tokens, unfinished + open_ended
    return Thought(thoughts / sum(map(len, answers)), len(answers), unfinished) if thoughts else None


def measure(texts: Sequence[str], begun: bool) -> tuple[int, bool]:
    """How many of the tokens with these ``texts`` are thought, and whether the last thought has no end.

    ``begun``: a thought is open before the first.
    """
    before = OPEN if begun else ""
    found = [match for match in THOUGHT.finditer(before + "".join(texts)) if match[1].strip()]
    starts = list(accumulate(map(len, texts), initial=len(before)))[:-1]
    tokens = sum(any(match.start() <= start < match.end() for match in found) for start in starts)
    return tokens, bool(found) and not found[-1][2]
