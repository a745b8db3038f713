"""MTAD and MMTAD in lists and dicts, by plain forwards of whole texts, with the same noise."""

import math
from itertools import pairwise

import torch
from acceptance_laws import warped

from decoding.state.sampling import DRAW, REPLACE, counter_noise


class Unsure(Exception):
    """Two choices are so near that rounding may decide."""


class Reference:
    """``write`` one text by MTAD; the models are transformers' own."""

    def __init__(self, draft, target, beams, length, tau, tree, filtered, sampling, ends=(), near=1e-4):
        self.models, self.known = (draft, target), ({}, {})
        self.beams, self.length, self.tau, self.tree = beams, length, tau, tree
        self.filtered, self.sampling, self.ends, self.near = filtered, sampling, ends, near

    @torch.no_grad()
    def logits(self, which, texts):
        """[vocab] after each of ``texts``, all of one length."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known[which]]
        if new:
            self.known[which].update(zip(new, self.models[which](torch.tensor(new)).logits[:, -1], strict=True))
        return [self.known[which][text] for text in texts]

    def logs(self, which, texts, drawn):
        """Lists of log-probabilities after each of ``texts``: those drawn from, or of the softmax."""
        logits = torch.stack(self.logits(which, texts))
        p = warped(logits, self.sampling) if drawn else logits.double().softmax(-1)
        return p.log().tolist()

    def apart(self, *values):
        """Raise Unsure unless finite values differ by more than rounding."""
        values = sorted(v for v in values if math.isfinite(v))
        if any(b - a < self.near for a, b in pairwise(values)):
            raise Unsure

    def uniform(self, place, stream):
        return float(counter_noise(torch.tensor(self.seed), torch.tensor(place), stream))

    def write(self, prompt, budget, seed):
        """The rounds of an answer, each a list of tokens, and whether rounding let it come to its end."""
        self.seed, rounds, answer = seed, [], []
        while len(answer) < budget and not (answer and answer[-1] in self.ends):
            try:
                rounds.append(self.round((*prompt, *answer), len(answer), budget))
            except Unsure:
                return rounds, False
            answer += rounds[-1]
        return rounds, True

    def round(self, text, written, budget):
        depth = min(self.length, budget - written - 1)
        levels = self.draft(text, written, depth)
        kept = self.accept(text, levels)
        if kept and kept[-1] in self.ends:
            return list(kept)
        return [*kept, self.after(text + kept, written * (self.length + 1) + len(kept))]

    def draft(self, text, written, depth):
        """[{block: log-weight}] for every level, in the order of their beams; an ended block repeats its end."""
        levels, vocab = [{(): 0.0}], self.models[0].config.vocab_size
        for level in range(depth):
            blocks = list(levels[-1])
            q = self.logs(0, [text + block for block in blocks], drawn=not self.sampling.greedy)
            grown = {}
            for i, block in enumerate(blocks):
                if block and block[-1] in self.ends:
                    found = {block[-1]: 0.0}
                else:
                    found = {x: log for x, log in enumerate(q[i]) if log > -math.inf}
                for x, log in found.items():
                    place = (written * self.length + level) * self.beams * vocab + i * vocab + x
                    grown[(*block, x)] = levels[-1][block] + log, self.gumbel(place)
            ranked = sorted(grown, key=lambda block: -sum(grown[block]))
            self.apart(*(sum(grown[block]) for block in ranked[self.beams - 1 : self.beams + 1]))
            kept = set(ranked[: self.beams])
            levels.append({block: weight for block, (weight, _) in grown.items() if block in kept})
        return levels[1:]

    def gumbel(self, place):
        return 0.0 if self.sampling.greedy else -math.log(-math.log(self.uniform(place, DRAW) + 2.0**-24))

    def joint(self, which, text, block):
        """Log-probability of a block, up to its end."""
        total = 0.0
        for i, x in enumerate(block):
            if i and block[i - 1] in self.ends:
                break
            step = self.logs(which, [text + block[:i]], drawn=self.filtered)[0][x]
            total = total + step
        return total

    def accept(self, text, levels):
        """The tokens kept of a block."""
        if not levels:
            return ()
        weights = levels[-1]
        best = max(weights, key=weights.get)
        self.apart(*sorted(weights.values())[-2:])
        bar, kept = math.log(self.tau) if self.tau else -math.inf, ()
        for depth, level in enumerate(levels, 1):
            log_q = self.joint(0, text, best[:depth])
            blocks = level if self.tree else [best[:depth]]
            found = {block: self.joint(1, text, block) for block in blocks}
            for log_p in found.values():
                self.apart(log_p - log_q, bar)
            passed = {block: log_p for block, log_p in found.items() if log_p - log_q > bar}
            if passed:
                kept = max(passed, key=passed.get)
                close = sorted(passed.values())[-2:]
                if len(close) == 2:
                    self.apart(*close)
        return kept[: next((i + 1 for i, x in enumerate(kept) if x in self.ends), len(kept))]

    def after(self, text, place):
        """The target's own next token."""
        (logits,) = self.logits(1, [text])
        if self.sampling.greedy:
            self.apart(*logits.double().topk(2).values.tolist())
            return int(logits.argmax())
        cumulative = warped(logits[None], self.sampling)[0].cumsum(0)
        u = self.uniform(place, REPLACE)
        if (cumulative - u).abs().min() < self.near / 10:
            raise Unsure
        return int((cumulative <= u).sum())
