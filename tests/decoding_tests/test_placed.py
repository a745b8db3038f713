"""Models whose weights are quantised, or kept elsewhere by accelerate, write what transformers writes with them."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from tiny_models import nudged, tiny
from torch import nn

from decoding import LM, Autoregressive, Backoff, Speculative, generate
from decoding.kernels.packed_products import PackedLinear, pack
from policies import Rule

PARTS = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}


class Int8(nn.Module):
    """A linear layer as bitsandbytes makes them: no nn.Linear, its weight is not a floating-point parameter."""

    def __init__(self, linear):
        super().__init__()
        self.scale = nn.Buffer(linear.weight.detach().abs().amax(1) / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale[:, None]).round().char(), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.float() * self.scale[:, None]).T


def int8(model, _):
    for layer in model.model.layers:
        for name, part in list(layer.named_modules()):
            if isinstance(part, nn.Linear):
                layer.set_submodule(name, Int8(part))
    return model


def torchao(model, _):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


def packed_torchao(model, _):
    pack(model)
    return torchao(model, _)


def offloaded(model, _):
    return cpu_offload(model, torch.device("cpu"))


def on_disk(model, folder):
    parts = PARTS | {"model.layers.1": "disk", "lm_head": "disk"}
    return dispatch_model(model, parts, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("change", [int8, torchao, packed_torchao, offloaded, on_disk], ids=lambda f: f.__name__)
def test_it_writes_what_transformers_writes(change, prompts, tmp_path):
    ids, mask = prompts
    large, small = tiny(seed=1), nudged(tiny(seed=1))
    model = change(large.model, tmp_path)
    pack(model)
    lm = LM(model)
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, eos_token_id=None, **options)
    for decoder in (Autoregressive(lm), Speculative([small, lm]), Backoff([small, lm], Rule.always())):
        result = generate(decoder, ids, mask, max_new_tokens=12, eos_token_id=())
        assert torch.equal(result.sequences, expected)
    assert lm.device == torch.device("cpu")
    assert lm.identity()["weights"]


def test_only_dense_weights_are_packed():
    class Quantised(torch.Tensor):
        """As torchao's weights, it says that it is float32."""

    plain, quantised = nn.Linear(8, 8), nn.Linear(8, 8)
    quantised.weight = nn.Parameter(quantised.weight.detach().as_subclass(Quantised))
    model = nn.Sequential(plain, quantised)
    pack(model)
    assert type(model[0]) is PackedLinear
    assert type(model[1]) is nn.Linear
