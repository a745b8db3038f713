"""A pair of models as a model of lm-evaluation-harness: a decoder of ours writes, the large model gives likelihoods."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from decoding import Sampling, generate
from decoding.cli.options import Options, parse, use
from decoding.cli.tuned import as_tuned, load
from decoding.models.settings import end_tokens

OF_THE_HARNESS = ("max_length", "truncation", "logits_cache", "add_bos_token", "prefix_token_id", "softmax_dtype")
OF_THOUGHTS = ("think_end_token", "enable_thinking", "chat_template_args")
SAMPLING = ("top_k", "top_p", "min_p")
logger = logging.getLogger("lm_eval")


@register_model("two_model")
class TwoModel(HFLM):
    """The decoder that ``python -m decoding`` would build of the same options: policy, small, large, method, dtype ...

    Chat templates, batches, stop strings and likelihoods are those of the harness's own ``hf``. ``loglikelihood`` is
    the large model's alone, as a hand-off is a way to write and gives no distribution of its own. Raises ValueError or
    OSError, one sentence, for options that ``python -m decoding`` would refuse, and for llama.cpp.
    """

    def __init__(
        self,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        seed: int = 0,
        **given: Any,
    ):
        harness = {name: given.pop(name) for name in (*OF_THE_HARNESS, *OF_THOUGHTS) if name in given}
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # the harness says cuda:0 where its user names no device, and its own model does the same
        options = _options(given | ({} if device is None else {"device": device}))
        use(options.device, options.threads)
        if as_tuned(options)[1] != "torch":
            raise ValueError("lm-evaluation-harness needs models in torch; leave out backend=llama.cpp")
        found = load(options)
        self.decoder, self.seed = found.decoder(), seed
        last = found.models[-1]
        # They are tied; a tied weight that has been packed since must not be taken back.
        last.model.tie_weights = lambda *_, **__: None
        tokenizer = copy.deepcopy(last.tokenizer)  # the harness may give it a token to pad with
        super().__init__(
            last.model, "causal", tokenizer=tokenizer, batch_size=batch_size, max_batch_size=max_batch_size, **harness
        )

    def loglikelihood(self, requests, *given, **more):
        logger.warning("two_model: likelihoods are those of the large model alone, whatever decoder writes")
        return super().loglikelihood(requests, *given, **more)

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: Sequence[str], attention_mask=None, **how: Any
    ) -> torch.Tensor:
        """[rows, prompt + new] token ids; ``context`` is left-padded."""
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        return generate(
            self.decoder,
            context,
            attention_mask,
            max_new_tokens=max_length - context.shape[1],
            eos_token_id=sorted({self.eot_token_id, *end_tokens(self.decoder.models[-1])}),
            pad_token_id=self.tokenizer.pad_token_id,
            stop_strings=[text for text in stop if text != end],
            sampling=_sampling(how),
            seed=self.seed,
        ).sequences


def _options(given: dict[str, Any]) -> Options:
    """The options of ``python -m decoding`` that ``given`` names, as --model_args has them: with _ for -."""
    typed = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        typed += ([option] if value else []) if isinstance(value, bool) else [option, str(value)]
    options = parse(["-", *typed])
    options.dtypes.check()
    return options


def _sampling(how: dict[str, Any]) -> Sampling:
    """As the task says. ValueError for a setting of ``generate`` in transformers that has no counterpart here."""
    known = {"do_sample", "temperature", "use_cache", *SAMPLING}
    if strange := [name for name, value in how.items() if name not in known and value is not None]:
        raise ValueError(
            f"the task sets {', '.join(strange)}, which two_model does not have; leave it out of gen_kwargs"
        )
    if not how.get("do_sample") or not how.get("temperature"):
        return Sampling()
    return Sampling(how["temperature"], **{name: how[name] for name in SAMPLING if how.get(name) is not None})
