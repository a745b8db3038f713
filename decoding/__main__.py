"""The command line: a small and a large model write one answer, and it shows which model wrote each token."""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import signal
import sys
import time
import warnings
from dataclasses import replace

from decoding.cli.dtypes import DtypeOptions, weights_line
from decoding.cli.ending import ending, mendable
from decoding.cli.generation_config import check_ignored, own_sampling, without
from decoding.cli.numbers import check_numbers
from decoding.cli.options import Options, check_policy, parse, read_text, settings_of, use
from decoding.cli.sampling import described, tuned_sampling
from decoding.cli.terminal import visible
from decoding.decoders.registry import build_decoder, decoder_kind
from decoding.models.chat import TemplateError, parse_extra, render

# torch and transformers take seconds to import, so every function imports them itself and --help does not wait.


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 written, 2 bad input or NaN of a model (one sentence on standard error), 130 interrupted."""
    return ending("error", lambda: write(*prepare(parse(argv))), mendable)


def prepare(options: Options):
    """The decoder, its state and its models' names. ValueError or OSError for whatever is wrong with the input."""
    check_numbers(options)
    text = read_text(options.text)
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}")
    options.dtypes.check()
    check_ignored(options.ignore_generation_config)
    options.drawing.check()
    check_penalties(options)
    use(options.device, options.threads)
    extra = parse_extra(options.chat_template_kwargs)
    spec = spec_for(options)  # before the models are loaded: a broken policy is refused at once
    from rich.console import Console

    from decoding.generation import start
    from decoding.models.defaults import load_model

    names = decoder_kind(spec.name).models
    with Console(file=sys.stderr).status("loading the models"):
        dtypes, backend = as_tuned(options)
        models = [load_model(name, getattr(options, name), options.device, dtypes.of(name), backend) for name in names]
    without(models, options.ignore_generation_config)
    policy = load_policy(options, models)
    sampling = sampling_of(options, models[-1], policy)
    if options.drawing.temperature != "model" and (own := own_sampling(models[-1])):
        print(f"{names[-1]} is made to draw with {own}; --temperature model does so", file=sys.stderr)
    decoder = build_decoder(models, policy, spec)
    ids = encode(models[-1].tokenizer, text, options.raw, extra).to(models[-1].device)
    state = start(decoder, ids, None, options.max_new_tokens, None, sampling, options.seed)
    print(weights_line(names, models), file=sys.stderr)
    return decoder, state, names


def sampling_of(options: Options, lm, policy):
    """The sampling that the options ask for, by default that of ``policy``; a warning where it differs from that."""
    tuned = None if policy is None else tuned_sampling(policy.provenance)
    found = options.drawing.sampling(lm, tuned)
    if tuned not in (None, found) and not tuned.greedy:
        print(f"warning: the policy was tuned for texts drawn with {described(tuned)}", file=sys.stderr)
    return replace(found, **penalties(options))


def check_penalties(options: Options) -> None:
    """ValueError for a penalty out of bounds, before the models are loaded."""
    from decoding import Sampling

    Sampling(**penalties(options))


def penalties(options: Options) -> dict[str, float]:
    """The settings of a Sampling that only this command has."""
    return {name: getattr(options, name) for name in ("frequency_penalty", "presence_penalty")}


def spec_for(options: Options):
    """The decoder with all its settings: as the user says, else as the policy was tuned, else the defaults."""
    from policies.decoder_spec import DecoderSpec, spec_of

    if options.method is not None:
        check_policy(options, options.method)
    policy = load_policy(options)
    tuned = DecoderSpec("speculative") if policy is None else spec_of(policy.provenance)
    name = tuned.name if options.method is None else options.method
    kind = decoder_kind(name)
    # Another decoder than the tuned one keeps the settings that both have.
    kept = {key: value for key, value in tuned.settings.items() if key in kind.settings or name == tuned.name}
    return DecoderSpec(name, kind.checked(kept | settings_of(options, name)))


def as_tuned(options: Options) -> tuple[DtypeOptions, str]:
    """Dtypes and backend of the models: as the user says, else those that the policy was tuned on, else auto, torch."""
    tuned = [] if options.policy is None else [known.get("dtype") for known in load_policy(options).models]
    backend = options.backend or ("llama.cpp" if tuned and set(tuned) == {"gguf"} else "torch")
    return (options.dtypes.resolved(tuned) if len(tuned) == 2 else options.dtypes), backend


def load_policy(options: Options, models=None):
    """The policy, if there is one; warnings go to standard error. PolicyError if it does not fit ``models``."""
    if options.policy is None:
        return None
    from policies import load

    identities = None if models is None else [lm.identity() for lm in models]
    with warnings.catch_warnings(record=True) as caught:
        policy = load(options.policy, identities, strict=not options.allow_other_models)
    for warning in caught:
        print(f"warning: {visible(str(warning.message))}", file=sys.stderr)
    return policy.to(options.device)


def encode(tokenizer, text: str, raw: bool, extra: dict | None = None):
    """input_ids [1, length] of the text, in the tokenizer's chat template where there is one.

    extra: what else the template is told. ValueError where it refuses, or the text has no token.
    """
    chat = not raw and tokenizer.chat_template is not None
    if chat:
        try:
            text = render(tokenizer, [{"role": "user", "content": text}], extra=extra)
        except TemplateError as error:
            raise ValueError(f"{error}; or leave the template out with --raw") from error
    ids = tokenizer(text, add_special_tokens=not chat, return_tensors="pt")["input_ids"].long()
    if not ids.numel():
        raise ValueError("the tokenizer makes no token of the text; write some text it knows")
    return ids


def write(decoder, state, names: tuple[str, ...]) -> int:
    """Write to the end or until Ctrl-C, then print the statistics."""
    import torch

    from decoding.cli.terminal import painter, show_statistics
    from decoding.generation import commits, stops_of
    from decoding.state.streaming import PieceStream

    began, code = time.perf_counter(), 0
    pieces = PieceStream(painter(names), decoder.models[-1].tokenizer, 1)
    try:
        with torch.inference_mode():
            for _ in commits(decoder, state, stops_of(decoder), pieces):
                pass
    except KeyboardInterrupt:
        code = 130
    seconds = time.perf_counter() - began
    print(flush=True)
    show_statistics(state, names, seconds)
    return code


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it without a traceback
    sys.exit(main())
