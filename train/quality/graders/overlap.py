"""Overlap with a reference text, by chrF and ROUGE-L: similarity of wording, not truth."""

from functools import cache

from train.common.cli import InputError


def chrf(prompt: str, reference: str | None, text: str) -> float | None:
    """chrF2 in [0, 1]: F-score of character 6-grams, recall counts twice (Popovic 2015). None without a reference."""
    if not (reference or "").strip():
        return None
    return _chrf().sentence_score(text, [reference]).score / 100


def rouge_l(prompt: str, reference: str | None, text: str) -> float | None:
    """ROUGE-L F1 in [0, 1] of stemmed words (Lin 2004). None without a reference."""
    if not (reference or "").strip():
        return None
    return float(_rouge().score(reference, text)["rougeL"].fmeasure)


@cache
def _chrf():
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise InputError("chrF needs the package sacrebleu; pip install -e '.[graders]'") from None
    return CHRF()


@cache
def _rouge():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("ROUGE-L needs the package rouge-score; pip install -e '.[graders]'") from None
    return RougeScorer(["rougeL"], use_stemmer=True)
