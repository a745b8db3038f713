"""Every acceptance rule from its paper, in plain Python on lists of probabilities: no tensors, no logs kept."""

import math
from dataclasses import dataclass


@dataclass
class Case:
    """One drafted block: tokens x of length n; p, q filtered and P, Q plain probabilities, one list per place."""

    x: tuple
    p: list
    q: list
    P: list
    Q: list
    greedy: bool

    @property
    def n(self):
        return len(self.x)


def normal(weights):
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else None


def best(values):
    return max(range(len(values)), key=lambda v: values[v])


def left(p, q):
    """What is left of p once q has had its turn; p where nothing is."""
    return normal([max(0.0, a - b) for a, b in zip(p, q, strict=True)]) or p


def outcome(case, keeps, rejected):
    """[(probability of keeping exactly a tokens, law of the next)] from the chance to keep each token in turn."""
    result, reached = [], 1.0
    for i in range(case.n):
        result.append((reached * (1 - keeps[i]), rejected(i)))
        reached *= keeps[i]
    return [*result, (reached, case.p[case.n])]


def from_target(case, keeps):
    return outcome(case, [float(k) for k in keeps], lambda i: case.p[i])


def exact(case, target=None):
    p = case.p if target is None else target
    keeps = [min(1.0, p[i][x] / case.q[i][x]) for i, x in enumerate(case.x)]
    return outcome(case, keeps, lambda i: left(p[i], case.q[i]))


def block(case):
    """With its loop; the last prefix that passes is kept."""
    n, prefix, passes = case.n, [1.0], [1.0]
    for i, x in enumerate(case.x, 1):
        prefix.append(min(1.0, prefix[-1] * case.p[i - 1][x] / case.q[i - 1][x]))
        if i == n:
            passes.append(prefix[i])
        else:
            s = sum(max(0.0, prefix[i] * a - b) for a, b in zip(case.p[i], case.q[i], strict=True))
            passes.append(s / (s + 1 - prefix[i]) if s + 1 - prefix[i] > 0 else 1.0)
    result = []
    for a in range(n + 1):
        later = math.prod(1 - passes[i] for i in range(a + 1, n + 1))
        after = case.p[n] if a == n else left([prefix[a] * v for v in case.p[a]], case.q[a])
        result.append((passes[a] * later, after))
    return result


def lenient(case, lenience):
    if case.greedy:
        return from_target(case, [case.P[i][x] >= lenience * max(case.P[i]) for i, x in enumerate(case.x)])
    keeps = [min(1.0, case.p[i][x] / (lenience * case.q[i][x])) for i, x in enumerate(case.x)]
    return outcome(case, keeps, lambda i: left(case.p[i], case.q[i]))


def typical(case, epsilon, delta):
    def bar(p):
        entropy = -sum(v * math.log(v) for v in p if v > 0)
        return min(epsilon, delta * math.exp(-entropy))

    return from_target(case, [case.p[i][x] > bar(case.p[i]) for i, x in enumerate(case.x)])


def rollback(case, threshold):
    return from_target(
        case, [-math.log(case.P[i][x]) <= threshold or x == best(case.P[i]) for i, x in enumerate(case.x)]
    )


def kl(a, b):
    if any(u > 0 and v == 0 for u, v in zip(a, b, strict=True)):
        return math.inf
    return sum(u * math.log(u / v) for u, v in zip(a, b, strict=True) if u > 0)


def divergence(case, kind, threshold, filtered):
    def of(p, q):
        if kind == "tv":
            return sum(max(0.0, a - b) for a, b in zip(p, q, strict=True))
        if kind == "js":
            middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            return kl(p, middle) / 2 + kl(q, middle) / 2
        return kl(q, p) if kind == "kl" else kl(p, q)

    p, q = (case.p, case.q) if filtered else (case.P, case.Q)
    return from_target(case, [of(p[i], q[i]) <= threshold for i in range(case.n)])


def joint(case, tau, filtered):
    p, q = (case.p, case.q) if filtered else (case.P, case.Q)
    kept = 0
    for j in range(1, case.n + 1):
        above = math.prod(p[i][x] for i, x in enumerate(case.x[:j]))
        below = math.prod(q[i][x] for i, x in enumerate(case.x[:j]))
        kept = j if above > tau * below else kept
    return [(float(a == kept), case.p[a]) for a in range(case.n + 1)]


def fixed_ratio(case, tau, filtered):
    p, q = (case.p, case.q) if filtered else (case.P, case.Q)
    return from_target(case, [p[i][x] > tau * q[i][x] for i, x in enumerate(case.x)])


def cascade(case, rule, alpha):
    """Speculative sampling of the mixture, place by place."""

    def mixture(p, q, P, Q):
        tv = sum(max(0.0, b - a) for a, b in zip(p, q, strict=True))
        defer = {"chow": max(Q) < 1 - alpha, "diff": max(Q) < max(P) - alpha, "opt": max(Q) < max(P) - alpha * tv}
        if rule in defer:
            return p if defer[rule] else q
        passing = {
            "token_v1": [v >= max(P) - alpha for v in Q],
            "token_v2": [v >= max(P) - alpha for v in P],
            "token_v3": [v >= (1 - alpha) * max(P) for v in P],
        }[rule]
        others = 1 - sum(b for b, ok in zip(q, passing, strict=True) if ok)
        return [b * ok + a * others for a, b, ok in zip(p, q, passing, strict=True)]

    return exact(case, [mixture(case.p[i], case.q[i], case.P[i], case.Q[i]) for i in range(case.n)])


def judged(case, trusted):
    """``trusted(i)``: does the judge let token i pass?"""
    keeps = [1.0 if trusted(i) else min(1.0, case.p[i][x] / case.q[i][x]) for i, x in enumerate(case.x)]
    return outcome(case, keeps, lambda i: left(case.p[i], case.q[i]))
