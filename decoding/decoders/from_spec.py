"""The decoder that a tuned way of drafting asks for."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.acceptance.rules import rule
from decoding.decoders.mtad import MTAD
from decoding.decoders.specinfer import SpecInfer
from decoding.decoders.speculative import Speculative
from decoding.models.lm import LM
from decoding.step import Policy


def build_decoder(models: Sequence[LM], stop: Policy | None, role) -> Speculative | MTAD | SpecInfer:
    """[draft, target] as ``role`` (``policies.decoder_spec.DecoderSpec``) says; the policy ends drafts unless it is None.

    ``role`` says ``length``, ``keep``, ``accept`` (a rule by name, and its settings) and ``beams``. Several beams draft
    to the end: MTAD's, with ``tree`` MMTAD's, and where acceptance is exact a tree of SpecInfer's that branches at its
    root. A policy of the kind that never stops is not asked at all. ValueError for what the rule or the decoder cannot
    have.
    """
    if role.beams > 1 and "tau" in role.accept:
        return MTAD(models, role.beams, role.length, role.accept["tau"], role.tree)
    if role.beams > 1:
        return SpecInfer(models, [role.beams] + [1] * (role.length - 1))
    stop = None if getattr(stop, "kind", None) == "never" else stop
    return Speculative(models, role.length, stop, rule(**role.accept), role.keep)
