"""A decision policy in numpy alone: features, score, threshold and decision.

``Decision(document)`` takes the document of the ``json`` target. Probabilities are the softmax of the raw logits over
the whole vocabulary, in float32.
"""

from __future__ import annotations

import warnings
from functools import cached_property, partial

import numpy as np


class View:
    """Logits [..., vocab] and the other inputs of the features, by name; each intermediate result is computed once."""

    def __init__(self, document, logits=None, **state):
        self.document, self.state = document, state
        self.logits = None if logits is None else np.asarray(logits, dtype=np.float32)

    def field(self, name):
        if self.state.get(name) is None:
            raise ValueError(f"this policy reads {name!r}; pass {name}=")
        return np.asarray(self.state[name], dtype=np.float32)

    @cached_property
    def log_probs(self):
        """[..., vocab] floored at -200, where a probability is 0 in float32."""
        shifted = self.logits - self.logits.max(axis=-1, keepdims=True)
        return np.maximum(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32(-200))

    @cached_property
    def top(self):
        """[..., 10] largest probabilities, descending."""
        few = min(10, self.log_probs.shape[-1])
        return np.exp(-np.sort(-np.partition(self.log_probs, -few, axis=-1)[..., -few:], axis=-1))

    @cached_property
    def entropy(self):
        return -(np.exp(self.log_probs) * self.log_probs).sum(axis=-1)

    def varentropy(self):
        return (np.exp(self.log_probs) * (self.log_probs + self.entropy[..., None]) ** 2).sum(axis=-1)

    def mean(self, base):
        """Mean over the positions of the window where ``base`` was known; NaN if it never was."""
        column = self.field("history")[..., self.document["history"].index(base)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean(column, axis=-1)

    def last_is(self, bit):
        if self.state.get("last_token") is None:
            raise ValueError("this policy reads 'last_token'; pass last_token=")
        return (np.asarray(self.document["classes"], dtype=np.uint8)[self.state["last_token"]] & bit != 0) * 1.0


FIELDS = ("position", "since_large", "repeated", "agreed", "large_entropy", "uniform")
BITS = {"word_start": 1, "digit": 2, "punctuation": 4, "newline": 8}
FEATURES = {
    "entropy": lambda view: view.entropy,
    "varentropy": View.varentropy,
    "top1": lambda view: np.exp(view.log_probs.max(axis=-1)),
    "margin": lambda view: view.top[..., 0] - view.top[..., 1],
    "top10": lambda view: view.top[..., 0] / view.top.sum(axis=-1),
    "top10_mass": lambda view: view.top.sum(axis=-1),
    **{name: partial(View.field, name=name) for name in FIELDS},
    **{f"mean_{base}": partial(View.mean, base=base) for base in ("entropy", "agreed")},
    **{f"last_is_{name}": partial(View.last_is, bit=bit) for name, bit in BITS.items()},
}


class Decision:
    """The policy of a document: ``decide`` is True where the score reaches the threshold, or is NaN."""

    def __init__(self, document):
        self.document = document
        self.names = document["features"]
        self.history = document["history"]
        self.threshold = np.float32(document["threshold"])

    def features(self, logits=None, names=None, **state):
        """float32 [..., features] of logits [..., vocab] and the inputs that it reads: position=, agreed= ..."""
        view = View(self.document, logits, **state)
        with np.errstate(all="ignore"):
            columns = [FEATURES[name](view) for name in (self.names if names is None else names)]
        return np.stack(np.broadcast_arrays(*columns), axis=-1).astype(np.float32)

    def score(self, table, hidden=None):
        """Risk [...] of columns [..., features] and, if the policy reads them, hidden states [..., width]."""
        table, program = np.asarray(table, dtype=np.float32), self.document["score"]
        with np.errstate(all="ignore"):
            if program["type"] == "constant":
                return np.full(table.shape[:-1], np.inf if program["escalate"] else -np.inf, dtype=np.float32)
            if program["type"] == "periodic":
                return (table[..., 0] % program["every"] == 0).astype(np.float32)
            return _network(program, table, hidden)

    def decide(self, logits=None, hidden=None, **state):
        """bool [...]: True escalates a hand-off and ends a draft."""
        if self.names:
            table = self.features(logits, **state)
        else:
            table = np.empty((*np.shape(logits)[:-1], 0), dtype=np.float32)
        return ~(self.score(table, hidden) < self.threshold)


class PolicyState:
    """The inputs of ``decision`` along one answer, for an engine that does not keep them."""

    def __init__(self, decision):
        self.decision, self.checked = decision, 0
        self.agreed = self.large_entropy = np.nan
        self.recorded = {}

    def decide(self, logits, answer, last_token, hidden=None):
        """The decision on the token after ``answer`` (a list of ids), given the small model's logits [vocab]."""
        position = len(answer)
        state = {
            "position": position,
            "since_large": position - self.checked,
            "agreed": self.agreed,
            "large_entropy": self.large_entropy,
            "last_token": last_token,
            "repeated": longest_repeated_suffix(answer) if "repeated" in self.decision.names else 0,
        }
        state["history"] = self._history(logits, position, state)
        return bool(self.decision.decide(logits, hidden, **state))

    def _history(self, logits, position, state):
        decision = self.decision
        unknown = np.full(len(decision.history), np.nan, dtype=np.float32)
        window = range(position - decision.document["window"], position)
        history = np.array([self.recorded.get(place, unknown) for place in window])
        if decision.history:
            self.recorded[position] = decision.features(logits, decision.history, **state)
            # The next position may hold the values of a discarded draft.
            self.recorded.pop(position + 1, None)
        return history

    def checked_by_large(self, position, agreed, large_logits=None):
        """The large model has read ``position`` tokens of the answer; ``agreed``: its choice was the small model's."""
        self.checked, self.agreed = position, float(agreed)
        if large_logits is not None:
            self.large_entropy = float(View({}, large_logits).entropy)


def longest_repeated_suffix(answer, limit=8):
    """Length, at most ``limit``, of the longest suffix of ``answer`` that also occurs earlier in it."""
    for length in range(min(limit, len(answer) - 1), 0, -1):
        end = list(answer[-length:])
        if any(list(answer[i : i + length]) == end for i in range(len(answer) - length)):
            return length
    return 0


def _network(program, table, hidden):
    z = (table - np.float32(program["mean"])) / np.float32(program["scale"])
    z = np.where(np.array(program["impute"], dtype=bool) & np.isnan(z), np.float32(0), z)  # 0 is the training mean
    if program["hidden_width"]:
        z = np.concatenate([z, _normalised(hidden)], axis=-1)
    *inner, last = program["layers"]
    for layer in inner:
        z = _linear(layer, z)
        z = z / (1 + np.exp(-z))
    risk = _linear(last, z)[..., 0]
    return 1 / (1 + np.exp(-risk)) if program["output"] == "sigmoid" else risk


def _linear(layer, z):
    return z @ np.float32(layer["weight"]).T + np.float32(layer["bias"])


def _normalised(hidden):
    if hidden is None:
        raise ValueError("this policy reads hidden states; pass hidden=")
    hidden = np.asarray(hidden, dtype=np.float32)
    centred = hidden - hidden.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(1e-5))
