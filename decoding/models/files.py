"""Checks of a model's files before its weights are read: all are there, whole, and of one model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from decoding.models.gguf_header import read_header
from decoding.models.sources import INDEX, Source, shards

COUNTS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "attention heads": ("num_attention_heads", "n_head", "n_heads"),
    "hidden size": ("hidden_size", "n_embd", "d_model"),
    "vocabulary": ("vocab_size",),
}
"""Counts of a config.json that must be at least 1, under the names that architectures give them."""
PACKAGES = {
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "bitsandbytes_4bit": ("bitsandbytes",),
    "bitsandbytes_8bit": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "hqq": ("hqq",),
    "auto-round": ("auto_round",),
    "aqlm": ("aqlm",),
    "quanto": ("optimum.quanto",),
    "torchao": ("torchao",),
}
"""Modules that a quantised format needs; those of other formats transformers names itself."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks)\.(\d+)\.")
EMBEDDING, HEAD = (
    re.compile(r"(embed_tokens|embed_in|wte|word_embeddings|token_embd)\.weight$"),
    re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$"),
)
OPTIONAL = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files that are read if they are there. transformers passes over a damaged generation_config: its ends are lost."""
POINTER = b"version https://git-lfs"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a model's files: the shape of each by name, and its type in a GGUF file, such as Q4_K."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @property
    def tied(self) -> int:
        """Numbers of an embedding that is the head too; 0 where the head has its own."""
        sizes = [math.prod(shape) for name, shape in self.shapes.items() if EMBEDDING.search(name)]
        return 0 if any(HEAD.search(name) for name in self.shapes) else sum(sizes)

    @property
    def layers(self) -> int:
        """One more than the greatest index of a layer; 0 where names have none."""
        return max((int(found[1]) + 1 for name in self.shapes if (found := LAYER.search(name))), default=0)


def check_files(source: Source) -> Weights:
    """The tensors of ``source``. ValueError, one sentence with file and remedy, if it cannot be loaded whole."""
    return _check_gguf(source.folder / source.gguf) if source.gguf else _check_folder(source)


def _check_gguf(path: Path) -> Weights:
    _check_pointer(path)
    header = read_header(path)
    weights, kind = Weights(header.shapes, header.types), header.settings.get("general.architecture")
    layers = header.settings.get(f"{kind}.block_count")
    if not weights.shapes or not layers:
        raise ValueError(f"{path} holds no model: it has {len(weights.shapes)} tensors and {layers or 'no'} layers")
    _check_layers(path, "its header", layers, weights)
    return weights


def _check_folder(source: Source) -> Weights:
    folder, config = source.folder, _json(source.folder / "config.json")
    counts = {what: _count(folder, config, what, names) for what, names in COUNTS.items()}
    quantised = config.get("quantization_config")
    _check_quantisation(source.name, quantised)
    for name in OPTIONAL:
        if (folder / name).exists():
            _json(folder / name)
    shapes = {}
    for file in _weight_files(source):
        shapes |= _safetensors(file)
    weights = Weights(shapes)
    if quantised is None:
        _check_counts(folder / "config.json", config, counts, weights)
    return weights


def _json(path: Path) -> dict:
    _check_pointer(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error).splitlines()[0]}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(found).__name__}")
    return found


def _check_pointer(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; a model needs it")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}")


def _count(folder: Path, config: dict, what: str, names: tuple[str, ...]) -> int | None:
    name = next((name for name in names if name in config), None)
    if name is None:
        return None
    if type(config[name]) is not int or config[name] < 1:
        raise ValueError(f"{folder / 'config.json'} says {name} {config[name]!r}; {what} must be at least 1")
    return config[name]


def _check_quantisation(name: str, settings) -> None:
    if settings is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known

    kind = settings.get("quant_method") if isinstance(settings, dict) else None
    if kind is None and isinstance(settings, dict):  # as bitsandbytes once wrote it
        kind = "bitsandbytes" if settings.get("load_in_4bit") or settings.get("load_in_8bit") else None
    if kind not in known and kind not in PACKAGES:
        raise ValueError(f"{name} is quantised by {kind}, which transformers cannot read; it reads {', '.join(known)}")
    if lacking := [module for module in PACKAGES.get(kind, ()) if not _installed(module)]:
        packages = " ".join(module.replace("_", "-").replace(".", "-") for module in lacking)
        raise ValueError(f"{name} is quantised by {kind}, for which packages are missing; run: pip install {packages}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _weight_files(source: Source) -> list[Path]:
    folder, index = source.folder, source.folder / INDEX
    if index.exists():
        _check_pointer(index)
    try:
        found = shards(folder)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged; download it again") from error
    if found:
        return found
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        convert = "from transformers import AutoModelForCausalLM as A; A.from_pretrained('{}').save_pretrained('{}')"
        raise ValueError(
            f"the weights of {source.name} are pickles ({pickles[0]}), which can run code; if you trust them, convert "
            f'them: python -c "{convert.format(source.name, "converted")}", and copy the tokenizer files'
        )
    raise ValueError(f"{folder} has no weights: neither model.safetensors nor {INDEX}")


def _safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name. ValueError for a file that is cut short or not of this format."""
    _check_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is cut short or not a safetensors file; download it again")
        try:
            header = json.loads(file.read(length))
            tensors = {name: about for name, about in header.items() if name != "__metadata__"}
            end = 8 + length + max((about["data_offsets"][1] for about in tensors.values()), default=0)
            shapes = {name: tuple(about["shape"]) for name, about in tensors.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} has a damaged header; download it again") from error
    if end != size:
        raise ValueError(f"{path} has {size:,} bytes, but its tensors need {end:,}; download it again")
    return shapes


def _check_counts(path: Path, config: dict, counts: dict[str, int | None], weights: Weights) -> None:
    """That the config is that of these weights; what is left, transformers reports when it loads them."""
    if counts["layers"] is not None:
        extra = config.get("num_nextn_predict_layers") or 0  # drawn by no text: transformers leaves them out
        _check_layers(path, "it", counts["layers"], weights, extra)
    heads, width, vocab = counts["attention heads"], counts["hidden size"], counts["vocabulary"]
    if heads and width and config.get("head_dim") is None and width % heads:
        raise ValueError(f"{path} says a hidden size of {width} and {heads} attention heads, which do not divide it")
    if width and vocab and weights.numbers < vocab * min(width, config.get("word_embed_proj_dim") or width):
        raise ValueError(
            f"{path} says {vocab} tokens of width {width}, for which its weights, {weights.numbers:,} numbers in all, "
            "are too few"
        )


def _check_layers(path: Path, who: str, said: int, weights: Weights, extra: int = 0) -> None:
    if weights.layers and weights.layers not in (said, said + extra):
        raise ValueError(f"{path}: {who} says {said} layers, but there are weights of {weights.layers}")
