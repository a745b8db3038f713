"""Faults put into functions of the engine, by other source in their place."""

import inspect
import sys
import textwrap
from importlib import import_module


def mutate(monkeypatch, module, name, old, new):
    """Put the function or method ``name`` of ``module`` with ``new`` for ``old`` in its source in its place."""
    module = import_module(module)
    owner, _, method = name.rpartition(".")
    owner = getattr(module, owner) if owner else module
    original = getattr(owner, method)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(old) == 1, name
    scope = {}
    exec(compile(source.replace(old, new), "mutant", "exec"), vars(module), scope)
    ours = [some for name, some in sys.modules.items() if name.startswith("decoding")]
    for user in [owner, *(some for some in ours if getattr(some, method, None) is original)]:
        monkeypatch.setattr(user, method, scope[method])
