"""Weights are whole or refused: what is missing, damaged or of another model is named before anything runs on it."""

import json
import random
import shutil
import struct
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import word_tokenizer
from tiny_models import build, tiny
from tiny_runs import save_model

from decoding import LM
from decoding.__main__ import main as decode
from decoding.kernels.integer_products import available
from decoding.models import memory
from decoding.models.defaults import DRAFTER, load_model
from decoding.models.files import check_files
from decoding.models.loading import check_values
from decoding.models.sources import locate

needs_kernel = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "whole", seed=1, layers=2)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "damaged"))


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, match, monkeypatch=None, dtype="float32"):
    """Refused in one line by ``LM.load`` and, with exit code 2, by the command line."""
    if monkeypatch is not None:  # before the weights are read
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("read"))
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        LM.load(folder, dtype=dtype)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=match):
        load_model("small", str(folder), dtype=dtype)


MISSING = {
    "missing": (lambda t: t.pop(DOWN), f"lacks 1 weights, which would be random \\({DOWN}\\)"),
    "renamed": (lambda t: t.update({"model.layers.1.mlp.q.weight": t.pop(DOWN)}), "lacks 1 weights"),
    "unused": (lambda t: t.update({"model.layers.1.mlp.extra": torch.ones(2)}), "has 1 weights for which its config"),
    "other shape": (lambda t: t.update({DOWN: torch.ones(32, 40)}), f"of another shape .*{DOWN}"),
    "no head": (lambda t: t.pop("lm_head.weight"), "lacks 1 weights.*lm_head.weight"),
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("int4", marks=needs_kernel)])
@pytest.mark.parametrize("name", MISSING)
def test_weights_that_are_not_those_of_the_config(name, dtype, folder):
    """A missing tensor was random: two runs of one prompt wrote two texts."""
    change, said = MISSING[name]
    rewrite(folder, change)
    refused(folder, said, dtype=dtype)


