"""The settings of a generation_config: what ends or changes a text is applied, refused by name, or left out on demand.

The settings of the last model hold for the whole text, whoever writes, as its ends and stop strings do: the text is
one, and the smaller models only help to write it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from decoding.state.processors import AFTER, MOST, PROCESSORS, count_penalties
from decoding.state.sampling import Sampling
from decoding.state.text_processors import TextProcessors
from decoding.state.texts import TextFacts

REFUSED = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "watermarking_config": None,
}
"""Settings that would change every text and are not applied, with the values at which they have no effect."""
REFUSED_DRAWING = {"top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
"""Settings that would change draws, but no greedy text; likewise."""
APPLIED = {name: kind.neutral for name, kind in PROCESSORS.items()}
NEUTRAL = APPLIED | REFUSED | REFUSED_DRAWING
"""Every setting that can be left out; also part of a model's identity, and ``min_p`` with them."""
OPTION = "--ignore-generation-config"
TOP_K = 50
"""transformers' own default for a model that draws and does not set it"""


def changes(lm, known: dict = NEUTRAL, ignored: Iterable[str] = ()) -> dict:
    """The settings of ``known`` that have an effect on the model, by name. An empty list or table has none."""
    config, ignored = getattr(lm.model, "generation_config", None), set(ignored)
    found = {name: getattr(config, name, None) for name in known if name not in ignored}
    return {name: value for name, value in found.items() if value not in (None, [], {}, (), known[name])}


def ignored_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """The settings in ``names``, also as one text with commas. ValueError for a name that is none of ``NEUTRAL``."""
    names = tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in NEUTRAL:
            raise ValueError(
                f"a generation_config has no setting {name!r} that can be left out; these can: {', '.join(NEUTRAL)}"
            )
    return names


def ignore_settings(lm, names: Iterable[str]) -> None:
    """Go on without ``names`` in every text of the model; also its identity is then that of a model without them."""
    config = getattr(lm.model, "generation_config", None)
    if names and config is not None:
        lm.model.generation_config = config = copy.deepcopy(config)
        for name in names:
            setattr(config, name, NEUTRAL[name])


def check_settings(lm, greedy: bool = True, ignored: Iterable[str] = ()) -> None:
    """ValueError for a setting that is not applied, or whose value is none; those of draws only unless ``greedy``."""
    refuse_settings(lm, greedy, ignored)
    text_processors(lm, end_tokens(lm), 1, ignored=ignored)


def refuse_settings(lm, greedy: bool = True, ignored: Iterable[str] = ()) -> None:
    """ValueError for a setting that would be ignored; those of draws matter only unless ``greedy``."""
    for name, value in changes(lm, REFUSED if greedy else REFUSED | REFUSED_DRAWING, ignored).items():
        raise ValueError(
            f"the generation_config of {lm.name} sets {name}={value}, which this engine does not apply; to go on "
            f"without it, add {OPTION} {name} (in Python ignore_generation_config=({name!r},))"
        )


def text_processors(
    lm,
    eos: tuple[int, ...],
    budget: int,
    sampling: Sampling = Sampling(),
    ignored: Iterable[str] = (),
    device: torch.device | None = None,
) -> TextProcessors | None:
    """The processors of a text of at most ``budget`` tokens, of which ``lm`` is the last model; None where there are
    none. ``eos``: what ends it. ValueError for a setting whose value means nothing.
    """
    found = changes(lm, APPLIED, ignored)
    if (
        getattr(getattr(lm.model, "generation_config", None), "min_new_tokens", None) is not None
    ):  # transformers: it replaces the other
        found.pop("min_length", None)
    facts = TextFacts(lm.vocab, eos, budget, lm.device if device is None else device, "forced_bos_token_id" in found)
    built = []
    for name in PROCESSORS:
        if name in found:
            built.append(_built(lm, name, found[name], facts))
        if name == AFTER and sampling.penalises:
            built.append(count_penalties(sampling.frequency_penalty, sampling.presence_penalty, lm.vocab))
    built = [processor for processor in built if processor is not None]
    about = ", ".join(f"{name}={value}" for name, value in found.items())
    return TextProcessors(built, lm.vocab, about) if built else None


def _built(lm, name: str, value, facts: TextFacts):
    try:
        return PROCESSORS[name].build(value, facts)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"the generation_config of {lm.name} sets {name}={value!r}, which means nothing: "
            f"{' '.join(str(error).split())}"
        ) from error


def default_sampling(lm) -> Sampling:
    """How the model draws by its own generation_config, with transformers' defaults: greedy unless ``do_sample``.

    ValueError for a setting whose value means nothing.
    """
    config = getattr(lm.model, "generation_config", None)
    if not getattr(config, "do_sample", False):
        return Sampling()
    temperature, top_k, top_p, min_p = (
        getattr(config, name, None) for name in ("temperature", "top_k", "top_p", "min_p")
    )
    try:
        return Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_k=TOP_K if top_k is None else top_k or None,
            top_p=None if top_p is None or top_p >= 1 else top_p,
            min_p=min_p or None,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the generation_config of {lm.name} draws with temperature={temperature!r}, top_k={top_k!r}, "
            f"top_p={top_p!r}, min_p={min_p!r}, which means nothing: {error}"
        ) from error


def end_tokens(lm) -> tuple[int, ...]:
    """The EOS ids of the model; none where it has no EOS. ValueError for what is no id."""
    eos = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    found = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if not all(type(token) is int and 0 <= token < MOST for token in found):
        raise ValueError(f"the generation_config of {lm.name} sets eos_token_id={eos!r}; it must be ids of tokens")
    return found


def stop_strings(lm) -> tuple[str, ...]:
    """The stop strings of the model. ValueError for what is none."""
    given = getattr(getattr(lm.model, "generation_config", None), "stop_strings", None)
    found = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    if not all(isinstance(string, str) and string for string in found):
        raise ValueError(f"the generation_config of {lm.name} sets stop_strings={given!r}; it must be texts, not empty")
    return found


def ends_and_changes(lm) -> dict:
    """The settings that end or change a text. They are part of a model's identity."""
    known = NEUTRAL | {"min_p": 0.0}
    return {"eos": sorted(end_tokens(lm)), "stop_strings": sorted(stop_strings(lm))} | changes(lm, known)
