"""Search for a whole decoder: where drafts end, how long they may be, and how leniently they are accepted.

A text that is accepted leniently depends on all of its past, so no trace can replay it. A trial therefore decodes the
tuning prompts, always in the same order, and the timing table prices what each forward read: neither a noisy machine
nor another worker's changes a trial. With exact acceptance it is replayed instead, in milliseconds.

The objective is that of ``search.backoff``: the loss, or minus the speedup, under the goal as a constraint. The pruner
needs a value of every prompt that can be paired, which neither a speedup (a ratio of sums) nor a constraint on a mean
has. So a trial reports, for each prompt, the quantity that is minimised plus the part by which the prompt alone misses
the goal (``_reported``). Being better than asked earns nothing, so that speed cannot make up for loss. These values
only prune: pruned trials are never chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna

from decoding import LM, Exact, Lenient, Rollback, Sampling
from decoding.acceptance.draft_block import Acceptance
from decoding.decoders.registry import build_decoder
from policies import Policy, Rule
from policies.decoder_spec import DecoderSpec
from train.common.generations import seed_of
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.replay.pricing import alone, decoded
from train.search import leniency
from train.search.draft_stop import StopSearch, suggest_stop
from train.search.goal import Goal
from train.search.recipes import RECIPES

CHAIN, BEAMS, TREE, EXACT_TREE = "chain", "beams", "tree", "exact tree"
"""Drafts: a chain of tokens, the best of several beams (MTAD), all of them (MMTAD), or a tree that is accepted
exactly (SpecInfer)."""
DECODERS = {BEAMS: "mtad", TREE: "mmtad", EXACT_TREE: "specinfer"}
"""Drafts that are no chain, by the decoder that makes them."""
MOST_BEAMS = 6
MTAD_DEFAULT = {"beams": 4, "length": 4, "tau": 0.5}  # of the paper (Qin et al. 2407.09722)
NEARLY_ALL = 20.0
"""nats at which Rollback keeps nearly every draft, so that the stop alone decides which model writes, as in backoff"""
Row = tuple[float, float, float]  # priced seconds, tokens and loss of one prompt


@dataclass
class HybridSearch:
    """Decodes ``prompts`` with [small, large]; ``stops`` has fitted the stops, on prompts of their own.

    A learned stop predicts rejection by exact acceptance, which is all that draft traces record. How much of that risk
    a lenient rule can take is left to the threshold, which is searched.
    """

    stops: StopSearch
    models: Sequence[LM]
    prompts: Sequence[Prompt]
    goal: Goal
    metric: QualityMetric
    sampling: Sampling = field(default_factory=Sampling)
    texts: int = 1
    """of each prompt, of which a trial has the mean"""

    def suggest(self, trial: optuna.Trial) -> dict:
        """The space: beams and how MTAD accepts them, or a chain of tokens, a stop for it and a rule for that."""
        draft = trial.suggest_categorical("draft", [CHAIN, *self.beams])
        if draft == CHAIN:
            suggest_stop(trial, ("constant", "rule", self.stops.kind), self._longest)
            leniency.suggest(trial)
            return trial.params
        trial.suggest_int("beams", 2, MOST_BEAMS)
        trial.suggest_int("length", 1, self._longest)
        if draft != EXACT_TREE:
            leniency.suggest_number(trial, "Joint")
        return trial.params

    @property
    def beams(self) -> list[str]:
        """The drafts with beams that both models can read: those that place tokens by their slots (ALiBi) cannot."""
        small, large = (lm.chains_only is None for lm in self.models)
        return [BEAMS] * small + [TREE, EXACT_TREE] * (small and large)

    @property
    def _longest(self) -> int:
        return self.stops.judged.longest

    def baselines(self) -> list[dict]:
        """The best of each decision alone, the published pairs of two, and starts that use all three."""
        length = self.stops.constant()
        stop = max(self.stops.starts(), key=self.stops.speedup)
        backoff = {"length": self._longest, "keep": False}
        bild, fsd = (RECIPES[name].options() for name in ("bild", "fsd"))
        return [
            _chain(_constant(length), Exact()),
            _chain(stop, Exact()),
            *(_mtad(draft, self._longest) for draft in self.beams),
            *(_mtad(draft, 1) for draft in self.beams if draft != BEAMS and self._longest > 1),
            _chain(self.stops.published(**bild), bild["accept"]),
            _chain(_constant(min(fsd["length"], self._longest)), fsd["accept"]),
            *(_chain(stop | backoff | {"quantile": q}, Rollback(NEARLY_ALL)) for q in (0.3, 0.6)),
            *(_chain(stop, Lenient(lenience)) for lenience in (0.3, 0.03)),
            _chain(_constant(length), Lenient(0.1)),
        ]

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective. Raises TrialPruned once the trial is surely worse than the best that meets the goal."""
        params = self.suggest(trial)
        exact = params.get("accept") == leniency.EXACT
        rows: list[Row] = []
        for i, row in enumerate(self._replayed(params) if exact else self._decoded(params)):
            rows.append(row)
            trial.report(self._reported(i, row), i)
            if not exact and len(rows) < len(self.prompts) and trial.should_prune():
                self._note(trial, rows)
                raise optuna.TrialPruned
        return self._note(trial, rows)

    def _note(self, trial: optuna.Trial, rows: Sequence[Row]) -> float:
        """Record the result on the prompts so far; returns the objective."""
        taken, tokens, losses = np.array(rows, float).T
        first = slice(len(rows))
        large = self.alone["seconds"][first].sum() / self.alone["tokens"][first].sum()
        trial.set_user_attr("seconds_a_token", (taken / tokens).tolist())
        return self.goal.record(trial, float(large / (taken.sum() / tokens.sum())), float(losses.mean()))

    def _reported(self, i: int, row: Row) -> float:
        """The pruner's value of the prompt ``i``: its loss plus the share of time beyond the goal, or its time over the
        large model's plus the loss beyond the budget."""
        taken, tokens, loss = row
        time = taken / tokens / (self.alone["seconds"][i] / self.alone["tokens"][i])
        if self.goal.budget is None:
            return loss + max(0.0, time * self.goal.speedup - 1)
        return time + max(0.0, loss - self.goal.budget)

    def _replayed(self, params: dict) -> Iterator[Row]:
        taken = dict(zip(self.stops.judged.answers, self.stops.replayed(params).seconds(self.stops.cost), strict=True))
        for prompt, answer in zip(self.prompts, self._references, strict=True):
            yield float(taken[prompt.id]), len(answer), 0.0

    def _decoded(self, params: dict) -> Iterator[Row]:
        decoder, budget = build_decoder(self.models, self.stop(params), self.spec(params)), self.stops.judged.budget
        for i, (prompt, reference) in enumerate(zip(self.prompts, self._references, strict=True)):
            how = decoder, prompt, reference, self.metric, self.stops.cost, budget, self.sampling
            yield tuple(np.mean([decoded(*how, seed_of(text, i)) for text in range(self.texts)], 0).tolist())

    def spec(self, params: dict) -> DecoderSpec:
        """The decoder of ``params``, which is still to be given its stop."""
        length = {"length": params["length"]}
        if params["draft"] == CHAIN:
            accept = leniency.described(params, params["accept"])
            chain = length | {"keep_stop_token": params.get("keep", False), "accept": accept}
            return DecoderSpec("speculative", chain)
        exact = params["draft"] == EXACT_TREE
        tau = {} if exact else {"tau": leniency.described(params, "Joint")["tau"]}
        return DecoderSpec(DECODERS[params["draft"]], {"beams": params["beams"]} | length | tau)

    def stop(self, params: dict) -> Policy:
        """A stop of one's own, at its threshold; one that never stops where only the length ends a draft."""
        found = self.stops.stop(params) if params["draft"] == CHAIN else Rule.never()
        return found.to(self.models[0].device)

    @cached_property
    def _references(self) -> list[list[int]]:
        return [self.stops.judged.answers[prompt.id] for prompt in self.prompts]

    @cached_property
    def alone(self) -> dict[str, np.ndarray]:
        """Priced seconds and tokens [prompts] of the large model alone."""
        return alone(self.prompts, self._references, self.stops.cost)


def _chain(stop: dict, rule: Acceptance) -> dict:
    return {"draft": CHAIN} | stop | leniency.drawn(rule)


def _constant(length: int) -> dict:
    return {"stop": "constant", "length": length}


def _mtad(draft: str, longest: int) -> dict:
    """MTAD or MMTAD at its paper's setting, or of shorter drafts; a tree of that size."""
    beams, length, tau = MTAD_DEFAULT.values()
    params = {"draft": draft, "beams": beams, "length": min(length, longest)}
    return params if draft == EXACT_TREE else params | leniency.number("Joint", tau)