def test_tied_weights_are_not_missing(tmp_path):
    model = build("llama", num_hidden_layers=1, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    lm = LM.load(tmp_path)
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert torch.equal(lm.model.lm_head.weight, model.lm_head.weight)


CONFIGS = {
    "more layers": ({"num_hidden_layers": 50}, "says 50 layers, but there are weights of 2"),
    "fewer layers": ({"num_hidden_layers": 1}, "says 1 layers, but there are weights of 2"),
    "negative layers": ({"num_hidden_layers": -1}, "num_hidden_layers -1; layers must be at least 1"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers 0; layers must be at least 1"),
    "layers as text": ({"num_hidden_layers": "2"}, "num_hidden_layers '2'; layers must be at least 1"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads 0; attention heads must be at least 1"),
    "hidden size 33": ({"hidden_size": 33, "head_dim": None}, "hidden size of 33 and 4 attention heads"),
    "vocabulary of 10^9": ({"vocab_size": 10**9}, "says 1000000000 tokens of width 32, for which its weights"),
    "unknown type": ({"model_type": "llama99"}, "the config of .* cannot be read: .*llama99"),
    "unsupported": ({"model_type": "gpt_oss"}, "architecture 'gpt_oss' is not supported"),
    "exl2": (
        {"quantization_config": {"quant_method": "exl2", "bits": 4}},
        "quantised by exl2, which trans",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_not_that_of_the_weights(name, folder, monkeypatch):
    changes, said = CONFIGS[name]
    configure(folder, **changes)
    refused(folder, said, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "module", "package"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel", "pip install .*gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", "pip install gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "pip install bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes", "pip install bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors", "pip install compressed-tensors"),
    ],
    ids=lambda value: value.get("quant_method", "old") if isinstance(value, dict) else "",
)
def test_a_quantised_format_names_its_package(settings, module, package, folder, monkeypatch):
    monkeypatch.setattr("decoding.models.files._installed", lambda name: name != module)
    configure(folder, quantization_config=settings)
    refused(folder, package, monkeypatch)


def cut(path, by=1000):
    path.write_bytes(path.read_bytes()[:-by])


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def sharded(folder):
    path = folder / "model.safetensors"
    names = list(load_file(path))
    path.rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {name: f"model-0000{1 + (name == DOWN)}-of-00002.safetensors" for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FILES = {
    "cut": (lambda f: cut(f / "model.safetensors"), "model.safetensors has .* bytes, but its tensors need"),
    "cut in its header": (lambda f: (f / "model.safetensors").write_bytes(b"\x50" + 11 * b"\0"), "is cut short"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "is cut short"),
    "no header": (lambda f: (f / "model.safetensors").write_bytes(b"\x02" + 7 * b"\0" + b"[]"), "damaged header"),
    "git-lfs": (lambda f: pointer(f / "model.safetensors"), "is a git-lfs pointer.* `git lfs pull`"),
    "git-lfs config": (lambda f: pointer(f / "config.json"), "is a git-lfs pointer"),
    "git-lfs tokenizer": (lambda f: pointer(f / "tokenizer.json"), "is a git-lfs pointer"),
    "a shard is missing": (sharded, "has no model-00002-of-00002.safetensors"),
    "index of a list": (lambda f: (f / "model.safetensors.index.json").write_text("[1]"), "index.json is damaged"),
    "index of no JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json is damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config of no JSON": (lambda f: cut(f / "config.json", 5), "config.json is not JSON"),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, not a list"),
    "generation_config of no JSON": (lambda f: cut(f / "generation_config.json", 5), "generation_config.json is not"),
    "tokenizer of no JSON": (lambda f: cut(f / "tokenizer.json", 5), "tokenizer.json is not JSON"),
    "tokenizer of something": (
        lambda f: (f / "tokenizer.json").write_text('{"a": 1}'),
        "the tokenizer of .* cannot be",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("*token*")],
        "the tokenizer of .* cannot be read",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_damaged_or_missing(name, folder, monkeypatch):
    change, said = FILES[name]
    change(folder)
    refused(folder, said, monkeypatch)


def test_any_damage_is_one_sentence_or_none(folder, tmp_path):
    """Bytes changed at random: a model is loaded or refused in a line, and no other error ends the command."""
    draw, refusals = random.Random(0), 0
    names = ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"]
    whole = {name: (folder / name).read_bytes() for name in names}
    for turn in range(60):
        name = names[turn % len(names)]
        data = bytearray(whole[name])
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(min(len(data), 3000))] = draw.randrange(256)
        (folder / name).write_bytes(data)
        try:
            LM.load(folder)
        except ValueError as error:
            assert "\n" not in str(error)
            refusals += 1
        (folder / name).write_bytes(whole[name])
    assert 40 < refusals < 60


def test_pickles_are_refused_with_the_way_to_convert_them(folder, monkeypatch):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "are pickles .pytorch_model.bin., which can run code; .*save_pretrained", monkeypatch)


def test_the_command_line_ends_with_the_sentence(folder, capsys):
    rewrite(folder, lambda tensors: tensors.pop(DOWN))
    assert decode(["--small", str(folder), "--large", str(folder), "w5 w6"]) == 2
    said = capsys.readouterr().err
    assert "error: the small model" in said and DOWN in said and said.count("\n") == 1


def header(path, **counts):
    """The drafter's file with another number of tensors or settings, or another length of its first text."""
    data = bytearray(DRAFTER.read_bytes()[:60_000])
    for name, value in counts.items():
        struct.pack_into("<Q", data, {"tensors": 8, "settings": 16, "text": 24}[name], value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(DRAFTER.read_bytes()[:-1000]), "is cut short: .* bytes; download it again"),
        (lambda p: p.write_bytes(DRAFTER.read_bytes()[:5000]), "is damaged or cut short in its header"),
        (lambda p: p.write_bytes(b"GGUF"), "is damaged or cut short in its header"),
        (lambda p: p.write_bytes(b""), "is not a GGUF file"),
        (lambda p: p.write_bytes(b"<html>404</html>"), "is not a GGUF file"),
        (pointer, "is a git-lfs pointer"),
        (lambda p: header(p, tensors=10**18), "is damaged or cut short in its header"),
        (lambda p: header(p, settings=2**63), "is damaged or cut short in its header"),
        (lambda p: header(p, text=2**62), "is damaged or cut short in its header"),
    ],
    ids=["cut", "cut in its header", "magic alone", "empty", "html", "git-lfs", "tensors", "settings", "text"],
)
def test_gguf_files_that_are_damaged(damage, said, tmp_path, monkeypatch):
    damage(tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", said, monkeypatch)


@pytest.mark.slow
def test_a_header_is_read_as_the_gguf_package_reads_it():
    from gguf import GGUFReader

    from decoding.models.gguf_header import read_header

    found, reader = read_header(DRAFTER), GGUFReader(DRAFTER)
    assert found.shapes == {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    assert found.settings["general.architecture"] == "llama"
    assert found.settings["llama.block_count"] == check_files(locate(DRAFTER)).layers == 4


def test_gguf_layers_that_are_not_there(tmp_path):
    data = bytearray(DRAFTER.read_bytes())
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    assert struct.unpack_from("<I", data, at) == (4,)
    for layers in (3, 5, 0):
        struct.pack_into("<I", data, at, layers)
        (tmp_path / "model.gguf").write_bytes(data)
        with pytest.raises(ValueError, match="its header says . layers, but there are weights of 4|no layers"):
            LM.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("which", ["embed_tokens", "norm", "down_proj"])
def test_a_model_that_someone_else_loaded_is_looked_at(which):
    model = tiny().model
    weight = next(weight for name, weight in model.named_parameters() if which in name)
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=f"the weights of llama are broken: .*{which}.* has NaN"):
        LM(model)


@pytest.mark.parametrize("part", ["embedding", "head"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_rows_that_are_all_equal_are_no_weights(part, value):
    model = tiny().model
    with torch.no_grad():
        getattr(model, f"get_{'in' if part == 'embedding' else 'out'}put_embeddings")().weight.fill_(value)
    with pytest.raises(ValueError, match=f"all rows of the {part} are equal"):
        LM(model)


def test_weights_are_looked_at_in_samples(monkeypatch):
    """Of the largest weight no more than a thousandth."""
    model, seen = build("llama", vocab_size=50_000, num_hidden_layers=1), []
    isnan = torch.Tensor.isnan
    monkeypatch.setattr(torch.Tensor, "isnan", lambda tensor: seen.append(tensor.numel()) or isnan(tensor))
    check_values(model)
    assert 0 < max(seen) <= 65 * 32


def test_weights_that_cannot_fit_are_refused_before_they_are_read(folder, monkeypatch):
    whole = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    needed = 4 * whole
    monkeypatch.setattr(memory, "available", lambda device: needed)
    LM.load(folder)
    monkeypatch.setattr(memory, "available", lambda device: needed - 1)
    refused(folder, "the weights of .* take 0.0 GiB of memory, but cpu has 0.0 GiB; take a smaller dtype", monkeypatch)


def test_the_size_of_a_large_model_is_said(folder, monkeypatch, caplog):
    load_model("small", str(folder))
    assert not caplog.records
    monkeypatch.setattr("decoding.models.defaults.LARGE", 1000)
    load_model("small", str(folder))
    (record,) = caplog.records
    assert "GiB of memory; cpu has" in record.getMessage()


def test_loading_is_silent_otherwise(folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("small", str(folder))
    assert capsys.readouterr() == ("", "")


def test_settings_beside_a_gguf_file_count(tmp_path):
    shutil.copy(DRAFTER, tmp_path / "model.gguf")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert LM.load(tmp_path / "model.gguf").model.generation_config.eos_token_id == [7, 9]
