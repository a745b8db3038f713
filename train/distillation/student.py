"""The drafter before training: a new one with the target's embedding in fewer dimensions, or an existing one."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from decoding.models.defaults import load_model
from decoding.models.lm import LM
from decoding.models.memory import GIB, available
from decoding.models.vocabulary import check_compatible
from policies.storage import tensors
from train.distillation.checkpoint import fill
from train.distillation.grow import grow

CONTEXT = 2048
"""positions of a drafter whose target counts none (ALiBi)"""
TRAINED = 16
"""bytes of a weight that is trained: itself, its gradient and Adam's two moments, in float32"""


def student(config, target: LM) -> LlamaForCausalLM:
    """The drafter that ``config`` (resolved settings) asks for, float32, on the target's device.

    Raises ValueError for a drafter to start from that does not fit the target.
    """
    if config.init is None:
        check_memory(config, target.model.config.vocab_size, target.device)
        drafter = new_drafter(target.model, config.layers, config.width, config.heads, config.inner)
    else:
        drafter = existing_drafter(config.init, target)
        size = config.layers, config.width, config.heads, config.inner
        if size != (None,) * 4:
            check_memory(config, drafter.config.vocab_size, target.device)
            drafter = grow(drafter, *size)
    source = target.model.generation_config
    # The drafter must end answers as the target does; chat models have more EOS ids than their config names.
    drafter.generation_config = GenerationConfig(
        bos_token_id=source.bos_token_id, eos_token_id=source.eos_token_id, pad_token_id=source.pad_token_id
    )
    return drafter.to(target.device)


def check_memory(config, vocab: int, device: torch.device) -> None:
    """ValueError, with sizes in GiB, for a drafter of the size in ``config`` that cannot be trained on ``device``."""
    layers, width = config.layers or 1, config.width or 1  # None: those of --init, which are there already
    inner = config.inner or 4 * width
    needed = TRAINED * width * (vocab + layers * (4 * width + 3 * inner))
    if needed > (room := available(device)):
        raise ValueError(
            f"a drafter of {layers} layers, --width {width} and --inner {inner} takes {needed / GIB:.1f} GiB of memory "
            f"to train, but {device} has {room / GIB:.1f} GiB; take smaller ones"
        )


def new_drafter(target, layers: int, width: int, heads: int, inner: int) -> LlamaForCausalLM:
    """A Llama of the given size whose token embedding is the truncated SVD of that of ``target`` (transformers)."""
    drafter = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=target.config.vocab_size,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=getattr(target.config, "max_position_embeddings", CONTEXT),
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=target.config.bos_token_id,
            eos_token_id=target.config.eos_token_id,
        )
    )
    embedding = principal_directions(target.get_input_embeddings().weight.detach().float(), width)
    # With rows of mean norm 1, the tied head starts with logits of unit spread instead of confident errors.
    embedding /= embedding.norm(dim=1).mean()
    drafter.get_input_embeddings().weight.data[:, : embedding.shape[1]] = embedding.to(drafter.device)
    return drafter


def principal_directions(weight: torch.Tensor, width: int) -> torch.Tensor:
    """[rows, min(width, columns)] the truncated SVD, U S, of ``weight`` [rows, columns].

    Computed as W V with the eigenvectors V of the small matrix W' W, because an SVD of W takes minutes.
    """
    _, vectors = torch.linalg.eigh(weight.T @ weight)  # ascending
    return weight @ vectors[:, -width:].flip(1)


def existing_drafter(source: str, target: LM) -> LlamaForCausalLM:
    """A drafter to go on from: a checkpoint of a run (.safetensors), a folder, a .gguf file or a hub id.

    Raises ValueError when its vocabulary is not the target's.
    """
    if source.endswith(".safetensors"):
        drafter = _from_checkpoint(Path(source))
    else:
        lm = load_model("--init", source, dtype="float32")
        check_compatible([lm, target])
        drafter = _plain(lm.model)
    if drafter.config.vocab_size != target.model.config.vocab_size:
        sizes = f"{drafter.config.vocab_size} tokens, the target {target.model.config.vocab_size}"
        raise ValueError(f"--init {source} has a vocabulary of {sizes}; they must be the same")
    return drafter


def _plain(model):
    """The same weights in a model without the layers and the attention that ``LM`` installs for decoding."""
    config = type(model.config).from_dict(model.config.to_dict())
    plain = type(model)._from_config(config, attn_implementation="sdpa")
    plain.load_state_dict(model.state_dict())
    return plain


def _from_checkpoint(path: Path) -> LlamaForCausalLM:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    found, about = tensors.read(path, "give another --init")
    if "config" not in about:
        raise ValueError(f"{path} is not a checkpoint of a distillation; give the drafter's folder instead")
    drafter = LlamaForCausalLM(LlamaConfig.from_dict(json.loads(about["config"])))
    fill(path, found, drafter)
    return drafter
