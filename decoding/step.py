"""The step that a decision is taken on, and the policy that takes it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor


@dataclass(slots=True)
class Step:
    """Everything a policy may read, as raw tensors with one leading shape ``[...]``.

    The leading shape is ``[batch]`` for a hand-off or a draft-length decision, ``[batch, k]`` when ``k``
    drafted tokens are verified at once, and ``[n]`` for rows read back from traces.
    """

    logits: Tensor | None
    """[..., vocab] logits of the model that is about to write, after the processors of the text's generation_config,
    before temperature and filters; None in replay. A processor may rule out the token of which the model is surest:
    the risk to judge is that of the token that is written then."""
    position: Tensor
    """[...] tokens of the answer already written; 0 at the first."""
    since_large: Tensor
    """[...] tokens written since the larger model last wrote or checked one (before that: since the prompt)."""
    agreed: Tensor
    """[...] 1 where the larger model, when last asked, chose the smaller one's token, else 0; NaN before that."""
    large_entropy: Tensor
    """[...] entropy in nats of the larger model's distribution when it was last asked; NaN before."""
    last_token: Tensor
    """[...] id of the token before this position."""
    uniform: Tensor | None
    """[...] noise in [0, 1), a function of seed, row and position only; None unless the policy reads it."""
    repeated: Tensor | None = None
    """[...] length of the longest suffix of the answer that also occurs earlier in it, at most 8: a loop begins.
    A small model in a loop is confident, so no other feature shows it. None unless the policy reads it."""
    hidden: Tensor | None = None
    """[..., width] last hidden state of the model about to write; None unless the policy needs it."""
    target_logits: Tensor | None = None
    """[..., vocab] logits of the larger model at this position; verification only."""
    token: Tensor | None = None
    """[...] id of the drafted token being verified; verification only."""
    columns: Mapping[str, Tensor] | None = None
    """Features [...] by name, computed before; rows read back from traces have these and no logits."""
    history: Tensor | None = None
    """[..., window, k] the values that the policy recorded at the ``window`` positions before this one, oldest first;
    NaN where there was none."""
    shared: dict[str, Any] | None = None
    """Intermediate results that several features of this step use; None where its logits may change."""


class Policy(Protocol):
    """A decision: bool [...], True where the token escalates, the draft ends, or a drafted token is trusted too little.

    Any callable will do. ``PolicyNeeds`` lists the attributes that a policy may have besides.
    """

    def __call__(self, step: Step) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class PolicyNeeds:
    """The optional attributes of a policy, read here and nowhere else, with what holds for a policy without them."""

    names: tuple[str, ...] | None  # features it reads, None for all: expensive fields are only filled if listed
    needs_hidden: bool  # whether it reads ``Step.hidden``
    history: tuple[str, ...]  # names of the values that ``observe`` returns
    window: int  # earlier positions that ``Step.history`` covers
    observe: Callable[[Step], Tensor] | None  # values [..., len(history)] to record at the position of a step
    compiled: Callable[[Any], Callable[..., Tensor] | None]  # for a ``PolicyState``, a faster ``decide``, or None
    needs_target: bool  # whether it reads ``Step.target_logits``, which only drafted tokens have
    hidden_width: int | None  # of the hidden states that it reads, None for any
    tokens: int | None  # length of its table of token classes, None without one
    recording: Hashable | None  # equal where decisions are the same operations on buffers of the same shapes, or None
    never: bool  # whether it never says True, as a ``kind`` of "never" tells: a decoder need not call it

    @classmethod
    def of(cls, policy: Policy) -> PolicyNeeds:
        # Looked up on the class: a wrapper that forwards attributes must receive the call.
        compiled = getattr(type(policy), "compiled", None)
        return cls(
            names=getattr(policy, "names", None),
            needs_hidden=getattr(policy, "needs_hidden", False),
            history=tuple(getattr(policy, "history", ())),
            window=getattr(policy, "window", 0),
            observe=getattr(policy, "observe", None),
            compiled=(lambda policy_state: None) if compiled is None else partial(compiled, policy),
            needs_target=getattr(policy, "needs_target", False),
            hidden_width=getattr(policy, "hidden_width_", None),
            tokens=None if getattr(policy, "classes", None) is None else len(policy.classes),
            recording=policy.recording if hasattr(type(policy), "recording") else None,
            never=getattr(policy, "kind", None) == "never",
        )

    def reads(self, name: str) -> bool:
        """Whether the policy may read the feature ``name``."""
        return self.names is None or name in self.names

    def check(self, lm: Any, target: bool = False) -> None:
        """ValueError when the policy cannot decide about tokens that the model ``lm`` is about to write.

        target: whether its Step holds the larger model's distribution.
        """
        if self.needs_target and not target:
            raise ValueError(
                "the policy reads what the large model says of drafted tokens, so it can only accept drafts; "
                "tune one that hands off or ends drafts"
            )
        width = getattr(getattr(lm.model, "config", None), "hidden_size", None)
        if self.needs_hidden and width is not None and self.hidden_width not in (None, width):
            raise ValueError(
                f"the policy reads hidden states of width {self.hidden_width}, and those of {lm.name} have {width}; "
                f"tune one for this model"
            )
        if self.tokens is not None and self.tokens < lm.vocab:
            raise ValueError(
                f"the policy's table of token classes has {self.tokens} tokens, and {lm.name} has {lm.vocab}; "
                f"tune one for this tokenizer"
            )
