"""Collect hand-off traces: texts are written, then both models read them and their distributions are logged.

A prompt has a trajectory of the large model alone, one of random hand-off at a rate drawn per shard, so that history
features vary, and one for each round of a policy that was fitted on all earlier ones. Only the last kind shows the
texts that a policy gets itself into: one that keeps the tokens of which the small model is sure runs into loops, where
the small model is surest.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoding import LM, Backoff, Sampling, Step
from decoding.acceptance.draft_block import gather_at
from decoding.models.settings import end_tokens
from decoding.models.vocabulary import check_compatible
from decoding.state.policy_state import entropy
from decoding.state.suffix import longest_repeated_suffix
from policies import Policy, Random, feature_columns, history_for, token_classes
from policies.decoder_spec import DecoderSpec
from policies.features.table import WINDOW
from train.common.generations import answers, write
from train.data.prompts import Prompt
from train.quality.guarded_regret import CAP, answer_logits, rules
from train.quality.loops import repeats, token_forms
from train.quality.prompt_sessions import PromptSessions
from train.traces.handoff_traces import FEATURE_COLUMNS, each_traces, open_folder
from train.traces.trace_shards import (
    SHARD,
    missing_shards,
    prompts_of,
    settings_of,
    shards_of,
    take_tables,
    task_of,
    write_rows,
)
from train.workers.blueprint import Blueprint
from train.workers.crew import ALONE, Crew
from train.workers.pair import Pair
from train.workers.stage import Stage

RATES = (0.1, 0.9)
GOLDEN = (5**0.5 - 1) / 2


def collect(
    small: LM,
    large: LM,
    prompts: Sequence[Prompt],
    folder: Path,
    max_new_tokens: int,
    seed: int,
    meta: dict,
    sampling: Sampling = Sampling(),
    crew: Crew = ALONE,
) -> None:
    """Write the first two trajectories of ``prompts`` to ``folder``; shards that are there already are kept.

    ``sampling`` is how the model that writes a token draws it; greedy texts of the large model do not depend on seeds.
    """
    open_folder(folder, meta)
    settings, missing = settings_of(max_new_tokens, sampling), missing_shards(folder, prompts, 0)
    tasks = {i: task_of(some, seed + i * SHARD) | {"rate": _rate(i, seed)} for i, some in missing.items()}
    stage = Stage("handoff-traces", "collecting traces", folder, settings, tasks)
    take_tables(stage, crew, Pair([small, large]))


class HandoffShards:
    """Makes the shards of ``collect``."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        (self.small, self.large), self.new = pair.models, settings["max_new_tokens"]
        self.sampling = Sampling(**settings["sampling"])
        sessions = _sessions(self.small, self.large, self.new)
        self.reads = {"budget": self.new, "sampling": self.sampling, "sessions": sessions}
        self.reads["classes"] = token_classes(self.large.tokenizer)

    def __call__(self, task: dict[str, Any], path: Path) -> None:
        pair, rate, rows = (self.small, self.large), task["rate"], []
        prompts, how = prompts_of(task), (self.new, self.sampling, task["seed"])
        mixed_answers = write(Backoff(pair, Random(rate).to(self.large.device)), prompts, *how)
        own_answers = answers(self.large, prompts, *how)
        for prompt, answer, mixed in zip(prompts, own_answers, mixed_answers, strict=True):
            own = [1] * len(answer)
            rows.append(trajectory(*pair, prompt, answer, own, answer, **self.reads, kind="large", rate=1.0))
            rows.append(trajectory(*pair, prompt, *mixed, answer, **self.reads, kind="mixed", rate=rate))
        write_rows(path, rows)


def _sessions(small: LM, large: LM, budget: int) -> tuple[PromptSessions | None, PromptSessions | None]:
    """Sessions in which a prompt is read once for both trajectories, where a model's forward allows it."""
    own_ids = check_compatible([small, large])[0] is None
    return PromptSessions.of(small, budget) if own_ids else None, PromptSessions.of(large, budget)


