"""Tiny random models of every architecture, pairs with known relations, their transformers references, tokenizers."""

import copy

import torch
import transformers
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from decoding import LM

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.35,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 8
FALCON = {"ffn_hidden_size": 48, "num_kv_heads": 2}
SWITCHED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, **SWITCHED}
OPT = {"ffn_dim": 48, "init_std": 0.35, "dropout": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS = {
    "llama": ("Llama", {}),
    "llama-scaled": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, **SWITCHED}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {"attn_logit_softcapping": 2.0, **GEMMA}),
    "gemma3": ("Gemma3Text", GEMMA),
    "gpt2": ("GPT2", {"n_inner": 48}),
    "opt": ("OPT", {"word_embed_proj_dim": 32, **OPT}),
    "opt-projected": ("OPT", {"word_embed_proj_dim": 16, "do_layer_norm_before": False, **OPT}),
    "gpt_neox": ("GPTNeoX", {}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3-window": ("Phi3", {"sliding_window": WINDOW}),
    "olmo2": ("Olmo2", {}),
    "stablelm": ("StableLm", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": WINDOW}),
    "bloom": ("Bloom", {}),
    "bloom-six-heads": ("Bloom", {"hidden_size": 48, "num_attention_heads": 6}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen2_moe": ("Qwen2Moe", {"shared_expert_intermediate_size": 16, **EXPERTS}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, **EXPERTS}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "cohere": ("Cohere", {"logit_scale": 1.0}),
    "cohere2": ("Cohere2", {"logit_scale": 1.0, **SWITCHED}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "logits_scaling": 0.5}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "olmo": ("Olmo", {"clip_qkv": 2.0}),
    "olmo3": ("Olmo3", SWITCHED),
    "glm4": ("Glm4", {"head_dim": 8}),
    "falcon": ("Falcon", {"alibi": False, **FALCON}),
    "falcon-new": ("Falcon", {"alibi": False, "new_decoder_architecture": True, **FALCON}),
    "falcon-alibi": ("Falcon", {"alibi": True, **FALCON}),
    "falcon-alibi-heads": ("Falcon", {"alibi": True, "multi_query": False, **FALCON, "num_kv_heads": None}),
}


QUICK = ("llama", "gpt2", "gemma2", "bloom", "mixtral-window", "falcon-alibi", "qwen3", "fused llama", "fused gemma2")


def mostly_slow(values, quick=QUICK):
    """Values for ``parametrize``, those that are not ``quick`` only where slow tests run."""
    import pytest

    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def build(kind: str, **changes):
    """A transformers model of random weights, its configuration that of ``kind`` with ``changes``."""
    name, own = KINDS[kind]
    options = SHAPE | own | changes
    if "layer_types" in options:
        options["layer_types"] = options["layer_types"][-options["num_hidden_layers"] :]
    config = getattr(transformers, name + "Config")
    if not hasattr(config, "num_key_value_heads"):
        del options["num_key_value_heads"]
    return transformers.AutoModelForCausalLM.from_config(config(**options))


def tiny(kind: str = "llama", layers: int = 2, seed: int = 0, **changes) -> LM:
    """A random model small enough for exact comparisons; wide initial weights keep its distribution peaked."""
    torch.manual_seed(seed)
    return LM(build(kind, num_hidden_layers=layers, **changes))


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


@torch.no_grad()
def greedy_text(model, prompt, budget: int, eos) -> list[int]:
    """Token ids that a transformers model writes after a prompt, each from a fresh forward."""
    text = list(prompt)
    while len(text) < len(prompt) + budget and (len(text) == len(prompt) or text[-1] not in eos):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


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
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )


def characters():
    """A tokenizer of the 256 bytes: every character beyond ASCII takes several tokens."""
    core = Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core)
