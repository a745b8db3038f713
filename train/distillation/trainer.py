"""Trains a drafter for a given time: the learning rate follows the clock, and a kill costs at most five minutes."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from train.common.atomic import append_rows, read_rows
from train.common.progress import progress
from train.distillation import checkpoint
from train.distillation.agreement import holdout_report
from train.distillation.batches import batches, collate
from train.distillation.checkpoint import Progress
from train.distillation.objective import distillation_loss

SAVE_EVERY = 300  # seconds


class Trainer:
    """Trains ``model`` on ``store`` (``TopK`` or ``JoinedTopK``) without the sequences ``holdout``.

    config: resolved settings. Continues from the checkpoint of the run, if any. ``progress.jsonl`` gets a line per
    epoch, at most a hundred in all.
    """

    def __init__(self, config, model, store, holdout: set[int]):
        self.config, self.model, self.holdout = config, model.train(), holdout
        self.device = model.device
        self.body = model.model
        embedding = model.get_input_embeddings().weight
        others = [p for p in model.parameters() if p is not embedding]
        groups = [{"params": others, "scale": 1.0}, {"params": [embedding], "scale": 0.5, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        self.path, self.log = config.output / "checkpoint.safetensors", config.output / "progress.jsonl"
        self.progress = checkpoint.load(self.path, model, self.optimizer) if self.path.exists() else Progress()
        read_rows(self.log, dict)  # removes a line that a kill cut short
        self.saved = self.reported = self.progress.elapsed
        self.last: dict | None = None
        self._forget_losses()
        self.use(store)
        if config.compile:  # now: compiling in the first step would count as training time
            self.body = torch.compile(model.model, dynamic=True)
            self.loss(self.batches[-1]).backward()
            self.optimizer.zero_grad(set_to_none=True)

    def use(self, store, rounds: int = 0) -> None:
        """Train on ``store``, to which ``rounds`` on-policy rounds have added; the hold-out stays the same."""
        self.store = store
        train = [i for i in range(len(store.sequences)) if i not in self.holdout]
        chosen = batches([store.sequences[i] for i in train], self.config.batch_tokens)
        self.batches = [[train[i] for i in batch] for batch in chosen]
        if rounds > self.progress.rounds:
            self.progress.rounds, self.progress.epoch, self.progress.batch = rounds, self.progress.epoch + 1, 0
            self.save()

    def save(self) -> None:
        checkpoint.save(self.path, self.model, self.optimizer, self.progress)
        self.saved = self.progress.elapsed

    def run(self, until: float) -> None:
        """Train up to ``until`` seconds in all; save at the end, and when interrupted."""
        try:
            with progress("training, seconds", int(until), int(self.progress.elapsed)) as update:
                while self.progress.elapsed < until:
                    self._epoch(until, update)
                    if self.progress.elapsed >= min(until, self.reported + 0.6 * self.config.minutes):
                        self.report()
                        self.save()
        except KeyboardInterrupt:
            self.save()
            raise

    def _epoch(self, until: float, update: Callable[[int], None]) -> None:
        """The batches of this epoch that are left, or those for which there is time."""
        progress = self.progress
        order = np.random.default_rng([self.config.seed, progress.epoch]).permutation(len(self.batches))
        for index in order[progress.batch :]:
            began = time.perf_counter()
            self._step(self.batches[index])
            progress.elapsed += time.perf_counter() - began
            update(int(progress.elapsed))
            progress.batch += 1
            if progress.elapsed >= until:
                return
            if progress.elapsed >= self.saved + SAVE_EVERY:
                self.save()
        progress.epoch, progress.batch = progress.epoch + 1, 0

    def learning_rate(self, done: float) -> float:
        """Two percent of warm-up, then a cosine; ``done`` is the elapsed share of the minutes."""
        warm = min(1.0, done / 0.02 + 0.02)
        return self.config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done))) + 1e-6

    def _step(self, indices: list[int]) -> None:
        rate = self.learning_rate(self.progress.elapsed / (60 * self.config.minutes))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        loss = self.loss(indices)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses += loss.detach()  # stays on the device: reading it at every step would make the host wait
        self.steps += 1
        self.progress.tokens += sum(len(self.store.sequences[i].ids) for i in indices)

    def loss(self, indices: list[int]) -> torch.Tensor:
        """The loss of the sequences ``indices``, a scalar on the device."""
        batch = collate(self.store, indices, self.config.prompt_weight, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            hidden = self.body(batch.ids, use_cache=False).last_hidden_state.flatten(0, 1)[batch.where]
            head = self.model.get_output_embeddings().weight
            return distillation_loss(hidden, head, batch, self.config.hard, self.config.negatives)

    def _forget_losses(self) -> None:
        self.losses, self.steps = torch.zeros((), device=self.device), 0

    def report(self) -> dict:
        """Print a line and append it to ``progress.jsonl``: speed, loss, and the hold-out report.

        FloatingPointError where the loss or a weight is no finite number any more.
        """
        loss = self.losses.item() / self.steps if self.steps else None
        if not math.isfinite(loss or 0.0) or not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise FloatingPointError(
                f"the training has diverged at --lr {self.config.lr:g}; begin anew with a smaller one"
            )
        progress, report = self.progress, holdout_report(self.model, self.store, self.holdout)
        row = {
            "epoch": progress.epoch,
            "minutes": progress.elapsed / 60,
            "tokens": progress.tokens,
            "tokens_per_second": progress.tokens / max(progress.elapsed, 1e-9),
            "on_policy_rounds": progress.rounds,
            "loss": loss,
            **report,
        }
        append_rows(self.log, [row])
        print(_line(row, self.config.minutes), flush=True)
        self.reported, self.last = progress.elapsed, row
        self._forget_losses()
        return row


def _line(row: dict, minutes: float) -> str:
    loss, agreement, accepted = (
        "-" if row[name] is None else f"{row[name]:.{digits}f}"
        for name, digits in (("loss", 3), ("holdout_agreement", 4), ("accepted_at_length_4", 2))
    )
    return (
        f"epoch {row['epoch']}, {row['minutes']:.1f}/{minutes:g} min, {row['tokens_per_second']:,.0f} tokens/s, "
        f"loss {loss}; held out: agreement {agreement}, {accepted} of 4 accepted"
    )
