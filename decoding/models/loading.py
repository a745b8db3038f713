"""The parts of a model as transformers reads them, whole or refused in one sentence."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from weakref import WeakValueDictionary

import torch

from decoding.kernels.quantized import quantise
from decoding.models.files import check_files
from decoding.models.folder_weights import read_rounded
from decoding.models.gguf_header import read_header
from decoding.models.gguf_metadata import quick_metadata
from decoding.models.gguf_weights import read_gguf
from decoding.models.memory import check_whole
from decoding.models.sources import Source

SAMPLE, ROWS = 512, 64
"""Numbers of every weight that are looked at, and rows of the embedding and the head."""


@contextmanager
def _reading(what: str, source: Source):
    """ValueError, in one sentence, for whatever transformers makes of files that it cannot read."""
    try:
        yield
    except Exception as error:  # KeyError, ZeroDivisionError, tokenizers' bare Exception ...: by what is in the files
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        why = lines[0] if not lines[0].endswith(":") or len(lines) == 1 else f"{lines[0]} {lines[1]}"
        raise ValueError(f"the {what} of {source.name} cannot be read: {why}") from error


def read_config(source: Source, options: dict):
    from transformers import AutoConfig

    with _reading("config", source), quick_metadata() if source.gguf else nullcontext():
        return AutoConfig.from_pretrained(source.folder, **source.options, **options)


def read_tokenizer(source: Source, options: dict):
    """The tokenizer; one object for all GGUF files whose settings of it are the same, unless a file beside adds some.

    It takes two seconds for a vocabulary of 150,000 tokens, and the models of a pair share one.
    """
    from transformers import AutoTokenizer

    key = _tokenizer_key(source)
    if (known := _tokenizers.get(key)) is not None:
        return known
    with _reading("tokenizer", source), quick_metadata() if source.gguf else nullcontext():
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **source.options, **options)
    if key is not None:
        _tokenizers[key] = tokenizer
    return tokenizer


def read_config_and_tokenizer(source: Source, options: dict) -> tuple:
    """Both, of a GGUF file in one reading."""
    with quick_metadata() if source.gguf else nullcontext():
        return read_config(source, options), read_tokenizer(source, options)


_tokenizers: WeakValueDictionary = WeakValueDictionary()
"""by ``_tokenizer_key``, for as long as someone uses them"""


def _tokenizer_key(source: Source) -> tuple[str, str] | None:
    if not source.gguf or any(source.folder.glob("*.json")):
        return None
    header = read_header(source.folder / source.gguf)
    return header.settings.get("general.architecture"), header.tokenizer


def read_weights(source: Source, config, dtype: torch.dtype, options: dict, bits: int | None = None):
    """The model of ``config`` with all its weights; ValueError names those missing, unused, or of another shape.

    With ``bits`` 4 or 8 its matrices are ``kernels.quantized``, and all else of ``dtype``.
    """
    if source.gguf:
        with _reading("model", source):
            model, report = read_gguf(source, config, dtype, bits)
            _own_generation_config(model, source)
        _check_report(source, report)
    else:
        model = _read_rounded(source, config, options, bits) if bits else None
        if model is None:
            if bits:
                check_whole(source.name, check_files(source))
            model, report = _read_folder(source, config, dtype, options)
            _check_report(source, report)
            if bits:
                quantise(model, bits)
    model.config.name_or_path = source.name
    return model


def _read_rounded(source: Source, config, options: dict, bits: int):
    if options["trust_remote_code"] or getattr(config, "quantization_config", None) is not None:
        return None
    with _reading("model", source):
        model = read_rounded(source, config, bits)
        if model is not None:
            _own_generation_config(model, source)
    return model


def _own_generation_config(model, source: Source) -> None:
    """The ends and settings beside the weights count, as ``from_pretrained`` reads them for a folder."""
    from transformers import GenerationConfig

    if (source.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    elif not source.gguf:
        found = GenerationConfig.from_pretrained(source.folder, "config.json", _from_model_config=True)
        model.generation_config = found


def _read_folder(source: Source, config, dtype: torch.dtype, options: dict):
    from transformers import AutoModelForCausalLM

    # Another shape is then in the report, with the others, and not an error of its own.
    how = {"config": config, "dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with _reading("model", source):
        return AutoModelForCausalLM.from_pretrained(source.folder, **how, **options)


def _check_report(source: Source, report: dict) -> None:
    """ValueError unless the files hold all weights of the model and nothing else; tied ones are not missing."""
    for key, what in (
        ("missing_keys", "lacks {} weights, which would be random"),
        ("unexpected_keys", "has {} weights for which its config has no place"),
        ("mismatched_keys", "has {} weights of another shape than its config says"),
    ):
        if found := sorted(name if isinstance(name, str) else name[0] for name in report[key]):
            few = ", ".join(found[:3]) + ", ..." * (len(found) > 3)
            raise ValueError(f"{source.name} is not one whole model: it {what.format(len(found))} ({few})")
    if report.get("error_msgs"):
        raise ValueError(f"{source.name} is not one whole model: {report['error_msgs'][0]}")


def check_values(model) -> None:
    """ValueError for weights that no training has made: NaN among a few numbers of each, or all rows equal.

    Only samples are read, so that it takes milliseconds: a NaN elsewhere shows in the first forward that uses it.
    """
    broken = {name: _sample(weight).isnan().any() for name, weight in model.named_parameters() if _readable(weight)}
    for name, part in (("embedding", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        weight = None if part is None else part._parameters.get("weight")  # asking for a packed one would unpack it
        if weight is not None and _readable(weight) and weight.dim() == 2 and len(weight) > 1:
            rows = weight.detach()[:: max(1, len(weight) // ROWS)]
            broken[f"all rows of the {name}"] = (rows == rows[:1]).all() | rows.isnan().any()
    found = _true(broken)
    if found:
        what = f"{found[0]} are equal, or NaN" if found[0].startswith("all rows") else f"{found[0]} has NaN"
        name = model.config.name_or_path or model.config.model_type
        raise ValueError(f"the weights of {name} are broken: {what}; load them again, in a wider dtype if need be")


def _true(flags: dict[str, torch.Tensor]) -> list[str]:
    """Names of the true ones; one read for all on a device."""
    if not flags:
        return []
    read = torch.stack([flag.to(next(iter(flags.values())).device) for flag in flags.values()]).tolist()
    return [name for name, value in zip(flags, read, strict=True) if value]


def _sample(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten()[:: max(1, math.ceil(weight.numel() / SAMPLE))]


def _readable(weight) -> bool:
    """Neither quantised nor offloaded."""
    return (
        type(weight) is torch.nn.Parameter and weight.is_floating_point() and not weight.is_meta and weight.numel() > 0
    )