def _rate(shard: int, seed: int) -> float:
    """The rate of random hand-off in a shard: steps of the golden section spread any number of shards evenly."""
    low, high = RATES
    return low + (high - low) * ((seed + 1 + shard) * GOLDEN % 1)


def explore(
    small: LM,
    large: LM,
    policy: Policy,
    prompts: list[Prompt],
    folder: Path,
    max_new_tokens: int,
    seed: int,
    number: int = 1,
    sampling: Sampling = Sampling(),
    crew: Crew = ALONE,
) -> None:
    """Add the trajectories of ``policy`` to the traces of ``collect``, as round ``number`` (from 1) of DAgger.

    Ross et al. 1011.0686: a policy is fitted again on the states that it visits itself.
    """
    own, pair = _own_answers(folder, shards_of(prompts)), Pair([small, large])
    tasks = {
        i: task_of(some, seed + i * SHARD) | {"references": [own[prompt.id].tolist() for prompt in some]}
        for i, some in missing_shards(folder, prompts, number * shards_of(prompts)).items()
    }
    asked = {"policy": Blueprint.of(pair.models, DecoderSpec("backoff"), policy)}
    title, settings = f"tracing a policy, round {number}", settings_of(max_new_tokens, sampling)
    take_tables(Stage("policy-traces", title, folder, settings, tasks, asked), crew, pair)


def _own_answers(folder: Path, shards: int) -> dict[str, np.ndarray]:
    """The large model's own answer to each prompt of the first ``shards``, as int32 token ids."""
    found = {}
    for traces in each_traces(folder, shards):
        own = traces.where(traces["trajectory"] == "large")
        texts = np.split(own["token"].astype(np.int32), own.starts[1:-1])
        found |= zip(own["prompt"][own.starts[:-1]].tolist(), texts, strict=True)
    return found


