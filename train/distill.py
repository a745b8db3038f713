"""Distil a drafter: a small Llama that writes what a given target would write.

The target's own answers are the right data (a drafter is judged on them); plain text helps. Its top-k
log-probabilities are computed once and kept, then the drafter trains on them for as many minutes as it is given:
cross-entropy against the target's top-k and its best token. The token embedding starts as the
truncated SVD of the target's. Everything is resumable: run the same command again.

    python train/distill.py --prompts mine.jsonl --text corpus.txt --minutes 60 --output runs/drafter

On CPU glibc's allocator gives big tensors back after every step; half the time is lost unless it is told not to:
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=500000000 python train/distill.py ...
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from decoding.lm import LM
from decoding.pairs import target_source
from train import atomic
from train.generations import write_generations
from train.gguf_file import write_gguf
from train.prompts import load_prompts
from train.self_prompts import write_self_prompts
from train.teacher import Sequence, TopK, batches, pad, read_generations, read_text


@dataclass
class Distill:
    """Distil a drafter from a target's own answers and from text."""

    prompts: list[str] = field(default_factory=list)
    """prompts (as for fit_policy) that the target answers first"""
    self_prompts: int = 0
    """prompts that the target writes itself (needs its chat template), and answers likewise"""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.7])
    """temperatures at which the target answers every prompt"""
    answer_tokens: int = 150
    """tokens of such an answer"""
    generations: list[Path] = field(default_factory=list)
    """answers that the target has written already: jsonl with `prompt_ids` and `new_ids`"""
    text: list[Path] = field(default_factory=list)
    """plain text files; the target's predictions on them are learned too"""
    text_tokens: int = 400_000
    """at most this many tokens of text"""
    target: str | None = None
    """folder, hub id or .gguf of the target (default: the large model of the default pair)"""
    output: Path = Path("runs/drafter")
    """folder for the store, the checkpoint and the result"""
    layers: int = 4
    width: int = 256
    heads: int = 4
    inner: int = 1024
    """width of the feed-forward layers"""
    minutes: float = 60.0
    """training time, the target's pass not counted"""
    batch_tokens: int = 4096
    max_length: int = 384
    """tokens of a training sequence"""
    top_k: int = 8
    """log-probabilities of the target kept per position"""
    negatives: int = 2048
    """random tokens beside the batch's own top-k in the estimate of the softmax's normaliser"""
    lr: float = 1.5e-3
    hard: float = 0.4
    """weight of the target's best token as a label; the rest is its top-k distribution"""
    prompt_weight: float = 0.3
    """weight of positions inside prompts and text"""
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None


def main(config: Distill) -> None:
    """Answers, the target's top-k, training, export; see the module."""
    _check(config)
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    config.output.mkdir(parents=True, exist_ok=True)
    source = config.target if config.target is not None else target_source()
    target = LM.load(source, config.device, "bfloat16")
    sequences = corpus(config, [*config.generations, *own_answers(config, target)], target.tokenizer)
    held = heldout(sequences)
    store = TopK(config.output / "store", sequences, config.top_k)
    store.fill(target.model, config.batch_tokens)
    trainer = Trainer(config, target.model, store, held)
    trainer.run()
    notes = {
        "target": target.name,
        "heldout_agreement": f"{trainer.agreement():.4f}",
        "training_prompts": prompt_hashes([s for i, s in enumerate(sequences) if i not in held]),
        "settings": json.dumps(settings(config)),
        "trained_minutes": f"{trainer.elapsed / 60:.1f}",
        "trained_tokens": str(trainer.tokens),
    }
    path = export(trainer.model, target, source, config.output, notes)
    print(f"wrote {path}: held-out agreement {notes['heldout_agreement']}")


def export(model: LlamaForCausalLM, target: LM, source: str, folder: Path, notes: dict[str, str]) -> Path:
    """One GGUF where the target is one (its tokenizer metadata is copied), else a transformers folder."""
    if source.endswith(".gguf"):
        path = folder / "drafter.gguf"
        write_gguf(model, Path(source), path, "two-model drafter", notes)
        return path
    path = folder / "drafter"
    model.save_pretrained(path)
    target.tokenizer.save_pretrained(path)
    atomic.write_json(path / "distill.json", notes)
    return path


def _check(config: Distill) -> None:
    if not (config.prompts or config.self_prompts or config.generations or config.text):
        raise ValueError("nothing to learn from: give --self-prompts, --prompts, --generations or --text")
    missing = [path for path in (*config.generations, *config.text) if not path.is_file()]
    if missing:
        raise ValueError(f"there is no file {missing[0]}")
    if config.width % config.heads or config.width // config.heads % 2:
        raise ValueError(f"--width {config.width} must be an even multiple of --heads {config.heads}")


