"""The settings of the main job, which are the options of train/fit_policy.py."""

from __future__ import annotations  # METHODS is read when the options are, with methods that were added by then

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from decoding.cli.dtypes import DtypeOptions, Dtypes
from decoding.cli.generation_config import IgnoredSettings
from decoding.cli.options import Backend
from decoding.cli.sampling import Drawing, SamplingOptions
from train.data.options import PromptOptions, Reading
from train.methods import METHODS

MAY_CHANGE = ("trials", "wandb", "output", "join", "storage", "frontier", "workers")
"""settings that may change on resume"""


@dataclass
class FitPolicy:
    """Tune a decision policy for a pair of models, and measure what it is worth."""

    method: Literal[*METHODS] = "backoff"
    """what to tune. backoff: which model writes each token. speculative: how many tokens the small model drafts before
    the large one checks them, which loses nothing, so it takes no goal. hybrid: the drafts and how much of a draft is
    good enough to keep, the best of BiLD, MTAD and others at the goal"""
    target_speedup: float | None = None
    """least loss at this speedup over the large model alone (default: that at which the small model writes the share of
    the tokens that it gets right; with --method hybrid 1.3)"""
    quality_budget: float | None = None
    """instead: best speedup at this mean loss per prompt, in [0, 1]"""
    grader: str | None = None
    """score the task: code, math, choice, chrf, rouge or sql, which need `tests`, `reference` or `choices` in the
    prompts file (docs/graders.md), or module:function of your own, (prompt, reference, text) -> score in [0, 1]. The
    loss of a live text is then the large model's score minus its own; fitting and replay still use guarded regret"""
    certify: int = 0
    """certify the quality budget on this many more prompts of the same source, in groups of their own (0: no
    certificate). A run with --quality-budget says how many prompts it takes; they are written in batches, not timed"""
    confidence: float = 0.9
    """probability with which the certificate holds"""
    loss_cap: float = 0.25
    """the certificate counts a prompt's loss as at most this, because ruling out rare disasters would take thousands of
    prompts; their share is bounded beside it"""
    policy: Literal["rule", "logistic", "mlp"] = "logistic"
    """kind of policy to fit (--method speculative and hybrid try constant lengths and rules too)"""
    label: Literal["regret", "kl", "disagree"] = "regret"
    """what a learned hand-off policy predicts of the small model's token. regret: its guarded regret under the large
    model. kl: whether KL(small || large) is above its median. disagree: whether the two best tokens differ"""
    preset: Literal["quick"] | None = None
    """quick: a first look in a few minutes, at few prompts and short answers, which proves nothing; what you set
    yourself stays"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    prompts: str | None = None
    """.jsonl or .json with `prompt` or `messages`, .csv or .parquet, .txt with a prompt a line, or a `datasets` name
    (default: embedded)"""
    limit: int | None = 52
    """use at most this many prompts, spread over their families, and more where --holdout or --certify asks for them"""
    holdout: int = 60
    """hold out this many prompts where the source has them: those beyond the share in --sizes follow the other prompts,
    in groups of their own. All have a loss, by texts that are written in batches"""
    timed: int = 12
    """of the held-out prompts, how many are timed, one by one; with --batch-size B, B times as many"""
    batch_size: int = 1
    """texts that are written at once where this will be used: models are then timed with so many rows, live runs keep
    so many going (a text that ends is replaced by the next), and speedups are those of the throughput"""
    max_new_tokens: int = 64
    rounds: int = 1
    """rounds of DAgger for hand-offs: each fits a policy on all traces so far and adds traces of what that policy
    writes (with --traces, no round is added)"""
    longest: int = 8
    """longest draft that --method speculative and hybrid try"""
    traces: Path | None = None
    """folder of traces collected earlier with these models and prompts, instead of collecting them"""
    trials: int = 150
    """Optuna trials, pruned ones included. A trial is replayed on the traces in milliseconds, but with --method hybrid
    it decodes the tuning prompts: 60 are a start"""
    frontier: bool = False
    """also report the predicted least loss at every speedup over all candidates, and their settings"""
    name: str = "default"
    """name of the run"""
    output: Path = Path("runs")
    """results go to OUTPUT/NAME: policy.json, report.html, methods.md, frontier.png, result.json, log.txt,
    study.journal, traces/"""
    join: bool = False
    """help the search of a run that has begun: the same command with --join, on a machine that sees the same folder"""
    workers: str | None = None
    """who writes traces and texts (default: this process). processes:N: N processes of this machine.
    submitit:FOLDER_OR_CLUSTER[:N]: an array of N jobs (default: 8) on Slurm, or on this machine where CLUSTER is local.
    ray:ADDRESS[:N]: N actors on a Ray cluster at host:port, auto or local (default: one a node, with --device cuda one
    a GPU). What is written is the same whoever writes it; all that is timed stays in this process"""
    storage: str | None = None
    """URL of a database (postgresql+psycopg2://...) for the search instead of OUTPUT/NAME/study.journal; a database
    also notices when a worker on another machine is gone"""
    wandb: Literal["offline", "online", "disabled"] | None = None
    """trials and results are logged to Weights & Biases (default: as WANDB_MODE says, else offline); a failure there
    never ends the run"""
    ignore_generation_config: IgnoredSettings = ""
    device: str = "cpu"
    backend: Backend = "torch"
    """torch, or llama.cpp, which runs .gguf files as they are, on the CPU"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    seed: int = 0
    sizes: tuple[float, float, float] = (0.4, 0.2, 0.4)
    """shares of the prompts to fit on, tune on and hold out"""
    seeds: int | None = None
    """at a temperature, texts of each prompt that a loss is the mean of, at least 2 (default: 2)"""
    drawing: Drawing = field(default_factory=SamplingOptions)
    dtypes: Dtypes = field(default_factory=DtypeOptions)
    reading: Reading = field(default_factory=PromptOptions)
