"""llama.cpp on the same weights, in a process of its own: on CPU, it is what users compare with."""

from __future__ import annotations

import importlib.util
import json
import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path

from train.baselines.subprocess_engine import EngineEnded, SubprocessEngine, serve


class XllamacppServer(SubprocessEngine):
    """Greedy decoding of a GGUF by llama.cpp (package ``xllamacpp``), at batch 1, with torch's number of threads.

    It computes in the file's quantised format, so at near-ties its text may differ from that of the dequantised
    weights. With the GGUF of a ``draft`` it speculates with at most ``length`` tokens, fewer where the largest
    probability, renormalised over the ten largest, is below ``p_min``. Raises EngineEnded when its process has ended.
    """

    def __init__(
        self,
        gguf: str | Path,
        tokenizer,
        context: int,
        draft: str | Path | None = None,
        length: int | None = None,
        p_min: float = 0.0,
    ):
        import torch

        self.tokenizer = tokenizer
        draft = None if draft is None else str(draft)
        settings = [str(gguf), context, torch.get_num_threads(), draft, length, p_min]
        super().__init__("llama.cpp", __name__, settings)

    @staticmethod
    def available(source: str | None) -> bool:
        """True when xllamacpp is installed and the model is a GGUF file."""
        return str(source).endswith(".gguf") and importlib.util.find_spec("xllamacpp") is not None

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], float]:
        """(token ids, seconds inside the process); the reply is text, which is tokenised again."""
        request = {"prompt": list(prompt), "max_tokens": max_new_tokens, "temperature": 0.0, "cache_prompt": False}
        reply, seconds = self.ask(request)
        if not reply.get("choices"):
            raise EngineEnded(f"llama.cpp gave no answer but {reprlib.repr(reply)}; leave it out to measure without it")
        choice = reply["choices"][0]
        ids = self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        return ([*ids, self.tokenizer.eos_token_id] if choice["finish_reason"] == "stop" else ids), seconds


def server(gguf: str, context: int, threads: int, draft: str | None, length: int | None, p_min: float = 0.0):
    """A llama.cpp server in this process."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_parallel, parameters.n_ctx, parameters.verbosity = 1, context, -1
    pools = [parameters.cpuparams, parameters.cpuparams_batch]
    if draft is not None:
        kinds, drafting = xllamacpp.common_speculative_type, parameters.speculative.draft
        # Without a type the draft is loaded but never used.
        parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        drafting.mparams.path, drafting.n_max, drafting.n_min, drafting.p_min = draft, length, 0, p_min
        pools += [drafting.cpuparams, drafting.cpuparams_batch]
    for pool in pools:
        pool.n_threads = threads
    return xllamacpp.Server(parameters)


def main(settings: str) -> None:
    engine = server(*json.loads(settings))

    def answer(request: dict) -> dict:
        reply = engine.handle_completions(request)
        return json.loads(reply) if isinstance(reply, str) else reply

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
