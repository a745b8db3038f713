"""Writes a Llama as one GGUF of 4 bits for llama.cpp, OpenVINO and transformers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from policies.storage.atomic import replacing


def write_gguf(model: LlamaForCausalLM, tokenizer_from: Path, path: Path, name: str, notes: dict[str, str]) -> None:
    """Write ``model`` to ``path`` with the tokenizer metadata of the GGUF ``tokenizer_from``.

    Matrices are stored as Q4_1 (5 bits a weight), norms as float32; ``notes`` become ``distill.*`` metadata.
    The file appears whole or not at all. Raises ValueError as ``check_writable`` does.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, quantize

    check_writable(model.config)
    with replacing(path) as unfinished:
        writer = GGUFWriter(unfinished, "llama")
        _write_hyperparameters(writer, model.config, name)
        writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
        for key, value in notes.items():
            writer.add_string(f"distill.{key}", value)
        for key, field in GGUFReader(tokenizer_from).fields.items():
            if key.startswith("tokenizer."):
                item_type = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=item_type)
        for key, tensor in _tensors(model):
            array = tensor.detach().float().cpu().numpy()
            kind = GGMLQuantizationType.Q4_1 if array.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(key, quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def check_writable(config) -> None:
    """Raise ValueError for a model that ``write_gguf`` cannot write; Q4_1 stores rows in blocks of 32."""
    if config.model_type != "llama" or not config.tie_word_embeddings:
        raise ValueError("only a Llama with tied embeddings can be written as GGUF")
    odd = [size for size in (config.hidden_size, config.intermediate_size) if size % 32]
    if odd:
        raise ValueError(f"Q4_1 stores rows in blocks of 32 weights, and {odd[0]} is no multiple of 32")


def _write_hyperparameters(writer, config, name: str) -> None:
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters under their names in a GGUF, tied ones once."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, weight in model.named_parameters():
        part = name.split(".")[-2]
        yield names.get_name(name, (".weight",)), _interleave(weight, heads[part]) if part in heads else weight


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head: a GGUF Llama rotates neighbouring pairs, transformers rotates halves."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
