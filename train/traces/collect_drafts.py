"""Collect draft traces: the draft model drafts at every position of the target's own text, on past its mistakes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoding import LM, Sampling
from decoding.acceptance.draft_block import gather_at
from decoding.drafting.draft_model import draft_noise
from decoding.generation import commits, start, stops_of
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState, entropy
from decoding.state.sampling import REPLACE, sample_from_weights
from decoding.state.token_buffer import Commit, left_pad
from policies import feature_columns, token_classes
from train.data.prompts import Prompt
from train.traces.draft_traces import STEP_FEATURES
from train.traces.given import about
from train.traces.handoff_traces import open_folder
from train.traces.trace_shards import (
    SHARD,
    missing_shards,
    prompts_of,
    settings_of,
    take_tables,
    task_of,
    write_rows,
)
from train.workers.crew import ALONE, Crew
from train.workers.pair import Pair
from train.workers.stage import Stage


def collect_drafts(
    small: LM,
    large: LM,
    prompts: Sequence[Prompt],
    longest: int,
    folder: Path,
    max_new_tokens: int = 128,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    batch: int = SHARD,
    crew: Crew = ALONE,
) -> None:
    """Write the draft traces of ``prompts`` to ``folder``; shards that are there already are kept.

    ``longest`` is the longest draft that can be replayed from them. ``batch`` prompts are a shard and are read in one
    batch; in low precision a logit depends on the batch size, so a score close to its threshold may differ live.
    FileError when the folder holds traces of another run; ValueError for what ``generate`` refuses.
    """
    if longest < 1:
        raise ValueError(f"the longest draft must be at least 1 token, not {longest}")
    how = {"sampling": asdict(sampling), "seed": seed, "batch": batch}
    open_folder(folder, about(small, large, prompts, max_new_tokens, longest) | how)
    settings = settings_of(max_new_tokens, sampling) | {"longest": longest}
    missing = missing_shards(folder, prompts, 0, batch)
    tasks = {i: task_of(some, seed + i * batch) for i, some in missing.items()}
    stage = Stage("draft-traces", "collecting draft traces", folder, settings, tasks)
    take_tables(stage, crew, Pair([small, large]))


class DraftShards:
    """Makes the shards of ``collect_drafts``."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        self.models, self.longest, self.new = pair.models, settings["longest"], settings["max_new_tokens"]
        self.sampling = Sampling(**settings["sampling"])
        self.classes = token_classes(pair.models[-1].tokenizer).to(pair.models[-1].device)

    @torch.inference_mode()
    def __call__(self, task: dict[str, Any], path: Path) -> None:
        prompts, logger = prompts_of(task), DraftLogger(self.models, self.longest, self.classes)
        ids, mask = left_pad([prompt.ids for prompt in prompts], self.models[-1].device)
        state = start(logger, ids, mask, self.new, None, self.sampling, task["seed"])
        for _ in commits(logger, state, stops_of(logger)):
            pass
        write_rows(path, [logger.columns(prompts)])


class DraftLogger:
    """A decoder that writes the target's own text and logs the rows of ``train.traces.draft_traces``.

    The draft model reads one token at a time, as it does live: in low precision a text read at once gives other logits.
    """

    names = STEP_FEATURES  # features that its ``PolicyState`` fills

    def __init__(self, models: Sequence[LM], longest: int, classes: Tensor):
        self.models, self.longest, self.classes = list(models), longest, classes
        self.scratch = longest
        self.logged: list[Tensor] = []

    def write(self, state: GenerationState) -> Iterator[Commit]:
        buffer, (small, large) = state.buffer, state.sessions
        policy_state = PolicyState(self, buffer)
        while True:
            rows = buffer.rows
            lengths = buffer.lengths[rows]
            position = lengths - buffer.prompts[rows]
            target_logits = state.processed(large.next(buffer.ids, lengths, rows)[0], rows, lengths)
            logits = state.processed(small.next(buffer.ids, lengths, rows)[0], rows, lengths)
            token = state.draw(target_logits, rows, lengths)
            p, q = state.sampling.probabilities(target_logits), state.sampling.probabilities(logits)
            wrong = (gather_at(q, token) < gather_at(p, token)).nonzero().squeeze(1)
            own = token.clone()
            fresh = draft_noise(buffer, rows, position, torch.zeros_like(position), REPLACE, self.longest)
            own[wrong] = sample_from_weights((q - p).clamp(min=0), fresh)[wrong]
            said = torch.stack([gather_at(q, token).log(), gather_at(p, token).log(), entropy(target_logits)], 1)
            self._log(policy_state, logits, rows, lengths, 0, token, own, said)
            self._follow(state, policy_state, rows[wrong], lengths[wrong], own[wrong], wrong=True)
            ended = buffer.ends(token).nonzero().squeeze(1)
            self._follow(state, policy_state, rows[ended], lengths[ended], token[ended], wrong=False)
            yield Commit.one(rows, token, torch.ones_like(token))

    def _follow(self, state: GenerationState, policy_state: PolicyState, rows, lengths, token, wrong: bool) -> None:
        """Log the draft that goes on from ``token`` [r] of its own, up to the longest draft or the budget."""
        buffer, session = state.buffer, state.sessions[0]
        before = rows, lengths
        for place in range(1, self.longest):
            within = (lengths + place - buffer.prompts[rows] < buffer.budget).nonzero().squeeze(1)
            if not len(within):
                break
            rows, lengths, token = rows[within], lengths[within], token[within]
            buffer.ids[rows, lengths + place - 1] = token
            logits, _ = session.next(buffer.ids, lengths + place, rows)
            logits = state.processed(logits, rows, lengths + place)
            begin = lengths - buffer.prompts[rows]
            fresh = draft_noise(buffer, rows, begin, torch.full_like(begin, place), REPLACE, self.longest)
            token = state.sampling.draw(logits, fresh)
            none = torch.full_like(token, -1)
            unknown = torch.full((len(rows), 3), torch.nan, device=rows.device)
            self._log(policy_state, logits, rows, lengths + place, place if wrong else 0, none, token, unknown)
        session.rollback(*before)

    def _log(self, policy_state: PolicyState, logits, rows, lengths, depth: int, token, own, said) -> None:
        step = policy_state.step(logits, rows, lengths)
        seen = feature_columns(step, STEP_FEATURES, classes=self.classes)
        whole = [rows, step.position, torch.full_like(rows, depth), token, own, step.last_token]
        # float64 holds both token ids and float32 values exactly.
        self.logged.append(torch.cat([torch.stack(whole, 1).double(), said.double(), seen.double()], 1).cpu())

    def columns(self, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """The logged rows as columns of draft traces, in their order."""
        table = torch.cat(self.logged).numpy()
        row, position, depth = table[:, :3].astype(int).T
        order = np.lexsort((depth, position - depth, row))
        row, table = row[order], table[order]
        whole = dict(zip(("position", "depth", "token", "drafted", "last_token"), table[:, 1:6].T, strict=True))
        names = ("small_logprob", "large_logprob", "target_entropy", *STEP_FEATURES)
        return {
            "prompt": np.array([p.id for p in prompts])[row],
            "group": np.array([p.group for p in prompts])[row],
            "prompt_tokens": np.array([len(p.ids) for p in prompts])[row],
            **{name: column.astype(np.int64) for name, column in whole.items()},
            **{name: column.astype(np.float32) for name, column in zip(names, table[:, 6:].T, strict=True)},
        }
