"""The model of a GGUF file, made tensor by tensor: never a second copy, and never the whole in float32.

Names, and what llama.cpp's converters changed in the tensors, are transformers' own tables.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import nn

from decoding.kernels.quantized import multiplied, put, rounded
from decoding.models.empty_model import empty_model, fill
from decoding.models.gguf_blocks import dense, matrix
from decoding.models.gguf_header import read_header, read_tensors
from decoding.models.sources import Source

BY_ROWS = ("TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor", "NemotronTensorProcessor")
"""Those of transformers' processors that at most reorder the rows of a matrix, which blocks allow."""


def read_gguf(source: Source, config, dtype: torch.dtype, bits: int | None) -> tuple[nn.Module, dict]:
    """The model of ``config``, and what is missing or of another shape, as ``from_pretrained`` reports it.

    With ``bits`` its linear layers and embedding are integers (``gguf_blocks.matrix``), all else is of ``dtype``.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    path = source.folder / source.gguf
    model = empty_model(config, dtype)
    header = read_header(path)
    architecture = header.settings["general.architecture"]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    with _one_name_map():
        names = get_gguf_hf_weights_map(model, processor)
    _untie(model, {names.get(name) for name in header.shapes})
    by_rows, parsed, matrices = type(processor).__name__ in BY_ROWS, {"tensors": {}}, {}
    parts = Counter(_joined(names, name) for name in header.shapes)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    wrong = []

    def processed(weights, name: str):
        return processor.process(weights=weights, name=name, tensor_key_mapping=names, parsed_parameters=parsed)

    for its_name, shape, data, kind in read_tensors(path):
        name = names.get(its_name)
        if by_rows and name is None:
            continue
        if by_rows and name in shapes and shapes[name] != shape:
            wrong.append(name)
        elif by_rows and bits is not None and multiplied(model, name, shape):
            matrices[name] = matrix(processed(data, its_name).weights, kind, bits)
        elif by_rows and len(shape) > 1:
            fill(model, name, dense(processed(data, its_name).weights, kind, dtype))
        else:
            values = dense(data, kind, torch.float32).view(shape).numpy()
            found = processed(values, its_name)
            if found.name in names:
                parsed["tensors"][names[found.name]] = torch.from_numpy(np.array(found.weights)).to(dtype)
        parts[_joined(names, its_name)] -= 1
        for name in [name for name in parsed["tensors"] if not parts[name]]:
            values = torch.as_tensor(parsed["tensors"].pop(name)).to(dtype)
            if shapes[name] != tuple(values.shape):
                wrong.append(name)
            elif bits is not None and multiplied(model, name, values.shape):
                matrices[name] = rounded(values, bits or 8)
            else:
                fill(model, name, values)
    put(model, matrices)
    left = [name for name, weight in model.named_parameters() if weight.is_meta]
    return model.eval(), {"missing_keys": left, "unexpected_keys": [], "mismatched_keys": wrong}


def _joined(names: dict[str, str], its_name: str) -> str | None:
    """The weight that a tensor of the file is all or, of experts, a part of."""
    return names.get(its_name) or names.get(its_name.removesuffix(".weight"))


def _untie(model: nn.Module, found: set[str | None]) -> None:
    """A head of its own, where the file has one though the config, as transformers reads it, says otherwise."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    places = {name for name, module in model.named_modules() if module in (head, embedding)}
    if head.weight is embedding.weight and {f"{name}.weight" for name in places} <= found:
        head.weight = nn.Parameter(torch.empty_like(head.weight))
        model.config.tie_word_embeddings = False


@contextmanager
def _one_name_map() -> Iterator[None]:
    """transformers makes gguf's table of names anew for each of a model's modules: 10 seconds for 30 layers."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made
