"""Tiny random models as GGUF files of the architectures that llama.cpp's converters write."""

from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tiny_models import build
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.pytorch_utils import Conv1D

ARCHITECTURES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
"""Names in files, where they are not transformers' own."""


def write_gguf(path: Path, kind: str, types: tuple[str, ...] = ("F32",), layers: int = 3, **changes) -> None:
    """Random weights in ``path``, for a reader to make of them what it does; matrices are of ``types`` in turn."""
    torch.manual_seed(0)
    model = build(kind, num_hidden_layers=layers, **{"intermediate_size": 64} | changes)
    config, types = model.config, cycle(GGMLQuantizationType[name] for name in types)
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, architecture)
    for key, name in GGUF_CONFIG_MAPPING[architecture.replace("moe", "_moe")].items():
        value = getattr(config, name or "", None)
        if value is None and name == "rope_theta":
            value = config.rope_parameters.get("rope_theta")
        if value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{architecture}.{key}", value)
    for name, weight in _tensors(model, architecture):
        array = np.ascontiguousarray(weight.detach().float().numpy())
        quantised = array.ndim > 1 and array.shape[-1] % 32 == 0
        stored = next(types) if quantised else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(array, stored), raw_dtype=stored)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def _tensors(model, architecture: str):
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for its_name, name in get_gguf_hf_weights_map(model, processor).items():
        if name not in state:
            continue
        weight = state[name]
        if its_name.endswith("_exps"):
            half = weight.shape[1] // 2
            weight = weight[:, half:] if "up" in its_name else weight[:, :half] if "gate" in its_name else weight
            its_name += ".weight"
        elif "gate_inp_shexp" in its_name:
            weight = weight[0]
        elif name.endswith("weight") and isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):
            weight = weight.T
        elif weight.dim() == 1:  # norms are ones and biases zeros; a Gemma adds 1 to its norms
            weight = weight + 0.3 * torch.rand_like(weight) + ("gemma" in architecture)
        yield its_name, weight
