"""The command line: a small and a large model write one answer, and it shows which model wrote each token."""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import sys
import time
from dataclasses import replace

from decoding.cli.dtypes import weights_line
from decoding.cli.ending import ending, mendable
from decoding.cli.generation_config import own_sampling
from decoding.cli.options import Options, parse, read_text, use
from decoding.cli.tuned import load, sampling_of
from decoding.models.chat import TemplateError, parse_extra, render

# torch and transformers take seconds to import, so every function imports them itself and --help does not wait.


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 written, 2 bad input or NaN of a model (one sentence on standard error), 130 interrupted."""
    return ending("error", lambda: write(*prepare(parse(argv))), mendable)


def prepare(options: Options):
    """The decoder, its state and its models' names. ValueError or OSError for whatever is wrong with the input."""
    options.check()
    text = read_text(options.text)
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}")
    check_penalties(options)
    use(options.device, options.threads)
    extra = parse_extra(options.chat_template_kwargs)
    found = load(options)
    from decoding.generation import start

    large = found.models[-1]
    sampling = replace(sampling_of(options, large, found.policy), **penalties(options))
    if options.drawing.temperature != "model" and (own := own_sampling(large)):
        print(f"{found.names[-1]} is made to draw with {own}; --temperature model does so", file=sys.stderr)
    decoder = found.decoder()
    ids = encode(large.tokenizer, text, options.raw, extra).to(large.device)
    state = start(decoder, ids, None, options.max_new_tokens, None, sampling, options.seed)
    print(weights_line(found.names, found.models), file=sys.stderr)
    return decoder, state, found.names


def check_penalties(options: Options) -> None:
    """ValueError for a penalty out of bounds, before the models are loaded."""
    from decoding import Sampling

    Sampling(**penalties(options))


def penalties(options: Options) -> dict[str, float]:
    """The settings of a Sampling that only this command has."""
    return {name: getattr(options, name) for name in ("frequency_penalty", "presence_penalty")}


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
    sys.exit(main())
