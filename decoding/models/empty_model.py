"""A transformers model without memory for its weights, which are put in one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def empty_model(config, dtype: torch.dtype) -> nn.Module:
    """The model of ``config``, its parameters on meta and tied, its buffers, such as frequencies, made as ever."""
    from transformers import AutoModelForCausalLM

    with _weights_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def fill(model: nn.Module, name: str, values: Tensor) -> None:
    """Let ``values`` be the parameter or buffer of this name, and every parameter tied to it."""
    module, _, last = name.rpartition(".")
    part = model.get_submodule(module)
    if last in part._parameters:
        held = part._parameters[last]
        fresh = nn.Parameter(values)
        for other in model.modules():
            for key, weight in other._parameters.items():
                if weight is held:
                    other._parameters[key] = fresh
    else:
        part._buffers[last] = values


@contextmanager
def _weights_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        if weight is not None and not weight.is_meta:
            weight = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
        register(module, name, weight)

    nn.Module.register_parameter = registered
    try:
        yield
    finally:
        nn.Module.register_parameter = register
