"""Settings of the commands that compare methods: any set of them, and the MTAD paper's tables."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from decoding.cli.dtypes import DtypeOptions, Dtypes
from decoding.cli.generation_config import IgnoredSettings
from decoding.cli.options import Backend
from decoding.cli.sampling import Drawing, SamplingOptions
from train.data.options import PromptOptions, Reading


@dataclass
class ComparisonSettings:
    """Settings of every comparison of methods on one pair."""

    limit: int = 100
    """prompts whose answers are compared, spread over their families"""
    timed: int = 25
    """how many of these are timed; 0: time is priced from calls"""
    batch_size: int = 1
    """texts that are timed, or priced, at once: speeds are then those of the throughput"""
    batch: int = 16
    """prompts answered together where nothing is timed"""
    max_new_tokens: int = 64
    baseline: str = "large"
    """the method whose guarded regret is subtracted from the others', prompt by prompt"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    prompts: str | None = None
    """prompts as train/fit_policy.py takes them (default: the embedded ones)"""
    grader: str | None = None
    """score the task as train/fit_policy.py does (default: each family of the embedded prompts by its own grader)"""
    name: str = "default"
    """name of the run"""
    output: Path = Path("runs/frontier")
    """results go to OUTPUT/NAME: result.json, frontier.png, frontier.html, the texts and the timings"""
    ignore_generation_config: IgnoredSettings = ""
    device: str = "cpu"
    backend: Backend = "torch"
    """torch, or llama.cpp, which runs .gguf files as they are, on the CPU"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    seed: int = 0
    seeds: int | None = None
    """at a temperature, texts of each prompt that a loss is the mean of, at least 2 (default: 2)"""
    workers: str | None = None
    """who writes the texts, as train/fit_policy.py takes it (default: this process); it alone times"""
    drawing: Drawing = field(default_factory=SamplingOptions)
    dtypes: Dtypes = field(default_factory=DtypeOptions)
    reading: Reading = field(default_factory=PromptOptions)


@dataclass
class PaperTables(ComparisonSettings):
    """The MTAD paper's tables, with the controls that its reviewers asked for."""

    table: Literal["main", "gamma", "beta", "tau"] = "main"
    """all methods, or one setting varied: draft length, beams, threshold"""
    length: int = 4
    """longest draft of every method, in tokens"""
    beams: int = 4
    """of MTAD, and of the large model's beam search"""
    tau: float = 0.5
    """least ratio of a block's probabilities, large model over small model"""
    drawn: Annotated[bool, tyro.conf.arg(name="drawing")] = False
    """draw tokens with the paper's filters (T=1, top-k 10, top-p 0.9) instead of decoding greedily"""
    limit: int | None = None
    """prompts whose answers are compared (default: 100, or 40 where a setting is varied)"""
    timed: int | None = None
    """how many of these are timed, one by one (default: 25, or 12); 0: time is priced from calls"""
    name: str | None = None
    """name of the run (default: mtad-TABLE, mtad-TABLE-drawing)"""
