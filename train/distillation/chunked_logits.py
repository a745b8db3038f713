"""Logits over the whole vocabulary, few positions at a time: those of a batch would not fit into memory."""

from collections.abc import Iterator

import torch

CHUNK = 4096
"""positions whose logits are in memory at a time"""


def logits_in_chunks(model, ids: torch.Tensor, where: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits [n, vocab], n <= ``CHUNK``, of the model's own forward of ``ids`` [rows, longest] at ``where`` [m].

    ``where`` are positions in the flattened ``ids``. Architectures cap or scale what the head gives, so their forward
    calls it here: once over ``ids``, to take the hidden states that enter the head; then over one token per chunk,
    in place of which the head reads the hidden states of the chunk.
    """
    head, entered = model.get_output_embeddings(), []

    def take(_, inputs):
        entered.append(inputs[0])
        return inputs[0][:1, :1]

    with head.register_forward_pre_hook(take):
        model(ids, use_cache=False)
    hidden = entered[0].flatten(0, 1)
    for part in hidden[where.to(hidden.device)].split(CHUNK):
        with head.register_forward_pre_hook(lambda _, inputs, part=part: part[None]):
            logits = model(ids[:1, :1], use_cache=False).logits[0]
        yield logits
