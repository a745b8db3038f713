"""Linear layers and embeddings whose matrices have 4 or 8 bits a weight, multiplied by ``integer_products``."""

import torch
from torch import Tensor, nn

from decoding.kernels.integer_products import GROUP, TILE, IntegerMatrix, multiply

CHUNK = 2**24
"""Weights that are rounded at once: what is in float32 at a time stays below a few hundred megabytes."""


class IntegerLinear(nn.Linear):
    """``nn.Linear`` over an ``IntegerMatrix``, for inference: the weight has no gradient and no float form.

    Activations are float32. A row of the result has the same bits whatever rows are beside it. ``matrix``, a part of
    one that serves several layers, may hold the rows in another order: row ``restore[i]`` of it is output i.
    """

    def __init__(self, matrix: IntegerMatrix, bias: Tensor | None = None):
        nn.Module.__init__(self)  # nn.Linear's would allocate a weight
        self.in_features, self.out_features = matrix.columns, matrix.outputs
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.hold(matrix, bias)

    def hold(self, matrix: IntegerMatrix, bias: Tensor | None, restore: Tensor | None = None) -> None:
        """Multiply with ``matrix``, and ``bias`` in the order of its rows, from now on."""
        self.matrix, self.restore = matrix, restore
        self.codes, self.scales = nn.Buffer(matrix.codes), nn.Buffer(matrix.scales)
        self.shift = torch.zeros(len(matrix.codes) * TILE)
        if bias is not None:
            self.shift[: len(bias)] = bias.detach()

    @property
    def weight(self) -> Tensor:
        """A float32 copy [out, in]: for those who look at weights, not for products."""
        dense = self.matrix.dense()
        return dense if self.restore is None else dense[self.restore]

    def forward(self, x: Tensor) -> Tensor:
        y = multiply(x.float(), self.matrix, self.shift)
        return y if self.restore is None else y[..., self.restore]

    def _apply(self, fn, recurse=True) -> nn.Module:
        return self  # neither another dtype nor another device


class IntegerEmbedding(nn.Embedding):
    """``nn.Embedding`` over an ``IntegerMatrix``, which may be that of a tied head; ``factor`` scales what is read."""

    def __init__(self, matrix: IntegerMatrix, factor: Tensor | None = None):
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = matrix.outputs, matrix.columns, None
        self.matrix, self.factor = matrix, factor
        self.codes, self.scales = nn.Buffer(matrix.codes), nn.Buffer(matrix.scales)

    @property
    def weight(self) -> Tensor:
        """A float32 copy [rows, width]."""
        return self.matrix.dense()

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.matrix.rows(ids)
        return rows if self.factor is None else rows * self.factor

    def _apply(self, fn, recurse=True) -> nn.Module:
        return self


def rounded(weight: Tensor, bits: int) -> IntegerMatrix:
    """``weight`` [N, K] rounded to the nearest of ``2**bits`` values between the ends of each 32 neighbours of a row.

    Raises ValueError unless 32 divides K.
    """
    outputs, columns = weight.shape
    if columns % GROUP:
        raise ValueError(f"a matrix of {columns} columns has no whole groups of {GROUP}")
    step = max(1, CHUNK // columns // TILE) * TILE
    parts = [_rounded(part.float(), bits) for part in weight.detach().split(step)]
    return IntegerMatrix.stacked(parts, outputs)


def _rounded(weight: Tensor, bits: int) -> IntegerMatrix:
    groups, most = weight.unflatten(1, (-1, GROUP)), 2**bits - 1
    low, high = groups.aminmax(dim=-1)
    low, scale = (value.half().float() for value in (low, (high - low) / most))
    codes = ((groups - low[..., None]) / scale[..., None].clamp_min(1e-30)).round_().clamp_(0, most)
    return IntegerMatrix.pack(codes.to(torch.uint8).flatten(1), scale, low, bits)


def multiplied(model: nn.Module, name: str, shape) -> bool:
    """Whether a weight of a transformers model is a linear layer's or the embedding's, and has whole groups."""
    module, _, last = name.rpartition(".")
    part = model.get_submodule(module)
    matrix = type(part) is nn.Linear or part is model.get_input_embeddings()
    return last == "weight" and len(shape) == 2 and shape[1] % GROUP == 0 and matrix


def put(model: nn.Module, matrices: dict[str, IntegerMatrix]) -> None:
    """Let the layers of ``model`` whose weights are named use ``matrices``; a tied head shares the embedding's."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for name, matrix in matrices.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        if module is embedding:
            factor = getattr(module, "embed_scale", None)
            model.set_input_embeddings(IntegerEmbedding(matrix, None if factor is None else torch.as_tensor(factor)))
            if tied:
                model.set_output_embeddings(IntegerLinear(matrix, head.bias))
        else:
            parent, _, last = name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(parent), last, IntegerLinear(matrix, module.bias))


def quantise(model: nn.Module, bits: int) -> None:
    """Round the matrices of ``model`` to 4 or 8 bits, each freed before the next; all else becomes float32."""
    tied = getattr(model.get_output_embeddings(), "weight", None) is model.get_input_embeddings().weight
    names = [name for name, weight in model.named_parameters() if multiplied(model, name, weight.shape)]
    matrices = {}
    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        matrices[name] = rounded(module.weight, bits)
        empty = nn.Parameter(torch.empty(module.weight.shape, device="meta"))
        if tied and module is model.get_input_embeddings():
            model.get_output_embeddings().weight = empty
        module.weight = empty
    put(model, matrices)
    model.float()
