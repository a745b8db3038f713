"""Quick reading of GGUF settings: the config and the tokenizer of transformers' own reading."""

import shutil

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer, modeling_gguf_pytorch_utils

from decoding.models.defaults import DRAFTER
from decoding.models.gguf_metadata import MetadataReader, quick_metadata, read_gguf_metadata
from decoding.models.loading import read_config, read_config_and_tokenizer, read_tokenizer
from decoding.models.sources import locate

TEXT = "def add(a, b):\n    return a + b  # Grüße, 你好 🙂 <|im_end|>"


@pytest.fixture
def written(tmp_path):
    """A file with settings of all kinds."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("a.whole", 7)
    writer.add_float32("a.real", 0.25)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "Grüße")
    writer.add_array("a.texts", ["", "one", "你好"])
    writer.add_array("a.numbers", [3, 1, 2])
    writer.add_tensor("output.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "a.gguf"


def values(reader):
    from transformers.modeling_gguf_pytorch_utils import read_field

    return {name: read_field(reader, name) for name in reader.fields if not name.startswith("GGUF.")}


def test_settings_of_all_kinds(written):
    quick, slow = MetadataReader(written), gguf.GGUFReader(written)
    assert values(quick) == values(slow)
    assert values(quick)["a.texts"] == ["", "one", "你好"] and values(quick)["a.real"] == [0.25]
    assert [tensor.name for tensor in quick.tensors] == [tensor.name for tensor in slow.tensors] == ["output.weight"]


@pytest.mark.slow
def test_the_drafters_config_and_tokenizer_are_those_of_transformers():
    source = locate(DRAFTER)
    config, tokenizer = read_config(source, {}), read_tokenizer(source, {})
    theirs = AutoConfig.from_pretrained(source.folder, **source.options)
    assert config.to_dict() == theirs.to_dict()
    own = AutoTokenizer.from_pretrained(source.folder, **source.options)
    assert tokenizer.get_vocab() == own.get_vocab() and tokenizer.chat_template == own.chat_template
    assert tokenizer(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert tokenizer.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()


def test_transformers_own_quick_reading_says_the_same(written):
    """The function that 5.23 has besides."""
    theirs = pytest.importorskip("transformers.integrations.gguf.reader")
    for arrays in ((), ("a.texts", "tokenizer.ggml.tokens")):
        for path in (written, DRAFTER):
            found, expected = (read(path, arrays) for read in (read_gguf_metadata, theirs.read_gguf_metadata))
            assert found == expected and [type(v) for v in found[0].values()] == [type(v) for v in expected[0].values()]


def test_a_file_is_parsed_once_for_config_and_tokenizer(monkeypatch):
    parsed = []
    own = modeling_gguf_pytorch_utils.load_gguf_checkpoint
    monkeypatch.setattr(
        modeling_gguf_pytorch_utils, "load_gguf_checkpoint", lambda *args, **how: parsed.append(1) or own(*args, **how)
    )
    config, tokenizer = read_config_and_tokenizer(locate(DRAFTER), {})
    assert len(parsed) == 1 and config.vocab_size >= len(tokenizer)


def test_a_pair_of_files_has_one_tokenizer_and_others_their_own(tmp_path):
    for name in ("a", "b", "c/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(DRAFTER, tmp_path / f"{name}.gguf")
    (tmp_path / "c" / "tokenizer_config.json").write_text("{}")
    renamed = DRAFTER.read_bytes().replace(b"<|im_end|>", b"<|im_eNd|>", 1)
    (tmp_path / "e.gguf").write_bytes(renamed)
    first, second, beside, other = (read_tokenizer(locate(tmp_path / f"{n}.gguf"), {}) for n in ("a", "b", "c/d", "e"))
    assert first is second and first is not beside and first is not other
    assert first.get_vocab() == beside.get_vocab() != other.get_vocab()


def test_the_reader_is_put_back():
    slow = gguf.GGUFReader
    with quick_metadata():
        assert gguf.GGUFReader is MetadataReader
    assert gguf.GGUFReader is slow
    with pytest.raises(FileNotFoundError), quick_metadata():
        gguf.GGUFReader("nowhere.gguf")
    assert gguf.GGUFReader is slow


def test_no_reader_of_gguf_is_made(monkeypatch):
    """It takes 10 seconds for a vocabulary of 150,000 tokens."""
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda *_: pytest.fail("the slow one"))
    source = locate(DRAFTER)
    assert read_config(source, {}).vocab_size >= len(read_tokenizer(source, {}))
