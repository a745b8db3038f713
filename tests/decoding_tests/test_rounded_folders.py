"""A folder in 4 or 8 bits is read tensor by tensor: the same bits as if it were loaded whole and then rounded."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, build, mostly_slow, words

from decoding import LM
from decoding.kernels.integer_products import available
from decoding.kernels.quantized import IntegerEmbedding, IntegerLinear, quantise
from decoding.models import folder_weights, loading
from decoding.models.sources import INDEX, locate

pytestmark = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
RENAMED = ("mixtral-window", "qwen2_moe", "qwen3_moe", "gpt_neox")
"""Their checkpoints have a weight for each expert, transformers' models one for all; GPT-NeoX's head has two names."""
FORBID = "transformers.AutoModelForCausalLM.from_pretrained"


def saved(folder, kind="llama", **changes):
    torch.manual_seed(0)
    build(kind, num_hidden_layers=3, intermediate_size=64, **changes).save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def shard(folder):
    """As large models are saved: two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def read(folder, bits):
    found, options = locate(folder), {"trust_remote_code": False}
    return loading.read_weights(found, loading.read_config(found, options), torch.float32, options, bits)


def whole(folder, bits):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    quantise(model, bits)
    return model.eval()


def same(mine, reference):
    assert type(mine) is type(reference) and not mine.training
    for (name, part), (other, expected) in zip(mine.named_modules(), reference.named_modules(), strict=True):
        assert name == other and type(part) is type(expected)
        state, wanted = ({**m._parameters, **m._buffers} for m in (part, expected))
        state.pop("factor", None)  # of an embedding: a buffer in one, a tensor in the other; the logits below use it
        assert state.keys() == wanted.keys()
        for key, value in wanted.items():
            if value is not None:
                assert state[key].dtype == value.dtype and torch.equal(state[key], value), f"{name}.{key}"
    assert mine.generation_config.to_dict() == reference.generation_config.to_dict()
    assert mine.config.to_dict() == reference.config.to_dict()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(mine(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("kind", mostly_slow(KINDS))
def test_the_same_bits_as_of_a_model_that_was_whole(kind, tmp_path):
    saved(tmp_path, kind)
    same(read(tmp_path, 4), whole(tmp_path, 4))


@pytest.mark.parametrize(("tied", "sharded"), [(False, True), (True, False)])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "phi3"])
def test_no_model_is_whole_meanwhile(kind, tied, sharded, tmp_path, monkeypatch):
    """bfloat16 in the files, as they come."""
    saved(tmp_path, kind, tie_word_embeddings=tied)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    if sharded:
        shard(tmp_path)
    expected = whole(tmp_path, 8)
    monkeypatch.setattr(FORBID, lambda *_, **__: pytest.fail("read whole"))
    lm = LM.load(tmp_path, dtype="int8")
    assert lm.model.generation_config.eos_token_id == [7, 9]
    head, embedding = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
    assert isinstance(head, IntegerLinear) and isinstance(embedding, IntegerEmbedding)
    assert (head.matrix is embedding.matrix) is tied
    same(read(tmp_path, 8), expected)


@pytest.mark.parametrize("kind", RENAMED)
def test_checkpoints_that_transformers_renames_are_read_by_it(kind, tmp_path, monkeypatch):
    saved(tmp_path, kind)
    found, options = locate(tmp_path), {"trust_remote_code": False}
    assert folder_weights.read_rounded(found, loading.read_config(found, options), 4) is None
    monkeypatch.setattr(FORBID, lambda *_, **__: pytest.fail("read whole"))
    with pytest.raises(pytest.fail.Exception, match="read whole"):
        read(tmp_path, 4)


def test_a_tied_head_of_its_own_in_the_file_is_for_transformers_to_judge(tmp_path):
    saved(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same(read(tmp_path, 4), whole(tmp_path, 4))