def settings(config: Distill) -> dict:
    """What made the drafter, without the folders of the machine that did."""

    def bare(value):
        if isinstance(value, list):
            return [bare(item) for item in value]
        return Path(value).name if isinstance(value, Path) or os.path.isabs(str(value)) else value

    return {name: bare(value) for name, value in asdict(config).items()}


def own_answers(config: Distill, target: LM) -> list[Path]:
    """Let the target answer ``config.prompts``; what is answered already is kept."""
    path = config.output / "generations.jsonl"
    sources = list(config.prompts)
    if config.self_prompts:
        sources.append(str(config.output / "self_prompts.jsonl"))
        write_self_prompts(target, config.self_prompts, Path(sources[-1]))
    for source in sources:
        prompts = load_prompts(source, target.tokenizer, max_tokens=config.max_length)
        for temperature in config.temperatures:
            write_generations(target, prompts, path, config.answer_tokens, temperature)
    return [path] if sources else []


def corpus(config: Distill, generations: list[Path], tokenizer) -> list[Sequence]:
    """The target's answers and, up to ``text_tokens``, text."""
    sequences = [s for path in generations for s in read_generations(path, config.max_length)]
    text = [s for path in config.text for s in read_text(path, tokenizer, config.max_length)]
    keep = np.random.default_rng(config.seed).permutation(len(text))[: config.text_tokens // config.max_length]
    return sequences + [text[i] for i in keep]


def heldout(sequences: list[Sequence]) -> set[int]:
    """Indices of about one answer in 30, chosen by the hash of the prompt: both answers to a prompt go together."""
    return {i for i, s in enumerate(sequences) if s.prompt and int(prompt_hash(s), 16) % 30 == 0}


def prompt_hash(sequence: Sequence) -> str:
    return hash_of(sequence.ids[: sequence.prompt])


def hash_of(ids: Iterable[int]) -> str:
    """What is stored of a training prompt: 12 hexadecimal digits of the hash of its token ids."""
    return hashlib.sha256(repr([int(i) for i in ids]).encode()).hexdigest()[:12]


def prompt_hashes(sequences: list[Sequence]) -> str:
    return " ".join(sorted({prompt_hash(s) for s in sequences if s.prompt}))


def new_drafter(config: Distill, target) -> LlamaForCausalLM:
    """A Llama of the given size whose token embedding is the truncated SVD of the target's."""
    drafter = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=target.config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=target.config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=target.config.bos_token_id,
            eos_token_id=target.config.eos_token_id,
        )
    )
    u, s, _ = torch.linalg.svd(target.get_input_embeddings().weight.float(), full_matrices=False)
    embedding = u[:, : config.width] * s[: config.width]
    # Rows of norm 1 on average: the tied head then starts with logits of unit spread instead of being surely wrong.
    embedding /= embedding.norm(dim=1).mean()
    drafter.get_input_embeddings().weight.data.copy_(embedding)
    return drafter.to(target.device)


