"""OpenVINO GenAI on the same GGUF files, which it converts once, in a process of its own."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from train.baselines.subprocess_engine import SubprocessEngine, serve

MADE = "openvino_model.xml"


class OpenVINO(SubprocessEngine):
    """Greedy decoding by OpenVINO GenAI at batch 1, with torch's number of threads and its own weight formats.

    ``large`` and ``small`` are folders that ``convert`` made. With ``small`` it speculates, under ``settings``, keys of
    its GenerationConfig (default: its own). RuntimeError when its process ends.
    """

    def __init__(self, large: Path, small: Path | None = None, settings: dict | None = None):
        import torch

        folders = [str(large), None if small is None else str(small)]
        given = {} if settings is None else settings
        super().__init__("OpenVINO", __name__, [*folders, torch.get_num_threads(), given])

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], float]:
        """(token ids, seconds inside the process)."""
        return self.ask({"prompt": list(prompt), "max_new_tokens": max_new_tokens})


def convert(gguf: str, folder: Path) -> Path:
    """``folder`` with the model of ``gguf`` converted for OpenVINO, unless it is there already."""
    import openvino_genai

    if not (folder / MADE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "model.gguf"
        link.unlink(missing_ok=True)
        os.symlink(Path(gguf).resolve(), link)
        openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
    return folder


def pipeline(large: str, small: str | None, threads: int):
    """The engine in this process, without its prompt cache, which would make repeated answers cheaper."""
    import openvino_genai

    scheduler, options = openvino_genai.SchedulerConfig(), {"INFERENCE_NUM_THREADS": threads}
    scheduler.enable_prefix_caching = False
    if small is not None:
        options["draft_model"] = openvino_genai.draft_model(small, "CPU", INFERENCE_NUM_THREADS=threads)
    return openvino_genai.LLMPipeline(large, "CPU", scheduler_config=scheduler, **options)


def answering(engine, given: dict) -> Callable[[Sequence[int], int], list[int]]:
    """Greedy answers of ``engine`` to a prompt, of at most so many tokens; ``given``: keys of its GenerationConfig."""
    import numpy as np
    import openvino

    def answer(prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        config = engine.get_generation_config()
        for name, value in given.items():
            setattr(config, name, value)
        config.max_new_tokens, config.do_sample = max_new_tokens, False
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        return engine.generate(ids, config).tokens[0]

    return answer


def main(settings: str) -> None:
    large, small, threads, given = json.loads(settings)
    answer = answering(pipeline(large, small, threads), given)
    serve(lambda request: answer(request["prompt"], request["max_new_tokens"]))


if __name__ == "__main__":
    main(sys.argv[1])
