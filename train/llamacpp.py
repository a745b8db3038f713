"""llama.cpp on the same weights, as a row of the table: on CPU, users will compare.

It runs in a process of its own. In ours its threads, though idle, count against the cores that OpenMP believes it has;
torch's threads then sleep at every barrier instead of waiting awake, and everything else took 25 % longer.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class LlamaCpp:
    """Greedy decoding of a GGUF by llama.cpp (package ``xllamacpp``), at batch 1, with torch's number of threads.

    It computes in the file's own quantised format, so at near-ties it may write another text than the dequantised
    weights do. With the GGUF of a ``draft`` it speculates, always with ``length`` tokens. Raises RuntimeError when its
    process ends.
    """

    def __init__(
        self, gguf: str | Path, tokenizer, context: int, draft: str | Path | None = None, length: int | None = None
    ):
        import torch

        self.tokenizer = tokenizer
        draft = None if draft is None else str(draft)
        settings = [str(gguf), context, torch.get_num_threads(), draft, length]
        command = [sys.executable, "-m", __name__, json.dumps(settings)]
        # Ctrl-C is ours to handle; at the end of its input the process leaves.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    @staticmethod
    def available(source: str | None) -> bool:
        """True when xllamacpp is installed and the model is a GGUF file."""
        return str(source).endswith(".gguf") and importlib.util.find_spec("xllamacpp") is not None

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], float]:
        """(token ids, seconds inside its process); the text comes back as text and is tokenised again."""
        request = {"prompt": list(prompt), "max_tokens": max_new_tokens, "temperature": 0.0, "cache_prompt": False}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply, seconds = json.loads(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError("llama.cpp's process has ended; leave xllamacpp out to measure without it") from error
        choice = reply["choices"][0]
        ids = self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        return ([*ids, self.tokenizer.eos_token_id] if choice["finish_reason"] == "stop" else ids), seconds


def server(gguf: str, context: int, threads: int, draft: str | None, length: int | None):
    """A llama.cpp server in this process."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_parallel, parameters.n_ctx, parameters.verbosity = 1, context, -1
    pools = [parameters.cpuparams, parameters.cpuparams_batch]
    if draft is not None:
        kinds, drafting = xllamacpp.common_speculative_type, parameters.speculative.draft
        # Without a type a draft is loaded and never asked.
        parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        drafting.mparams.path, drafting.n_max, drafting.n_min, drafting.p_min = draft, length, 0, 0.0
        pools += [drafting.cpuparams, drafting.cpuparams_batch]
    for pool in pools:
        pool.n_threads = threads
    return xllamacpp.Server(parameters)


def serve(settings: str) -> None:
    """Answer requests, a line of JSON each, with lines of [reply, seconds]."""
    engine = server(*json.loads(settings))
    for line in sys.stdin:
        began = time.perf_counter()
        reply = engine.handle_completions(json.loads(line))
        seconds = time.perf_counter() - began
        print(json.dumps([json.loads(reply) if isinstance(reply, str) else reply, seconds]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
