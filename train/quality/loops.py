"""Loops: tokens that complete something which an answer has said before and the large model's own answer does not say.

Two rules. Word for word: the last 6 tokens stand in the answer already. But for counting: the same of forms, where
letter case, the bullet at the head of an item, blanks and the digits of a number do not count, for what stands there
twice already and holds two words or more. The second finds "1. Be kind. 2. Be kind. 3. Be kind."; lists whose items
differ, tables of numbers and sums have either other words or hardly any. "1. Be kind. 2. Be kind. ...", 96 tokens of
SmolLM2's, then costs 1 at 82 % of its tokens (10 % word for word; the loop without numbers 91 %).

What the second rule adds, on 230 prompts with the embedded pair, answers of at most 96 tokens: greedy answers of the
small model, 17 % of them change, by 0.019 on average and 0.067 at most, mean loss 0.6033 -> 0.6065; answers at
temperature 0.7, 2.6 % of either model's change, by 0.017 (small) and 0.037 (large), mean 0.4318 -> 0.4322 and 0.1119 ->
0.1129. All but one of these 51 answers repeat themselves word for word too. False alarms are word problems that are
solved in sentences of one build ("She spent 2 * 4 = 8 dollars on the ..."): at most 0.073 of loss.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

NGRAM = 6  # tokens or forms
AGAIN = 2  # earlier times that forms must have been there: two sentences of one build are no loop
WORDS = 2  # tokens with a letter that the forms must hold
BULLETS = frozenset("-*+•‣◦–—")
NUMBER, BLANK = 0, 1


@dataclass(frozen=True, slots=True)
class TokenForms:
    """What of each token counts when a text is looked at but for counting; ids beyond the table are their own form."""

    form: list[int]  # [vocab]
    words: frozenset[int]  # forms that hold a letter

    def of(self, token: int) -> int:
        return self.form[token] if token < len(self.form) else -1 - token


@lru_cache(maxsize=8)
def token_forms(tokenizer: Any) -> TokenForms | None:
    """The forms of a tokenizer's ids, by the text of each; a second for 100,000 ids, then kept. None without one."""
    if tokenizer is None:
        return None
    names: dict[Any, int] = {"number": NUMBER, "blank": BLANK}
    form = [names.setdefault(_name(i, tokenizer.decode([i])), len(names)) for i in range(len(tokenizer))]
    words = (number for name, number in names.items() if isinstance(name, tuple) and any(map(str.isalpha, name[1])))
    return TokenForms(form, frozenset(words))


def _name(token: int, text: str) -> Any:
    content = text.strip()
    if not content:
        return "line" if "\n" in text else "blank"
    if content.isdecimal():
        return "number"
    if content in BULLETS:
        return "bullet"
    return token if "\ufffd" in content else ("text", content.casefold())


def repeats(
    answer: Sequence[int], candidates: Sequence[int], reference: Sequence[int], forms: TokenForms | None
) -> np.ndarray:
    """bool [n]: ``candidates[i]`` in place of ``answer[i]`` goes on with a loop of what stands before position i.

    ``reference``: the large model's own answer, whose n-grams are free; ``forms``: those of the tokenizer, None: only
    loops that are word for word.
    """
    found = _word_for_word(answer, candidates, reference)
    return found if forms is None else found | _but_for_counting(answer, candidates, reference, forms)


def _word_for_word(answer: Sequence[int], candidates: Sequence[int], reference: Sequence[int]) -> np.ndarray:
    own, seen = _grams(reference), set()
    found = np.zeros(len(answer), bool)
    for i in range(NGRAM - 1, len(answer)):
        before = tuple(answer[i - NGRAM + 1 : i])
        gram = (*before, candidates[i])
        found[i] = gram in seen and gram not in own
        seen.add((*before, answer[i]))
    return found


def _but_for_counting(
    answer: Sequence[int], candidates: Sequence[int], reference: Sequence[int], forms: TokenForms
) -> np.ndarray:
    own: list[int] = []
    for form in map(forms.of, reference):
        own += [] if _joins(own, form) else [form]
    free, seen = _grams(own), Counter()
    text: list[int] = []
    looping = False  # the last form of the text goes on with a loop, and so do further digits of it

    def goes_on(form: int) -> bool:
        gram = (*text[1 - NGRAM :], form)
        return seen[gram] >= AGAIN and gram not in free and sum(one in forms.words for one in gram) >= WORDS

    found = np.zeros(len(answer), bool)
    for i, (form, candidate) in enumerate(zip(map(forms.of, answer), map(forms.of, candidates), strict=True)):
        found[i] = looping if _joins(text, candidate) else goes_on(candidate)
        if not _joins(text, form):
            looping = goes_on(form)
            text.append(form)
            seen[tuple(text[-NGRAM:])] += len(text) >= NGRAM
    return found


def _joins(text: list[int], form: int) -> bool:
    """Whether a token of this form is part of the last form of ``text``: a blank, or one more digit of a number."""
    return form == BLANK or (form == NUMBER and text[-1:] == [NUMBER])


def _grams(text: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(text[i : i + NGRAM]) for i in range(len(text) - NGRAM + 1)}
