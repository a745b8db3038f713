"""The distillation loss: cross-entropy to the target's top-k distribution and to its best token.

Up to a constant, the first part is KL(target || drafter) over the target's k best tokens (forward KL, as in
DistillSpec, Zhou et al., 2310.08461). The softmax's normaliser is taken over the whole vocabulary, or estimated.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from train.distillation.batches import Batch

CHUNK = 4096  # positions whose logits are in memory at a time


def distillation_loss(
    hidden: Tensor, head: Tensor, batch: Batch, hard: float, negatives: int = 0, chunk: int = CHUNK
) -> Tensor:
    """The mean over positions, weighted by ``batch.weights``, of log Z - (1 - hard) sum_k p_k z_k - hard z_best.

    hidden [m, width] at the real positions; head [vocab, width], so that the logits are z = head @ hidden; hard: the
    weight of the target's best token; negatives: random tokens that stand for all tokens outside the batch's labels
    (see ``candidates``), 0 for the whole vocabulary. Memory holds the logits of ``chunk`` positions at a time; the
    backward pass computes them again.
    """
    columns, correction = batch.labels, None
    if negatives:
        rows, columns, correction = candidates(batch.labels, len(head), negatives)
        head = head[rows]
    whole = hidden, columns, batch.probabilities, batch.weights
    parts = list(zip(*(x.split(chunk) for x in whole), strict=True))
    if len(parts) == 1:
        total = _chunk_loss(*parts[0], head, correction, hard)
    else:
        total = sum(
            checkpoint(_chunk_loss, *part, head, correction, hard, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        )
    return total / batch.weights.sum()


def candidates(labels: Tensor, vocabulary: int, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens for an estimate of the normaliser: the labels of the batch and random ones that stand for the rest.

    Returns token ids [c], the columns of ``labels`` [m, k] among them, and a correction [c] to add to the logits:
    log(rest / drawn) for the random ones, so that the sum of exponentials is an unbiased estimate.
    """
    own, columns = labels.unique(return_inverse=True)
    rest = torch.ones(vocabulary, dtype=torch.bool, device=labels.device)
    rest[own] = False
    rest = rest.nonzero().squeeze(1)
    drawn = rest[torch.randint(len(rest), (negatives,), device=labels.device)] if negatives < len(rest) else rest
    correction = torch.zeros(len(own) + len(drawn), device=labels.device)
    if len(drawn):
        correction[len(own) :] = math.log(len(rest) / len(drawn))
    return torch.cat([own, drawn]), columns, correction


def _chunk_loss(hidden, columns, probabilities, weights, head, correction: Tensor | None, hard: float) -> Tensor:
    logits = hidden @ head.T
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    normaliser = (logits if correction is None else logits + correction).logsumexp(-1)
    chosen = logits.gather(1, columns)
    soft, best = (chosen * probabilities).sum(-1), chosen[:, 0]
    return ((normaliser - (1 - hard) * soft - hard * best) * weights).sum()
