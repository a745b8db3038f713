"""Small models with known relations, their transformers references, and small tokenizers."""

import copy

import torch
from kinds import tiny
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import PreTrainedTokenizerFast

from decoding import LM


def nudged(lm: LM, scale: float = 0.04, seed: int = 5) -> LM:
    """A copy whose weights have moved a little: a draft that is right about some tokens and wrong about others."""
    model = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)
    return LM(model, lm.tokenizer)


def eager(lm: LM):
    """The same weights in a transformers model of its own, with transformers' eager attention (Falcon: sdpa)."""
    config = lm.model.config
    # transformers' eager Falcon adds ALiBi twice, as the difference to its own default shows.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    config = type(config).from_dict(config.to_dict())
    model = type(lm.model)._from_config(config, attn_implementation=attention).eval()
    model.load_state_dict(lm.model.state_dict())
    assert model.config._attn_implementation == attention
    return model


def greedy(lm: LM, input_ids, attention_mask, new: int, eos: int | None = None) -> torch.Tensor:
    """[batch, prompt + new] what transformers' own generate writes, with the eager reference."""
    model = eager(lm)
    model.generation_config.eos_token_id = eos
    return model.generate(input_ids, attention_mask=attention_mask, max_new_tokens=new, do_sample=False, pad_token_id=0)


def ending_tokens(answers: torch.Tensor) -> list[int]:
    """Tokens of ``answers`` [batch, new] at which some rows end early and not all at one place, the best first."""

    def lengths(token):
        return [[*row.tolist(), token].index(token) for row in answers]

    new = answers.shape[1]
    useful = [t for t in answers.unique().tolist() if min(lengths(t)) < new - 2 and len(set(lengths(t))) > 1]
    return sorted(useful, key=lambda t: (len(set(lengths(t))), min(lengths(t))), reverse=True)


def successor(follows: dict[int, int], vocab: int = 16, tokenizer=None) -> LM:
    """A model that says ``follows[t]`` after t, and t + 1 by default: no layer does anything, the head is a table."""
    lm = tiny(layers=1, vocab_size=vocab, hidden_size=32, max_position_embeddings=64)
    table = torch.zeros(vocab, vocab)
    for token in range(vocab):
        table[token, follows.get(token, (token + 1) % vocab)] = 1
    with torch.no_grad():
        layer = lm.model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        lm.model.model.embed_tokens.weight.copy_(torch.eye(vocab, 32))
        lm.model.lm_head.weight.zero_()[:, :vocab] = table.T
    return LM(lm.model, tokenizer)


def words(size: int = 37, special=("<pad>", "<s>", "</s>"), swap: tuple[int, int] | None = None):
    """A tokenizer of ``size`` words: the special ones, then w3, w4, ..."""
    names = [*special, *(f"w{i}" for i in range(len(special), size))]
    if swap is not None:
        names[swap[0]], names[swap[1]] = names[swap[1]], names[swap[0]]
    core = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )


def characters():
    """A tokenizer of the 256 bytes: every character beyond ASCII takes several tokens."""
    core = Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)
