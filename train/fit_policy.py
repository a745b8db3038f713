"""Tune a decision policy for a pair of models, and measure what it is worth.

Give it models, prompts and a target; it gives you a policy, a measured frontier and a report:

    python train/fit_policy.py                                  # the embedded pair and prompts, 1.3x faster
    python train/fit_policy.py --quality-budget 0.05            # the fastest policy that loses at most 0.05
    python train/fit_policy.py --quality-budget 0.05 --certify 300      # ... and a promise that it does, on 300 more
    python train/fit_policy.py --method speculative             # as fast as drafts can make it, and nothing lost
    python train/fit_policy.py --method hybrid --trials 60      # where drafts end, how long, and how leniently kept
    python train/fit_policy.py --small S --large L --prompts my.jsonl --policy mlp --name mine

The steps: collect traces of both models on prompts, split by prompt group; fit; search thresholds with Optuna by
replaying the traces; run the best three live on the tuning prompts, and write texts at the best one's threshold until
it meets the goal; measure the hold-out once, live, paired and interleaved with its controls. With --certify, thresholds
up to the tuned one are tested in a fixed order on prompts that nothing else touched; "cannot certify" is one of its
answers, and then policy.json hands everything on. Loss is the guarded regret (0: the large model's own text, 1: worst),
or with --grader what is lost of a score of yours. With --method speculative the draft is tuned: its length, and a
policy that ends it early, by exact replay. With --method hybrid so is the rule that accepts it, at the same goals as
hand-offs: what a lossy rule writes cannot be replayed, so every trial decodes the tuning prompts, priced by the timing
table and given up once it is surely worse than the best. A run that was stopped goes on where it was when started again
with the same settings; other processes help its search with the same command and --join.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.common.cli import attempt


@dataclass
class FitPolicy:
    """Tune a decision policy for a pair of models, and measure what it is worth."""

    method: Literal["backoff", "speculative", "hybrid"] = "backoff"
    """what to tune: who writes each token (backoff); how many tokens the small model drafts before the large one checks
    them, which loses nothing and so has no goal: it is made as fast as it can be (speculative); or both and how much of
    a draft is good enough to be kept, of BiLD, MTAD and others the best at the goal (hybrid)"""
    target_speedup: float | None = None
    """least loss at this speedup over the large model alone (the default goal: 1.3)"""
    quality_budget: float | None = None
    """best speedup at this mean guarded regret per prompt, in [0, 1], instead"""
    grader: str | None = None
    """module:function, (prompt, reference, text) -> score in [0, 1], such as experiments.answer_numbers:exact_number:
    live texts then lose the large model's own score minus theirs, while replay goes on with guarded regret"""
    certify: int = 0
    """promise the quality budget, by a test on this many more prompts of the same source, of groups of their own (0: no
    promise). A run with --quality-budget says how many it takes; they are written in batches, not timed"""
    confidence: float = 0.9
    """probability with which the promise holds"""
    loss_cap: float = 0.25
    """a prompt's loss counts as at most this in the promise, as rare disasters would take thousands of prompts to rule
    out; how often they happen is bounded beside it"""
    policy: Literal["rule", "logistic", "mlp"] = "logistic"
    """kind of policy to fit (with --method hybrid constant lengths and rules are tried too)"""
    label: Literal["regret", "kl", "disagree"] = "regret"
    """what a learned policy predicts of the small model's token: its guarded regret under the large model, whether
    KL(small || large) is above its median, or whether the two best tokens differ"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    prompts: str | None = None
    """.jsonl with `prompt` or `messages`, .txt with a prompt a line, or a `datasets` name (default: embedded)"""
    limit: int | None = 52
    """use at most this many prompts, spread over their families"""
    max_new_tokens: int = 64
    rounds: int = 1
    """rounds of DAgger for hand-offs: each fits a policy on all traces so far and adds those of what it writes (with
    --traces, those given have had theirs)"""
    longest: int = 8
    """longest draft that --method speculative and hybrid try"""
    traces: Path | None = None
    """folder of traces collected earlier with these models and prompts, instead of collecting them"""
    trials: int = 150
    """Optuna trials, those included that were given up; each is replayed on the traces in milliseconds, but with
    --method hybrid it decodes the tuning prompts: 60 are a start"""
    frontier: bool = False
    """report too, as predicted, the least loss at every speedup over all candidates, and their settings"""
    name: str = "default"
    """name of the run"""
    output: Path = Path("runs")
    """results go to OUTPUT/NAME: policy.json, report.html, frontier.png, result.json, study.journal, traces/"""
    join: bool = False
    """help the search of a run that has begun: the same command with --join, on a machine that sees the same folder"""
    storage: str | None = None
    """URL of a database (postgresql+psycopg2://...) for the search instead of OUTPUT/NAME/study.journal; it notices too
    when a worker on another machine is gone"""
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """trials and results are logged to Weights & Biases; a failure there never costs the run"""
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    seed: int = 0
    sizes: tuple[float, float, float] = field(default=(0.4, 0.2, 0.4))
    """shares of the prompts that are fitted on, tuned on and held out"""


def main(argv: list[str] | None = None) -> int:
    """Run the job; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    import tyro

    config = tyro.cli(FitPolicy, args=argv, description=__doc__)
    from train.pipeline import run

    return attempt("fit_policy", lambda: run(config), config.output / config.name)


if __name__ == "__main__":
    sys.exit(main())
