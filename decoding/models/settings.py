"""The settings of a generation_config: those that end a text are applied, others that would change it are refused."""

from __future__ import annotations

NEUTRAL = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1,
    "watermarking_config": None,
}
"""Settings that change every text, with the values at which they have no effect."""
SAMPLERS = {"min_p": 0.0, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
"""Settings that change draws, but no greedy text; likewise."""


def changes(lm, known: dict = NEUTRAL | SAMPLERS) -> dict:
    """The settings of ``known`` that have an effect on the model, by name. An empty list or table has none."""
    config = getattr(lm.model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in known}
    return {name: value for name, value in found.items() if value not in (None, [], {}, (), known[name])}


def refuse_settings(lm, greedy: bool = True) -> None:
    """ValueError for a setting that this engine would ignore; those of draws matter only unless ``greedy``."""
    known = NEUTRAL if greedy else NEUTRAL | SAMPLERS
    for name, value in changes(lm, known).items():
        raise ValueError(
            f"the generation_config of {lm.name} sets {name}={value}, which this engine does not apply; to decode "
            f"without it, set it to {known[name]} in the generation_config.json of a copy of the model, and pass that"
        )


def end_tokens(lm) -> tuple[int, ...]:
    """The EOS ids of the model; none where it has no EOS. ValueError for what is no id."""
    eos = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    found = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if not all(type(token) is int and token >= 0 for token in found):
        raise ValueError(f"the generation_config of {lm.name} sets eos_token_id={eos!r}; it must be ids of tokens")
    return found


def stop_strings(lm) -> tuple[str, ...]:
    """The stop strings of the model."""
    found = getattr(getattr(lm.model, "generation_config", None), "stop_strings", None)
    return () if found is None else (found,) if isinstance(found, str) else tuple(found)


def ends_and_changes(lm) -> dict:
    """The settings that end or change a text. They are part of a model's identity."""
    return {"eos": sorted(end_tokens(lm)), "stop_strings": sorted(stop_strings(lm))} | changes(lm)
