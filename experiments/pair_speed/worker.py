"""The process of one row: loads what the row needs, answers its prompts one by one, prints a JSON line for each.

A job names the ``engine``, the ``sources`` and ``dtypes`` of [small, large], the ``setting`` or ``decoder``, the
``prompts`` as token ids, ``max_new_tokens``, ``context`` and ``threads``.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

clock = time.perf_counter
WARM = 8
"""tokens of an answer that is not timed: the first includes an engine's preparations"""


def transformers(job: dict) -> Callable:
    """``generate`` of transformers, with the small model as its assistant where a length is set."""
    from decoding import LM
    from experiments.engines_under_test.peers import Transformers, twin
    from train.data.prompts import Prompt

    def load(source: str):
        return twin(LM.load(source, "cpu", job["peer_dtype"], packed=False))

    length = job["setting"].get("length")
    large, calls = load(job["sources"][1]), []
    large.register_forward_pre_hook(lambda module, args: calls.append(1))
    engine = Transformers(large, None if length is None else load(job["sources"][0]), length)

    def answer(ids: list[int], new: int) -> dict:
        calls.clear()
        ((tokens, _),) = engine([Prompt("", "", "", "", tuple(ids), None)], new, 0)
        return {"answer": tokens, "tokens": len(tokens), "target_calls": len(calls)}

    return answer


def llama_cpp(job: dict) -> Callable:
    """llama.cpp in this process; its reply is text, and it counts its tokens itself."""
    from train.baselines.xllamacpp_server import server

    small, large = job["sources"]
    length, p_min = job["setting"].get("length"), job["setting"].get("p_min", 0.0)
    engine = server(large, job["context"], job["threads"], None if length is None else small, length, p_min)

    def answer(ids: list[int], new: int) -> dict:
        request = {"prompt": ids, "max_tokens": new, "temperature": 0.0, "cache_prompt": False}
        reply = engine.handle_completions(request)
        reply = json.loads(reply) if isinstance(reply, str) else reply
        tokens, kept = reply["usage"]["completion_tokens"], reply.get("timings", {}).get("draft_n_accepted", 0)
        return {"text": reply["choices"][0]["text"], "tokens": tokens, "target_calls": tokens - kept}

    return answer


def openvino(job: dict) -> Callable:
    """OpenVINO GenAI, which converts the files once, in processes that end before this one loads anything."""
    from experiments.engines_under_test.openvino_engine import answering, pipeline

    length = job["setting"].get("length")
    folders = []
    for source in job["sources"] if length is not None else job["sources"][1:]:
        folder = Path(job["converted"]) / Path(source).stem
        code = "import sys; from experiments.engines_under_test.openvino_engine import convert; "
        code += "from pathlib import Path; convert(sys.argv[1], Path(sys.argv[2]))"
        subprocess.run([sys.executable, "-P", "-c", code, source, str(folder)], check=True, stdout=sys.stderr)
        folders.append(str(folder))
    engine = pipeline(folders[-1], None if length is None else folders[0], job["threads"])
    written = answering(engine, {} if length is None else {"num_assistant_tokens": length})

    def answer(ids: list[int], new: int) -> dict:
        tokens = list(written(ids, new))
        return {"answer": tokens, "tokens": len(tokens), "target_calls": None}

    return answer


def ours(job: dict) -> Callable:
    """A decoder of this engine."""
    import torch

    from decoding import generate
    from decoding.cli.generation_config import without
    from decoding.decoders.registry import build_decoder, decoder_kind
    from decoding.models.defaults import load_model
    from policies import load
    from policies.decoder_spec import DecoderSpec

    decoder = job["decoder"]
    pair = dict(zip(("small", "large"), zip(job["sources"], job["dtypes"], strict=True), strict=True))
    roles = decoder_kind(decoder["name"]).models
    models = [load_model(role, pair[role][0], "cpu", pair[role][1]) for role in roles]
    without(models, job["ignored"])
    policy = decoder["policy"] and load(decoder["policy"], [lm.identity() for lm in models])
    built = build_decoder(models, policy, DecoderSpec(decoder["name"], decoder["settings"]))
    about = {"dtype": ", ".join(lm.dtype for lm in models)}

    def answer(ids: list[int], new: int) -> dict:
        result = generate(built, torch.tensor([ids]), max_new_tokens=new, seed=0)
        tokens = result.sequences[0, len(ids) :][: int(result.lengths[0])].tolist()
        return {"answer": tokens, "tokens": len(tokens), "target_calls": int(result.counts["calls"][-1])} | about

    return answer


def judge(job: dict) -> Callable:
    """Guarded regret of ``job["answers"]`` against ``job["references"]``, under our large model."""
    from decoding.cli.generation_config import without
    from decoding.models.defaults import load_model
    from decoding.models.settings import end_tokens
    from train.quality.guarded_regret import guarded_regret, score
    from train.quality.loops import token_forms

    large = load_model("large", job["sources"][1], "cpu", job["dtypes"][1])
    without([large], job["ignored"])
    forms, eos, texts = token_forms(large.tokenizer), end_tokens(large), zip(job["answers"], job["references"])  # noqa: B905

    def answer(ids: list[int], new: int) -> dict:
        written, reference = next(texts)
        (scored,) = score(large, [ids], [written], new)
        return {"loss": guarded_regret(scored, written, reference, eos, forms)}

    return answer


ENGINES = {
    "transformers": transformers,
    "llama.cpp": llama_cpp,
    "openvino": openvino,
    "ours": ours,
    "judge": judge,
}


def peak_bytes() -> int:
    """The most memory that this process has held, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere the figure may hold what the parent had when it forked
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(path: str) -> None:
    job = json.loads(Path(path).read_bytes())
    began = clock()
    if job["engine"] not in ("llama.cpp", "openvino"):  # which need no torch
        from decoding.cli.options import use

        use("cpu", job["threads"])
    answer = ENGINES[job["engine"]](job)
    loaded = clock() - began
    if job["engine"] != "judge":
        answer(job["prompts"][0], min(WARM, job["max_new_tokens"]))
    for ids in job["prompts"]:
        start = clock()
        reply = answer(ids, job["max_new_tokens"])
        reply |= {"seconds": clock() - start, "load_seconds": loaded, "peak_bytes": peak_bytes()}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