class PolicyShards:
    """Makes the shards of ``explore``."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        self.models, self.decoder = pair.models, decoders["policy"]
        self.new, self.sampling = settings["max_new_tokens"], Sampling(**settings["sampling"])
        self.classes = token_classes(pair.models[-1].tokenizer)

    def __call__(self, task: dict[str, Any], path: Path) -> None:
        prompts, how = prompts_of(task), {"budget": self.new, "sampling": self.sampling}
        written = write(self.decoder, prompts, self.new, self.sampling, task["seed"])
        rows = [
            trajectory(*self.models, prompt, *text, reference, self.classes, **how)
            for prompt, text, reference in zip(prompts, written, task["references"], strict=True)
        ]
        write_rows(path, rows)


@torch.inference_mode()
def trajectory(
    small: LM,
    large: LM,
    prompt: Prompt,
    answer: list[int],
    writers,
    reference,
    classes,
    kind="policy",
    rate=math.nan,
    budget: int | None = None,
    sampling: Sampling = Sampling(),
    sessions: tuple[PromptSessions | None, PromptSessions | None] = (None, None),
) -> dict[str, np.ndarray]:
    """The trace rows of one answer as columns [n], with the features that a policy would have seen.

    ``writers`` [n]: 0 where the small model wrote the token, 1 where the large one did; ``reference``: the large
    model's own answer; ``kind`` and ``rate``: the columns ``trajectory`` and ``rate``; ``budget``: most tokens of an
    answer; ``sampling``: how tokens are drawn, for the regret of those of the small model; ``sessions`` of each model,
    where the prompt is read for more than one answer. The logits of both models are those that tokens are drawn from:
    processed, as the large model's rules are.
    """
    shared, processors = check_compatible([small, large])[0], rules(large, budget)
    forms = token_forms(large.tokenizer)
    q_logits = answer_logits(small, prompt.ids, answer, shared, sessions=sessions[0])[:, : large.vocab]
    q_logits = (q_logits if processors is None else processors.answer(q_logits, prompt.ids, answer)).float()
    p_logits = answer_logits(large, prompt.ids, answer, processors=processors, sessions=sessions[1]).float()
    q, p = q_logits.log_softmax(-1), p_logits.log_softmax(-1)
    token = torch.tensor(answer, device=q.device)
    best_q, best_p = q.argmax(-1), p.argmax(-1)
    step = _step(q_logits, p_logits, prompt, token, torch.tensor(writers, device=q.device))
    names, history = FEATURE_COLUMNS, history_for(FEATURE_COLUMNS)
    step.history = _history(feature_columns(step, history))
    table = feature_columns(step, names, history, classes.to(q.device))
    columns = {
        "position": step.position,
        "token": token,
        "writer": torch.tensor(writers),
        "small_token": best_q,
        "large_token": best_p,
        "small_logprob": gather_at(q, token),
        "large_logprob": gather_at(p, token),
        "small_logprob_small": gather_at(q, best_q),
        "large_logprob_small": gather_at(p, best_q),
        "regret": _regret(q_logits, p_logits, sampling),
        "kl": torch.where(q > -torch.inf, q.exp() * (q - p), 0.0).sum(-1),
    } | {name: table[:, i] for i, name in enumerate(names)}
    n = len(answer)
    return {
        "prompt": np.array([prompt.id] * n),
        "group": np.array([prompt.group] * n),
        "trajectory": np.array([kind] * n),
        "small_repeats": repeats(answer, best_q.tolist(), reference, forms),
        "large_repeats": repeats(answer, best_p.tolist(), reference, forms),
        "small_ends": np.isin(best_q.cpu().numpy(), end_tokens(large)),
        "large_ends": np.isin(best_p.cpu().numpy(), end_tokens(large)),
        "rate": np.full(n, rate, np.float32),
        "prompt_tokens": np.full(n, len(prompt.ids)),
    } | {name: column.cpu().numpy() for name, column in columns.items()}


def _regret(q_logits: torch.Tensor, p_logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[n] nats that the small model's token loses beside the large model's, where both draw as ``sampling`` does.

    Greedy it is the regret of the small model's best token, since the large model's has none. At a temperature it is
    the mean of what the small model may draw, capped as a loss is, minus that of the large model, and no less than 0.
    """
    p = p_logits.log_softmax(-1)
    regret = p.amax(-1, keepdim=True) - p
    if sampling.greedy:
        return gather_at(regret, q_logits.argmax(-1))
    small, large = sampling.probabilities(q_logits), sampling.probabilities(p_logits)
    return ((small - large) * regret.clamp(max=CAP)).sum(-1).clamp(min=0)


def _step(q_logits, p_logits, prompt: Prompt, token, writers) -> Step:
    """The step [n] at each position: the large model was last called where it last wrote."""
    n = len(token)
    position = torch.arange(n, device=token.device)
    last_call = torch.where(writers == 1, position, -1).cummax(0).values
    before = torch.cat([last_call.new_full((1,), -1), last_call[:-1]])
    known = before >= 0
    agreed = (q_logits.argmax(-1) == p_logits.argmax(-1)).float()
    unknown = torch.full((n,), torch.nan, device=token.device)
    return Step(
        logits=q_logits,
        position=position,
        since_large=position - before - 1,
        agreed=torch.where(known, agreed[before.clamp(min=0)], unknown),
        large_entropy=torch.where(known, entropy(p_logits)[before.clamp(min=0)], unknown),
        last_token=torch.cat([token.new_tensor(prompt.ids[-1:]), token[:-1]]),
        uniform=unknown,
        repeated=longest_repeated_suffix(token.expand(n, n), position),
    )


def _history(seen: torch.Tensor) -> torch.Tensor:
    """[n, window, k] the values of ``seen`` [n, k] at the positions before each, NaN before the first."""
    padded = torch.cat([seen.new_full((WINDOW, seen.shape[1]), torch.nan), seen])
    return padded[:-1].unfold(0, WINDOW, 1).transpose(1, 2)
