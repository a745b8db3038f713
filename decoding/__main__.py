"""The command line: two models write one answer, and you see who wrote what."""

from __future__ import annotations

import signal
import sys
import time
import warnings

import tyro

from decoding.cli.options import BEAMS, METHODS, Options, check_numbers, method_of, read_text

# torch and transformers take seconds to import: every function imports what it needs, so that --help need not wait.


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 written, 2 bad input (one sentence on standard error), 130 interrupted."""
    options = tyro.cli(Options, args=argv, prog="python -m decoding", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        method = method_of(options, None if options.method else role_of_policy(options).method)
        decoder, run = prepare(options, method)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return write(decoder, run, METHODS[method])


def prepare(options: Options, method: str):
    """The decoder and its run, ready to write. ValueError or OSError for whatever is wrong with the input."""
    text = read_text(options.text)
    check_numbers(options)
    load_policy(options)  # now, so that a broken file is refused before any model is loaded
    from rich.console import Console

    from decoding import Sampling
    from decoding.generation import start
    from decoding.models.defaults import load_model

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    with Console(file=sys.stderr).status("loading the models"):
        sources = {name: getattr(options, name) for name in METHODS[method]}
        how = options.device, options.dtype, options.backend
        models = [load_model(name, source, *how) for name, source in sources.items()]
    decoder = decoder_of(method, models, load_policy(options, models), options)
    ids = encode(models[-1].tokenizer, text, options.raw).to(models[-1].device)
    return decoder, start(decoder, ids, None, options.max_new_tokens, None, sampling, options.seed)


def role_of_policy(options: Options):
    """What the policy was tuned for; the draft's length, beams and tau are what the user says, if anything."""
    from policies.decoder_spec import DecoderSpec, spec_of

    policy = load_policy(options)
    # A tree that is wide and short is what pays: the target is not asked once more for what only follows one branch.
    untuned = DecoderSpec("stop", length=1) if options.method == "specinfer" else DecoderSpec("stop")
    role = untuned if policy is None else spec_of(policy.provenance)
    return role if options.length is None else role._replace(length=options.length)


def load_policy(options: Options, models=None):
    if options.policy is None:
        return None
    from policies import load

    identities = None if models is None else [lm.identity() for lm in models]
    with warnings.catch_warnings(record=True) as caught:
        policy = load(options.policy, identities, strict=not options.allow_other_models)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return policy.to(options.device)


def decoder_of(method: str, models: list, policy, options: Options):
    from decoding import Autoregressive, Backoff
    from decoding.decoders.from_spec import build_decoder
    from policies.decoder_spec import EXACT

    if method == "backoff":
        return Backoff(models, policy)
    role = role_of_policy(options)
    if method == "speculative":
        return build_decoder(models, policy, role._replace(beams=1))
    if method in BEAMS:
        beams = options.beams or (role.beams if role.beams > 1 else 4)
        tau = role.accept.get("tau", 0.5) if options.tau is None else options.tau
        accept = EXACT if method == "specinfer" else {"name": "Joint", "tau": tau, "filtered": False}
        return build_decoder(models, None, role._replace(beams=beams, accept=accept, tree=method != "mtad"))
    return Autoregressive(*models)


def encode(tokenizer, text: str, raw: bool):
    """input_ids [1, length] of the text, in the tokenizer's chat template where there is one."""
    chat = not raw and tokenizer.chat_template is not None
    if chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not chat, return_tensors="pt")["input_ids"].long()
    if not ids.numel():
        raise ValueError("the tokenizer makes no token of the text; write some text it knows")
    return ids


def write(decoder, run, names: tuple[str, ...]) -> int:
    """Write to the end, or until Ctrl-C, and say what it took."""
    import torch

    from decoding.cli.terminal import painter, show_statistics
    from decoding.generation import commits
    from decoding.state.streaming import PieceStream

    began, code = time.perf_counter(), 0
    pieces = PieceStream(painter(names), decoder.models[-1].tokenizer, 1)
    try:
        with torch.inference_mode():
            for _ in commits(decoder, run, pieces=pieces):
                pass
    except KeyboardInterrupt:
        code = 130
    seconds = time.perf_counter() - began
    print(flush=True)
    show_statistics(run, names, seconds)
    return code


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it without a traceback
    sys.exit(main())
