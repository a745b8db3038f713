"""The tests in a code prompt: doctest examples of the function to complete, or assert statements.

Each is split into expressions for the sandbox and a comparison outside of it: the answer's code never sees the right
values.
"""

import ast
import builtins
import doctest
import operator
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

OPERATORS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
}
ASSERT = re.compile(r"^[ \t]*(?:>>> )?(assert\b.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A doctest example; it passes with the expected output, printed or as an equal literal (1 is 1.0)."""

    source: str
    want: str
    error: str | None

    @property
    def expressions(self) -> tuple[str, ...]:
        return (self.source,)

    def passes(self, reply: dict[str, str]) -> bool:
        if self.error is not None or "raised" in reply:
            return reply.get("raised", "").strip() == (self.error or "").strip() != ""
        value = reply["value"]
        if same(value, self.want.strip(), operator.eq):
            return True
        shown = value + "\n" if value not in ("", "None") else ""
        matches = doctest.OutputChecker().check_output
        return any(matches(self.want, got, doctest.NORMALIZE_WHITESPACE) for got in (reply["printed"] + shown, shown))


@dataclass(frozen=True)
class Comparison:
    """``assert left == right`` (or <, in, ...): evaluated in the sandbox, compared outside."""

    left: str
    right: str
    compare: type[ast.cmpop]

    @property
    def expressions(self) -> tuple[str, ...]:
        return (self.left, self.right)

    def passes(self, left: dict[str, str], right: dict[str, str]) -> bool:
        if "raised" in left or "raised" in right:
            return False
        return same(left["value"], right["value"], OPERATORS[self.compare])


Check = Example | Comparison


def examples(docstring: str) -> list[Example]:
    """The ``>>>`` examples of a docstring; none when doctest or Python cannot read one of them."""
    try:
        found = doctest.DocTestParser().get_examples(docstring)
        ast.parse("\n".join(e.source for e in found))
    except (ValueError, SyntaxError):
        return []
    return [Example(e.source.strip(), e.want, e.exc_msg) for e in found]


def asserts(text: str) -> list[Comparison]:
    """The assert statements on lines of their own, without those that are not Python."""
    checks = []
    for line in ASSERT.findall(text):
        try:
            (statement,) = ast.parse(line.strip()).body
        except (SyntaxError, ValueError):
            continue
        match statement.test:
            case ast.Compare(left, [operation], [right]):
                checks.append(Comparison(ast.unparse(left), ast.unparse(right), type(operation)))
            case test:  # not bool(...), which an answer may redefine
                checks.append(Comparison(f"not not ({ast.unparse(test)})", "True", ast.Eq))
    return checks


def only_asserts(tests: str) -> list[Comparison]:
    """The asserts of ``tests`` where these are nothing else, a line each; else none."""
    checks, lines = asserts(tests), [line for line in tests.splitlines() if line.strip()]
    return checks if len(checks) == len(lines) else []


def redefined(checks: Iterable[Check]) -> list[str]:
    """Builtins that the answer must redefine (MBPP asks for a function `sum`).

    These are the names that all tests call, if all such names are builtins.
    """
    trees = [ast.walk(ast.parse("\n".join(check.expressions))) for check in checks]
    called = [{n.func.id for n in tree if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} for tree in trees]
    shared = set.intersection(*called) if called else set()
    return sorted(shared) if all(hasattr(builtins, name) for name in shared) else []


def independent(expression: str, answered: Iterable[str]) -> bool:
    """Whether an expression needs nothing of the answer, which defines the builtins ``answered``."""
    names = outside(expression)
    return names <= set(dir(builtins)) | sys.stdlib_module_names and not names & set(answered)


def outside(expression: str) -> set[str]:
    """The names that an expression does not bind itself."""
    names = [node for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)]
    return {node.id for node in names} - {node.id for node in names if not isinstance(node.ctx, ast.Load)}


def literal(expression: str) -> bool:
    try:
        ast.literal_eval(expression)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def same(left: str, right: str, compare) -> bool:
    """Compare two reprs as literals, or as text where one is not a literal."""
    values = (ast.literal_eval(left), ast.literal_eval(right)) if literal(left) and literal(right) else (left, right)
    try:
        return bool(compare(*values))
    except (TypeError, RecursionError):
        return False