class Trainer:
    """Trains against the store until the minutes are used up; the learning rate follows the clock."""

    def __init__(self, config: Distill, target, store: TopK, held: set[int]):
        self.config, self.store, self.held = config, store, held
        self.device = target.device
        self.model = new_drafter(config, target)
        embedding = [self.model.get_input_embeddings().weight]
        others = [p for p in self.model.parameters() if p is not embedding[0]]
        groups = [{"params": others, "scale": 1.0}, {"params": embedding, "scale": 0.5, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        self.checkpoint = config.output / "checkpoint.pt"
        self.elapsed, self.tokens, self.epoch = 0.0, 0, 0
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.elapsed, self.tokens, self.epoch = state["elapsed"], state["tokens"], state["epoch"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"elapsed": self.elapsed, "tokens": self.tokens, "epoch": self.epoch}
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        os.replace(self.checkpoint.with_suffix(".tmp"), self.checkpoint)

    def run(self) -> None:
        """Train for the minutes that are left; saves after every epoch and when it is interrupted."""
        try:
            self._epochs()
        except KeyboardInterrupt:
            self.save()
            raise

    def _epochs(self) -> None:
        budget = self.config.minutes * 60
        train = [i for i in range(len(self.store.sequences)) if i not in self.held]
        order = [
            [train[i] for i in b] for b in batches([self.store.sequences[i] for i in train], self.config.batch_tokens)
        ]
        while self.elapsed < budget:
            losses = []
            for b in np.random.default_rng([self.config.seed, self.epoch]).permutation(len(order)):
                began = time.perf_counter()
                losses.append(self.step(order[b], min(1.0, self.elapsed / budget)))
                self.elapsed += time.perf_counter() - began
                if self.elapsed >= budget:
                    break
            self.epoch += 1
            self.save()
            rate = self.tokens / self.elapsed
            print(
                f"epoch {self.epoch}  {self.elapsed / 60:.1f}/{self.config.minutes:g} min  {rate:,.0f} tokens/s  "
                f"loss {np.mean(losses):.3f}  held-out agreement {self.agreement():.4f}",
                flush=True,
            )

    def learning_rate(self, progress: float) -> float:
        warm = min(1.0, progress / 0.02 + 0.02)
        return self.config.lr * warm * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6

    def step(self, batch: list[int], progress: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(progress) * group["scale"]
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def loss(self, batch: list[int]) -> torch.Tensor:
        ids, labels, weights, where = self._tensors(batch)
        self.tokens += len(where)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)[where]
            candidates, columns, correction = self._candidates(labels)
            logits = hidden @ self.model.lm_head.weight[candidates].T
        logits = logits.float()
        normaliser = (logits + correction).logsumexp(-1)
        soft = (logits.gather(1, columns) * weights[0]).sum(-1)
        best = logits.gather(1, columns[:, :1]).squeeze(1)
        loss = normaliser - (1 - self.config.hard) * soft - self.config.hard * best
        return (loss * weights[1]).sum() / weights[1].sum()

    def _tensors(self, batch: list[int]):
        """ids [b, n]; the target's top-k ids [m, k]; (its renormalised probabilities, position weights); where [m]."""
        rows = [self.store.sequences[i] for i in batch]
        ids = pad([row.ids for row in rows])
        spans = [np.arange(self.store.starts[i], self.store.starts[i + 1]) for i in batch]
        where = np.concatenate([r * ids.shape[1] + np.arange(len(row.ids)) for r, row in enumerate(rows)])
        answer = np.concatenate([np.arange(len(row.ids)) >= row.prompt - 1 for row in rows])
        plain = np.concatenate([np.full(len(row.ids), row.prompt == 0) for row in rows])
        position = np.where(answer & ~plain, 1.0, self.config.prompt_weight).astype(np.float32)
        span = np.concatenate(spans)
        labels = torch.from_numpy(self.store.ids[span].astype(np.int64)).to(self.device)
        soft = torch.from_numpy(self.store.logprobs[span].astype(np.float32)).to(self.device).softmax(-1)
        position = torch.from_numpy(position).to(self.device)
        return ids.to(self.device), labels, (soft, position), torch.from_numpy(where).to(self.device)

    def _candidates(self, labels: torch.Tensor):
        """Tokens whose logits are computed: the batch's own and random others, which stand for all the rest.

        Returns candidates [c], the columns of ``labels`` among them and a correction [c] of log(rest / drawn) for
        the random ones, so that the sum of exponentials estimates the full normaliser without bias.
        """
        own, columns = labels.unique(return_inverse=True)
        vocabulary = self.model.config.vocab_size
        rest = torch.ones(vocabulary, dtype=torch.bool, device=self.device)
        rest[own] = False
        rest = rest.nonzero().squeeze(1)
        count = min(self.config.negatives, len(rest))
        drawn = rest[torch.randint(max(1, len(rest)), (count,), device=self.device)]
        correction = torch.zeros(len(own) + len(drawn), device=self.device)
        correction[len(own) :] = math.log(max(1, len(rest)) / max(1, count))
        return torch.cat([own, drawn]), columns, correction

    @torch.inference_mode()
    def agreement(self) -> float:
        """Share of answer positions of held-out prompts where the drafter's best token is the target's best."""
        self.model.eval()
        right = total = 0
        for i in sorted(self.held):
            sequence = self.store.sequences[i]
            span = slice(self.store.starts[i] + sequence.prompt - 1, self.store.starts[i + 1] - 1)
            logits = self.model(pad([sequence.ids]).to(self.device), use_cache=False).logits[
                0, sequence.prompt - 1 : -1
            ]
            right += int((logits.argmax(-1).cpu().numpy() == self.store.ids[span, 0]).sum())
            total += len(logits)
        self.model.train()
        return right / max(1, total)


def cli(argv: list[str] | None = None) -> int:
    import tyro

    config = tyro.cli(Distill, args=argv, description=__doc__)
    try:
        main(config)
    except (ValueError, OSError) as error:
        print(f"distill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from {config.output}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(cli())
