"""Collect draft traces: while the target writes, the draft is asked everywhere, and followed where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoding import LM, Sampling
from decoding.drafting.draft_model import draft_noise
from decoding.generation import commits, start
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState, entropy
from decoding.state.sampling import DRAW, REPLACE, sample_from_weights
from decoding.state.token_buffer import Commit, left_pad
from policies import feature_columns, token_classes
from train.data.prompts import Prompt
from train.data.splits import split_hash
from train.traces.collect_handoff import SHARD, missing_shards, write_rows
from train.traces.draft_traces import DRAFT_SCHEMA, STEP_FEATURES, DraftTraces, read_drafts
from train.traces.handoff_traces import TraceError, open_folder, read_meta


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
) -> None:
    """Write the draft traces of ``prompts`` to ``folder``; shards that are there already are kept.

    ``longest`` is the longest draft they can replay, ``batch`` prompts are a
    shard and are read together. In low precision a logit depends on how many rows are, so there a score next to its
    threshold may fall on the other side live. TraceError when the folder holds those of another run; ValueError
    for what ``generate`` refuses.
    """
    if longest < 1:
        raise ValueError(f"the longest draft must be at least 1 token, not {longest}")
    about = about_drafts(small, large, prompts, longest, max_new_tokens)
    open_folder(folder, about | {"sampling": asdict(sampling), "seed": seed, "batch": batch})
    classes = token_classes(large.tokenizer).to(large.device)
    for i, shard in missing_shards(folder, prompts, 0, "collecting draft traces", batch):
        logger = DraftLogger([small, large], longest, classes)
        ids, mask = left_pad([prompt.ids for prompt in shard], large.device)
        with torch.inference_mode():
            run = start(logger, ids, mask, max_new_tokens, None, sampling, seed + i * batch)
            for _ in commits(logger, run):
                pass
        write_rows(folder, i, [logger.columns(shard)])


def about_drafts(small: LM, large: LM, prompts: Sequence[Prompt], longest: int, max_new_tokens: int) -> dict:
    """What draft traces are of: written beside them, and compared with when they are given."""
    return {
        "drafts": DRAFT_SCHEMA,
        "longest": longest,
        "max_new_tokens": max_new_tokens,
        "models": [small.identity(), large.identity()],
        "prompts": split_hash(prompts),
    }


def given_drafts(
    folder: Path, small: LM, large: LM, prompts: Sequence[Prompt], longest: int, max_new_tokens: int
) -> DraftTraces:
    """The draft traces of greedy text in ``folder``. TraceError when they are of something else, or unfinished."""
    traces, meta = read_drafts(folder), read_meta(folder)
    wanted = about_drafts(small, large, prompts, longest, max_new_tokens) | {"sampling": asdict(Sampling())}
    differing = [key for key, value in json.loads(json.dumps(wanted)).items() if meta.get(key) != value]
    if differing:
        raise TraceError(f"the draft traces in {folder} are of another run ({', '.join(differing)} differ)")
    missing = {p.id for p in prompts} - set(traces["prompt"].tolist())
    if missing:
        raise TraceError(f"the draft traces in {folder} lack {len(missing)} of {len(prompts)} prompts")
    return traces


class DraftLogger:
    """A decoder that writes what the target alone would, and logs the draft beside it (``train.traces.draft_traces``).

    The draft reads one token at a time, as it does live: in low precision a whole text at once gives other logits.
    """

    names = STEP_FEATURES
    """what its ``PolicyState`` has to know of each step"""

    def __init__(self, models: Sequence[LM], longest: int, classes: Tensor):
        self.models, self.longest, self.classes = list(models), longest, classes
        self.scratch = longest
        self.logged: list[Tensor] = []

    def write(self, run: GenerationState) -> Iterator[Commit]:
        text, (small, large) = run.buffer, run.sessions
        trail = PolicyState(self, text)
        while True:
            rows = text.rows
            lengths = text.lengths[rows]
            position = lengths - text.prompts[rows]
            target_logits, _ = large.next(text.ids, lengths, rows)
            logits, _ = small.next(text.ids, lengths, rows)
            token = run.sampling.draw(target_logits, text.uniform(rows, position, DRAW))
            p, q = run.sampling.probabilities(target_logits), run.sampling.probabilities(logits)
            wrong = (of(q, token) < of(p, token)).nonzero().squeeze(1)
            own = token.clone()
            fresh = draft_noise(text, rows, position, torch.zeros_like(position), REPLACE, self.longest)
            own[wrong] = sample_from_weights((q - p).clamp(min=0), fresh)[wrong]
            said = torch.stack([of(q, token).log(), of(p, token).log(), entropy(target_logits)], 1)
            self._log(trail, logits, rows, lengths, 0, token, own, said)
            self._follow(run, trail, rows[wrong], lengths[wrong], own[wrong], wrong=True)
            ended = text.ends(token).nonzero().squeeze(1)
            self._follow(run, trail, rows[ended], lengths[ended], token[ended], wrong=False)
            yield Commit.one(rows, token, torch.ones_like(token))

    def _follow(
        self, run: GenerationState, trail: PolicyState, rows: Tensor, lengths: Tensor, token: Tensor, wrong: bool
    ) -> None:
        """Log where the draft goes after ``token`` [r] of its own, up to the longest draft or the budget."""
        text, session = run.buffer, run.sessions[0]
        before = rows, lengths
        for place in range(1, self.longest):
            within = (lengths + place - text.prompts[rows] < text.budget).nonzero().squeeze(1)
            if not len(within):
                break
            rows, lengths, token = rows[within], lengths[within], token[within]
            text.ids[rows, lengths + place - 1] = token
            logits, _ = session.next(text.ids, lengths + place, rows)
            begin = lengths - text.prompts[rows]
            fresh = draft_noise(text, rows, begin, torch.full_like(begin, place), REPLACE, self.longest)
            token = run.sampling.draw(logits, fresh)
            none = torch.full_like(token, -1)
            unknown = torch.full((len(rows), 3), torch.nan, device=rows.device)
            self._log(trail, logits, rows, lengths + place, place if wrong else 0, none, token, unknown)
        session.rollback(*before)

    def _log(self, trail: PolicyState, logits, rows, lengths, depth: int, token, own, said) -> None:
        step = trail.step(logits, rows, lengths)
        seen = feature_columns(step, STEP_FEATURES, classes=self.classes)
        whole = [rows, step.position, torch.full_like(rows, depth), token, own, step.last_token]
        # float64 holds token ids and float32 values alike
        self.logged.append(torch.cat([torch.stack(whole, 1).double(), said.double(), seen.double()], 1).cpu())

    def columns(self, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """What was logged, as the columns of draft traces, in their order."""
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


def of(probabilities: Tensor, token: Tensor) -> Tensor:
    """[r] the probability of ``token`` [r] in ``probabilities`` [r, vocab]."""
    return probabilities.gather(1, token[:, None]).squeeze(1)
