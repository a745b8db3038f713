"""The decoders and engines whose speed is compared, by a short name: NAME or NAME:NUMBER."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from decoding import LM, Autoregressive, Backoff, PromptLookup, Speculative
from decoding.decoders.registry import DECODERS, build_decoder
from decoding.models.defaults import load_model
from experiments.engines_under_test.peers import Transformers, one_by_one, twin
from policies import Random
from policies.decoder_spec import DecoderSpec
from train.baselines.xllamacpp_server import XllamacppServer
from train.common.generations import write


@dataclass
class Models:
    """The pair, its files, and the context that the longest text needs."""

    small: LM
    large: LM
    files: tuple[str | None, str | None] = (None, None)
    """the sources of the small and the large model"""
    context: int = 0

    @cached_property
    def twins(self) -> tuple:
        """(small, large) as transformers runs them."""
        return twin(self.small), twin(self.large)

    @cached_property
    def ggufs(self) -> list[LM]:
        """[small, large] in our engine on llama.cpp."""
        return [load_model(*role, backend="llama.cpp") for role in zip(("small", "large"), self.files, strict=True)]

    @property
    def lms(self) -> dict[str, LM]:
        return {"small": self.small, "large": self.large}

    @property
    def modules(self) -> dict:
        """Every module whose forwards are measured, by name."""
        ours = {name: lm.model for name, lm in self.lms.items()}
        return ours | dict(zip(("small twin", "large twin"), self.twins, strict=True))


@dataclass(frozen=True)
class Kind:
    """A method, built from Models and its number."""

    build: Callable[..., Callable]
    number: type | None = None
    one_row: bool = False
    """whether it takes no batches"""
    lacks: Callable[[Models], str | None] = field(default=lambda models: None)
    """the reason why it cannot run here, if there is one"""


def ours(decoder) -> Callable:
    """A decoder of this engine, called as the peers are."""
    return lambda prompts, new, seed: write(decoder, prompts, new, seed=seed)


def _drafting(name: str, setting: str = "length") -> Kind:
    """The decoder ``name`` of the registry; its ``setting`` is the number."""
    build = lambda m, n: ours(build_decoder([m.small, m.large], None, DecoderSpec(name, {setting: n})))  # noqa: E731
    return Kind(build, int, **({"lacks": _no_trees} if "beams" in DECODERS[name].settings else {}))


def _no_trees(m: Models) -> str | None:
    refusing = [lm for lm in (m.small, m.large) if lm.chains_only]
    return f"{refusing[0].name} {refusing[0].chains_only} and cannot read a tree" if refusing else None


def _backoff(m: Models, rate: float) -> Callable:
    # Only the rate is measured: without verify_eos no EOS of the small model escalates.
    return ours(Backoff([m.small, m.large], Random(rate).to(m.large.device), verify_eos=False))


def _llamacpp(m: Models, length: int | None = None) -> Callable:
    draft = None if length is None else m.files[0]
    return one_by_one(XllamacppServer(m.files[1], m.large.tokenizer, m.context, draft, length))


def _no_llamacpp(m: Models, draft: bool) -> str | None:
    if m.large.device.type != "cpu":
        return "it is measured on the CPU only"
    for file in m.files if draft else m.files[1:]:
        if not XllamacppServer.available(file):
            return f"it needs the package xllamacpp and a .gguf file, which {file} is not or which is not installed"
    return None


def _no_backend(m: Models) -> str | None:
    if m.large.device.type != "cpu":
        return "it is measured on the CPU only"
    if importlib.util.find_spec("xllamacpp") is None or not all(str(file).endswith(".gguf") for file in m.files):
        return "it needs the package xllamacpp and two .gguf files"
    return None


KINDS: dict[str, Kind] = {
    "transformers": Kind(lambda m: Transformers(m.twins[1])),
    "transformers-assisted": Kind(lambda m, n: Transformers(m.twins[1], m.twins[0], n), int, one_row=True),
    "transformers-lookup": Kind(lambda m, n: Transformers(m.twins[1], prompt_lookup_num_tokens=n), int, one_row=True),
    "autoregressive": Kind(lambda m: ours(Autoregressive(m.large))),
    **{name: _drafting(name) for name, kind in DECODERS.items() if "length" in kind.settings},
    "specinfer": _drafting("specinfer", "beams"),
    "lookup": Kind(lambda m, n: ours(Speculative([PromptLookup(3), m.large], n)), int),
    "backoff": Kind(_backoff, float),
    "llamacpp": Kind(_llamacpp, one_row=True, lacks=lambda m: _no_llamacpp(m, draft=False)),
    "llamacpp-draft": Kind(_llamacpp, int, one_row=True, lacks=lambda m: _no_llamacpp(m, draft=True)),
    "llamacpp-autoregressive": Kind(lambda m: ours(Autoregressive(m.ggufs[1])), lacks=_no_backend),
    "llamacpp-speculative": Kind(lambda m, n: ours(Speculative(m.ggufs, n)), int, lacks=_no_backend),
    "llamacpp-backoff": Kind(
        lambda m, rate: ours(Backoff(m.ggufs, Random(rate), verify_eos=False)), float, lacks=_no_backend
    ),
}
"""Every method by name; those on another engine's forwards begin with its name."""


def parse(text: str) -> tuple[Kind, int | float | None]:
    """The kind and the number that ``text`` names. ValueError, one sentence, for anything else."""
    name, colon, number = text.partition(":")
    if name not in KINDS:
        raise ValueError(f"unknown method {text!r}; the known ones are {', '.join(KINDS)}")
    kind = KINDS[name]
    if kind.number is None:
        if colon:
            raise ValueError(f"method {name} takes no number, not {text!r}")
        return kind, None
    right = "the share that escalates, such as 0.5" if kind.number is float else "a number of drafted tokens, such as 4"
    try:
        value = kind.number(number)
    except ValueError:
        value = -1
    if not (0 <= value <= 1 if kind.number is float else 1 <= value <= 64):
        raise ValueError(f"method {text!r} must be {name}: and {right}")
    return kind, value


def build(text: str, models: Models) -> Callable:
    """The method that ``text`` names; ``(prompts, new, seed)`` returns (tokens, writers) of each answer."""
    kind, number = parse(text)
    return kind.build(models) if number is None else kind.build(models, number)


def runnable(methods: Sequence[str], models: Models) -> tuple[list[str], dict[str, str]]:
    """The methods that can run here, and the reasons why the others cannot."""
    lacking = {text: parse(text)[0].lacks(models) for text in methods}
    return [text for text, why in lacking.items() if why is None], {t: why for t, why in lacking.items() if why}


def file_bytes(text: str, models: Models) -> int | None:
    """Bytes of the weights of a method that reads the large model's file itself; None for the others."""
    return Path(models.files[1]).stat().st_size if text.startswith("llamacpp") else None
