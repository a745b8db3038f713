"""The oracle of draft lengths: the least time that any stop policy could take on given texts, found in hindsight."""

import numpy as np

from decoding.cost.costs import ModelCosts
from train.replay.rounds import LoggedTexts


def oracle(texts: LoggedTexts, longest: int, budget: int, cost: ModelCosts) -> np.ndarray:
    """[texts] least seconds in which rounds of 0 to ``longest`` drafted tokens can write each text.

    Dynamic programming from the end of the text. In a round without a draft the draft model does not run; it reads
    the gap in its next call. No stop policy of ``Speculative`` is faster, provided that reading tokens at once costs no
    more than reading them in parts.
    """
    most = int((texts.prompt_tokens + np.minimum(texts.tokens, budget)).max()) + longest + 2
    small, large = (np.append(0.0, cost.share(model, np.arange(1, most))) for model in (0, -1))
    parts = zip(texts.first, np.minimum(texts.tokens, budget), texts.prompt_tokens, strict=True)
    runs = ((texts.accepted_run[first : first + n], prompt) for first, n, prompt in parts)
    return np.array([_least(*one, longest, budget, small, large) for one in runs])


def _least(run: np.ndarray, prompt: int, longest: int, budget: int, small: np.ndarray, large: np.ndarray) -> float:
    n, width = len(run), prompt + len(run) + 1
    # left[i, b]: least seconds for the text from position i on, when the draft model has b tokens left to read.
    left = np.zeros((n + 1, width + 1))
    for i in reversed(range(n)):
        unread = 1 if i else prompt
        left[i, :width] = large[unread] + left[i + 1, 1:]
        drafting = np.inf
        for k in range(1, min(longest, budget - i - 1) + 1):
            right = min(k, int(run[i]))
            after = left[min(i + right + 1, n), 2 if right == k else 1]
            drafting = min(drafting, (k - 1) * small[1] + large[unread + k] + after)
        left[i, :width] = np.minimum(left[i, :width], small[:width] + drafting)
    return float(left[0, prompt])
