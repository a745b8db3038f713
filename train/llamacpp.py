"""llama.cpp on the same weights, as a row of the table: on CPU, users will compare."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch


class LlamaCpp:
    """Greedy decoding of a GGUF by llama.cpp (package ``xllamacpp``), at batch 1, with torch's number of threads.

    It computes in the file's own quantised format, so at near-ties it may write another text than the dequantised
    weights do. With the GGUF of a ``draft`` it speculates, always with ``length`` tokens.
    """

    def __init__(
        self, gguf: str | Path, tokenizer, context: int, draft: str | Path | None = None, length: int | None = None
    ):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_parallel, parameters.n_ctx, parameters.verbosity = 1, context, -1
        pools = [parameters.cpuparams, parameters.cpuparams_batch]
        if draft is not None:
            kinds, drafting = xllamacpp.common_speculative_type, parameters.speculative.draft
            # Without a type a draft is loaded and never asked.
            parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            drafting.mparams.path, drafting.n_max, drafting.n_min, drafting.p_min = str(draft), length, 0, 0.0
            pools += [drafting.cpuparams, drafting.cpuparams_batch]
        for pool in pools:
            pool.n_threads = torch.get_num_threads()
        self.server, self.tokenizer = xllamacpp.Server(parameters), tokenizer

    @staticmethod
    def available(source: str | None) -> bool:
        """True when xllamacpp is installed and the model is a GGUF file."""
        return str(source).endswith(".gguf") and importlib.util.find_spec("xllamacpp") is not None

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], float]:
        """(token ids, seconds); the text comes back as text and is tokenised again."""
        request = {"prompt": list(prompt), "max_tokens": max_new_tokens, "temperature": 0.0, "cache_prompt": False}
        began = time.perf_counter()
        reply = self.server.handle_completions(request)
        seconds = time.perf_counter() - began
        reply = json.loads(reply) if isinstance(reply, str) else reply
        choice = reply["choices"][0]
        ids = self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        return ([*ids, self.tokenizer.eos_token_id] if choice["finish_reason"] == "stop" else ids), seconds
