"""Tiny models saved in folders, with a tokenizer whose tokens are the words w3 to w36."""

from pathlib import Path

from tiny_models import tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}w3 {{ m['content'] }} w4{% endfor %}"


def word_tokenizer(words: str = "w", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of words, which start with ``words``."""
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"{words}{i}": i for i in range(3, 37)}
    inner = Tokenizer(WordLevel(vocab, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )
    tokenizer.chat_template = template
    return tokenizer


def save(folder: Path, seed: int, words: str = "w", template: str | None = TEMPLATE, layers: int = 1) -> str:
    """Save a model and its tokenizer; the folder."""
    tiny(seed=seed, layers=layers).model.save_pretrained(folder)
    word_tokenizer(words, template).save_pretrained(folder)
    return str(folder)
