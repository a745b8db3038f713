"""The memory of weights is known from the header of a file, tensor by tensor, and too little of it is one sentence."""

import pytest
import torch
from tiny_gguf import write_gguf
from tiny_models import build, words

from decoding import LM
from decoding.kernels.integer_products import available
from decoding.models import memory
from decoding.models.dtypes import settled
from decoding.models.files import check_files
from decoding.models.sources import locate

pytestmark = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
MIXED = ("Q4_0", "Q8_0", "F16", "Q5_0", "Q4_1", "F32")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    monkeypatch.setattr("decoding.models.loading.read_tokenizer", lambda *_: None)


@pytest.fixture(params=["mixed file", "file of one type", "folder"])
def source(request, tmp_path):
    if request.param == "folder":
        build("qwen2", num_hidden_layers=2, intermediate_size=64).save_pretrained(tmp_path)
        words().save_pretrained(tmp_path)
        return tmp_path
    write_gguf(tmp_path / "a.gguf", "qwen2", MIXED if "mixed" in request.param else ("Q8_0",))
    return tmp_path / "a.gguf"


def held(model) -> int:
    """Bytes of all tensors that a model of integers holds, but those that no file has, such as frequencies."""
    made = {name for name, _ in model.named_buffers() if not name.endswith(("codes", "scales"))}
    tensors = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name not in made)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("dtype", ["file", "int8", "int4"])
def test_integers_take_what_was_said(source, dtype):
    found = locate(source)
    if dtype == "file" and not found.gguf:
        pytest.skip("a folder has no bits of its own")
    kind, bits = settled(dtype, found, CPU)
    said = memory.weight_bytes(check_files(found), kind, CPU, bits)
    assert held(LM.load(source, dtype=dtype).model) == said


def test_a_tied_head_is_packed_beside_its_embedding(tmp_path):
    sizes = []
    for tied in (False, True):
        write_gguf(tmp_path / "a.gguf", "qwen2", tie_word_embeddings=tied)
        sizes.append(memory.weight_bytes(check_files(locate(tmp_path / "a.gguf")), torch.float32, CPU))
    assert sizes[0] == sizes[1]
    model = LM.load(tmp_path / "a.gguf").model
    assert model.lm_head._packed is not None and "weight" in model.get_input_embeddings()._parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "file", "int8", "int4"])
def test_what_does_not_fit_is_one_sentence_before_anything_is_read(dtype, tmp_path, monkeypatch):
    write_gguf(tmp_path / "a.gguf", "qwen2", MIXED)
    found = locate(tmp_path / "a.gguf")
    kind, bits = settled(dtype, found, CPU)
    needed = memory.weight_bytes(check_files(found), kind, CPU, bits)
    monkeypatch.setattr(memory, "available", lambda device: needed)
    LM.load(found, dtype=dtype)
    monkeypatch.setattr(memory, "available", lambda device: needed - 1)
    monkeypatch.setattr("decoding.models.gguf_weights.read_tensors", lambda *_: pytest.fail("read"))
    remedy = "a smaller model" if dtype == "int4" else f"a smaller dtype than {dtype}, or a smaller model"
    with pytest.raises(ValueError, match=f"GiB of memory, but cpu has 0.0 GiB; take {remedy}$") as caught:
        LM.load(found, dtype=dtype)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_must_be_whole_first_is_refused_if_that_does_not_fit(tmp_path, monkeypatch):
    """transformers joins the experts of this one: rounding begins with a copy in float32."""
    build("qwen3_moe", num_hidden_layers=2).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    weights = check_files(locate(tmp_path))
    whole = weights.numbers * 4
    assert memory.weight_bytes(weights, torch.float32, CPU, 4) < whole
    monkeypatch.setattr(memory, "available", lambda device: whole - 1)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match="has to be read whole in float32 first, which takes 0.0 GiB"):
        LM.load(tmp_path, dtype="int4")
