"""Steps of a policy without models: texts that have a mood of their own, and may move."""

import numpy as np

NAMES = ("entropy", "agreed")


def steps(seed, texts=30, length=40, alike=1.0, shift=0.0, rate=0.4):
    """Steps of texts that each have a mood of their own: (table, escalated, accepted, texts)."""
    rng = np.random.default_rng(seed)
    mood = np.repeat(alike * rng.normal(size=texts), length)
    entropy = mood + rng.normal(size=texts * length) + shift
    agreed = np.where(rng.random(texts * length) < 0.2, np.nan, rng.random(texts * length) < 0.6)
    escalated = rng.normal(size=texts * length) + mood > np.quantile(mood + rng.normal(size=len(mood)), 1 - rate)
    return np.stack([entropy, agreed], 1), escalated, agreed, np.repeat(np.arange(texts), length)


def columns(table, escalated, accepted):
    return dict(zip((*NAMES, "escalated", "accepted"), (*table.T, escalated.astype(float), accepted), strict=True))
