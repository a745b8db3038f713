"""The registry of targets: a new one is a file with a ``TARGET`` and a line here."""

from __future__ import annotations

from types import ModuleType

from policies.export.engines import (
    llama_cpp,
    llama_cpp_python,
    mlx_lm,
    numpy_module,
    onnx_graph,
    openvino_genai,
    ort_genai,
    portable_json,
    sglang_config,
    tensorrt_llm,
    transformers_config,
    transformers_generate,
    vllm_config,
    vllm_proposer,
)
from policies.export.target import Target

MODULES: tuple[ModuleType, ...] = (
    portable_json,
    numpy_module,
    onnx_graph,
    transformers_generate,
    transformers_config,
    llama_cpp,
    llama_cpp_python,
    openvino_genai,
    mlx_lm,
    ort_genai,
    vllm_config,
    vllm_proposer,
    sglang_config,
    tensorrt_llm,
)
TARGETS: dict[str, Target] = {module.TARGET.name: module.TARGET for module in MODULES}
