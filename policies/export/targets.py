"""The registry of targets: a new one is a file in ``engines`` with a ``TARGET``, and its name here."""

from __future__ import annotations

from pkgutil import resolve_name

from policies.export.target import Target

ENGINES = (
    *("portable_json", "numpy_module", "onnx_graph"),
    *("transformers_generate", "transformers_config"),
    *("llama_cpp", "llama_cpp_python"),
    *("openvino_genai", "mlx_lm", "ort_genai"),
    *("vllm_config", "vllm_proposer", "sglang_config", "tensorrt_llm"),
)
_FOUND: list[Target] = [resolve_name(f"policies.export.engines.{name}:TARGET") for name in ENGINES]
TARGETS = {target.name: target for target in _FOUND}
