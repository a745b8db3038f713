"""The options of the command line, and the checks that need no model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, make_dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from decoding.cli.dtypes import DtypeOptions, Dtypes
from decoding.cli.generation_config import IgnoredSettings, check_ignored
from decoding.cli.numbers import check_numbers
from decoding.cli.sampling import Drawing, SamplingOptions
from decoding.decoders.registry import DECODERS, Setting, decoder_kind

LONGEST_TEXT = 2**24
"""bytes of a prompt"""
Backend = Annotated[str, arg(metavar="{torch,llama.cpp}")]
Model = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")]


@dataclass(kw_only=True)
class ModelOptions:
    """The options of every command that decodes: which decoder, which models, how tokens are drawn."""

    policy: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """policy.json, as train/fit_policy.py writes it; it names the decoder it was tuned for, and its settings"""
    method: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint="")] = None
    """one of the methods above (default: the one that the policy was tuned for, else speculative)"""
    small: Model = None
    """the small model (default: the drafter of this package)"""
    large: Model = None
    """the large model, of the same tokenizer (default: SmolLM2-135M-Instruct)"""
    allow_other_models: bool = False
    """accept a policy that was tuned on other models of this tokenizer; its certificate does not hold for these"""
    drawing: Drawing = field(default_factory=SamplingOptions)
    ignore_generation_config: IgnoredSettings = ""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps ..."""
    backend: Annotated[
        str | None, arg(metavar="{torch,llama.cpp}", help_behavior_hint="(default: as tuned, else torch)")
    ] = None
    """torch, or llama.cpp, which runs .gguf files unconverted, on the CPU"""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch chooses)")] = None
    """CPU threads"""
    graphs: bool = True
    """on CUDA, record tokens as graphs: the first text of each size takes longer, the others less"""
    dtypes: Dtypes = field(default_factory=DtypeOptions)

    def check(self) -> None:
        """ValueError, one sentence, for what is wrong without any model."""
        check_numbers(self)
        self.dtypes.check()
        check_ignored(self.ignore_generation_config)
        self.drawing.check()


@dataclass(kw_only=True)
class Options(ModelOptions):
    """Let a small and a large model write one answer together, and see which model wrote each token.

    The answer goes to standard output (green: by the small model; black on yellow: by the large one), then one line
    of statistics to standard error. MODEL is a folder, a .gguf file or a hub id (owner/name).
    """

    text: Annotated[str, tyro.conf.Positional, arg(metavar="TEXT", help_behavior_hint="")]
    """the prompt; - reads standard input, without its last newline"""
    raw: bool = False
    """continue the text without the large model's chat template"""
    chat_template_kwargs: Annotated[str, arg(metavar="JSON", help_behavior_hint="")] = "{}"
    """what else the chat template is told: '{"enable_thinking": false}'"""
    max_new_tokens: int = 256
    """most tokens of the answer"""
    frequency_penalty: float = 0.0
    """lowers a token's logit by this for every time that the answer has it, as OpenAI's servers do"""
    presence_penalty: float = 0.0
    """lowers a token's logit by this if the answer has it"""
    seed: int = 0
    """of the draws: the same seed gives the same answer"""


def parse(argv: list[str] | None, kind: type[Any] = Options, prog: str = "python -m decoding") -> Any:
    """The options ``kind`` in ``argv``; every setting of a decoder that has a help text is one, None if left out."""
    fields = [(name, _option(users), field(default=None, kw_only=True)) for name, users in readers().items()]
    methods = [f"    {name:<12} {decoder.about}" for name, decoder in DECODERS.items()]
    return tyro.cli(
        make_dataclass(kind.__name__, fields, bases=(kind,)),
        args=argv,
        prog=prog,
        description="\n".join([cleandoc(kind.__doc__), "", "Methods:", *methods]),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def readers() -> dict[str, dict[str, Setting]]:
    """The settings that are options, each with the decoders that read it."""
    found: dict[str, dict[str, Setting]] = {}
    for name, kind in DECODERS.items():
        for key, setting in kind.settings.items():
            if setting.help is not None:
                found.setdefault(key, {})[name] = setting
    return found


def _option(users: dict[str, Setting]) -> Any:
    """The type of a setting's option; its help names the decoders whose default differs from that of the first."""
    first, *_ = users.values()
    others = [f"{name} {own.default}" for name, own in users.items() if own.default != first.default]
    hint = f"(default: as tuned, else {'; '.join([str(first.default), *others])})"
    kind = type(first.default)
    return Annotated[kind | None, arg(metavar=kind.__name__.upper(), help=first.help, help_behavior_hint=hint)]


def settings_of(options: ModelOptions, method: str) -> dict[str, Any]:
    """The settings that the user gives. ValueError for a setting that ``method`` does not have, or a wrong value."""
    known = readers()
    given = {name: value for name in known if (value := getattr(options, name)) is not None}
    for name, value in given.items():
        users, flag = known[name], f"--{name.replace('_', '-')}"
        if method not in users:
            raise ValueError(f"leave out {flag}: {method} has no such setting; it is one of {', '.join(users)}")
        users[method].check(flag, value)
    return given


def check_policy(options: ModelOptions, method: str) -> None:
    """ValueError if ``method`` needs a policy and there is none, or there is one that it does not ask."""
    if decoder_kind(method).policy == "needed" and options.policy is None:
        raise ValueError(f"{method} needs a policy; pass --policy FILE, as train/fit_policy.py writes it")
    if decoder_kind(method).policy is None and options.policy is not None:
        raise ValueError(f"{method} asks no policy; leave out --policy or --method")


def read_text(text: str) -> str:
    """The prompt. ValueError if it is empty, not UTF-8, or endless, such as standard input from /dev/zero."""
    try:
        if text == "-":
            given = b"" if sys.stdin is None else sys.stdin.buffer.read(LONGEST_TEXT + 1)  # None: it was closed
            if len(given) > LONGEST_TEXT:
                raise ValueError(f"standard input has over {LONGEST_TEXT:,} bytes; no model reads as long a prompt")
            text = given.decode().removesuffix("\n")
        text.encode()  # an argument that was not UTF-8 comes with lone surrogates
    except UnicodeError as error:
        raise ValueError("the text is not UTF-8; convert it first") from error
    if not text.strip():
        raise ValueError("the text is empty; write a prompt, or pass - and pipe it in")
    return text


def use(device: str, threads: int | None) -> None:
    """Set the number of CPU threads. ValueError if it is below 1, or if this machine has no such device."""
    import torch

    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, not {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device).item()  # a number of it is read: "meta" has none
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(f"no device {device!r} here: {str(error).splitlines()[0]}") from error
