"""Grader by ROUGE-L: the overlap of words with a reference. It is similarity of wording, not truth."""

from functools import cache

from train.common.cli import InputError


def rouge_l(prompt: str, reference: str | None, text: str) -> float | None:
    """ROUGE-L F1 in [0, 1] of stemmed words (Lin 2004). None without a reference."""
    if not (reference or "").strip():
        return None
    return float(_rouge().score(reference, text)["rougeL"].fmeasure)


@cache
def _rouge():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("--grader rouge needs the package rouge-score; pip install -e '.[graders]'") from None
    return RougeScorer(["rougeL"], use_stemmer=True)
