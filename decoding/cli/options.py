"""What the command line can be told, and what of it is refused before any model is loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

METHODS = {
    "backoff": ("small", "large"),
    "speculative": ("small", "large"),
    "mtad": ("small", "large"),
    "mmtad": ("small", "large"),
    "specinfer": ("small", "large"),
    "large": ("large",),
    "small": ("small",),
}
"""Who writes, cheapest first."""
BEAMS = ("mtad", "mmtad", "specinfer")
READERS = {"tau": ("mtad", "mmtad"), "beams": BEAMS, "length": ("speculative", *BEAMS)}
"""The methods that each of these settings is for."""
Backend = Annotated[str, arg(metavar="{torch,llama.cpp}")]
Model = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")]


@dataclass
class Options:
    """Let a small and a large model write one answer together, and see who wrote what.

    Backoff: at every token a policy decides whether the small model may write it or the large one must.

    Speculative: the small model drafts a few tokens and the large one checks them all in one call; the answer is the
    large model's own, only sooner.

    MTAD: as speculative, but the small model drafts by beams and the large one keeps what is likely as a whole; the
    answer is neither model's own. MMTAD: the large model reads all beams, not only the best of them. SpecInfer: it
    reads several drafts that differ from their first token on, and the answer is its own.

    The answer goes to standard output (green: by the small model; black on yellow: by the large one), then one line
    of statistics to standard error. MODEL is a folder, a .gguf file or a hub id (owner/name).
    """

    text: Annotated[str, tyro.conf.Positional, arg(metavar="TEXT", help_behavior_hint="")]
    """what to answer; - reads standard input, without its last newline"""
    policy: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """policy.json, as train/fit_policy.py writes it; one that was tuned with --method speculative or hybrid, or is used
    with --method speculative here, says where to stop a draft, and how much of it is good enough"""
    method: Annotated[str | None, arg(metavar="{" + ",".join(METHODS) + "}", help_behavior_hint="")] = None
    """large and small write alone (default: what the policy was tuned for, else speculative)"""
    length: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as tuned, else 4; specinfer 1)")] = (
        None
    )
    """tokens that are drafted at most before the large model checks them"""
    beams: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as tuned, else 4)")] = None
    """continuations that mtad, mmtad and specinfer draft at once"""
    tau: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as tuned, else 0.5)")] = None
    """how likely a block by mtad or mmtad must be to the large model, in units of what the small one gave it; 0 keeps
    all"""
    small: Model = None
    """the cheap model (default: the drafter of this package)"""
    large: Model = None
    """the good model, of the same tokenizer (default: SmolLM2-135M-Instruct)"""
    allow_other_models: bool = False
    """take a policy that was tuned on other models of this tokenizer; it then promises nothing"""
    raw: bool = False
    """continue the text as it is, without the large model's chat template"""
    max_new_tokens: int = 256
    """the answer is cut after this many"""
    temperature: float = 0.0
    """0 takes the likeliest token, 1 draws from the model's own distribution, more is wilder"""
    top_k: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """draw only from this many likeliest tokens"""
    top_p: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: all)")] = None
    """draw only from the likeliest tokens that together have this probability"""
    min_p: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: all)")] = None
    """draw only from tokens at least this likely, in units of the likeliest"""
    seed: int = 0
    """the same seed draws the same answer"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps ..."""
    dtype: str = "float32"
    """of the weights in torch: float32, bfloat16 or float16"""
    backend: Backend = "torch"
    """torch, or llama.cpp, which runs .gguf files as they are: on CPU it is faster"""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch chooses)")] = None
    """CPU threads"""


def method_of(options: Options, tuned: str | None = None) -> str:
    """What the user says, else what the policy was ``tuned`` for."""
    method = tuned if options.method is None else options.method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; the known ones are {', '.join(METHODS)}")
    if method == "backoff" and options.policy is None:
        raise ValueError("backoff needs a policy; pass --policy FILE, as train/fit_policy.py writes it")
    if len(METHODS[method]) == 1 and options.policy is not None:
        raise ValueError(f"{method} writes alone and asks no policy; leave out --policy or --method")
    if options.method in BEAMS and options.policy is not None:
        raise ValueError(f"{method} asks no policy; leave out --policy or --method")
    for name, users in READERS.items():
        if getattr(options, name) is not None and method not in users:
            raise ValueError(f"leave out --{name}: {method} reads none, only {' and '.join(users)} do")
    return method


def read_text(text: str) -> str:
    try:
        if text == "-":
            text = sys.stdin.buffer.read().decode().removesuffix("\n")
        text.encode()  # an argument that was not UTF-8 comes with lone surrogates
    except UnicodeError as error:
        raise ValueError("the text is not UTF-8; convert it first") from error
    if not text.strip():
        raise ValueError("the text is empty; write what to answer, or pass - and pipe it in")
    return text


def check_numbers(options: Options) -> None:
    for name in ("length", "beams", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if options.tau is not None and not options.tau >= 0:
        raise ValueError(f"--tau must be at least 0, not {options.tau}")
    use(options.device, options.threads)


def use(device: str, threads: int | None) -> None:
    """Set the number of CPU threads; ValueError when it is none or the device is not here."""
    import torch

    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, not {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(f"no device {device!r} here: {str(error).splitlines()[0]}") from error
