"""Grader by chrF: the overlap of characters with a reference. It is similarity of wording, not truth."""

from functools import cache

from train.common.cli import InputError


def chrf(prompt: str, reference: str | None, text: str) -> float | None:
    """chrF2 in [0, 1]: F-score of character 6-grams, recall counts twice (Popovic 2015). None without a reference."""
    if not (reference or "").strip():
        return None
    return _chrf().sentence_score(text, [reference]).score / 100


@cache
def _chrf():
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise InputError("--grader chrf needs the package sacrebleu; pip install -e '.[graders]'") from None
    return CHRF()
