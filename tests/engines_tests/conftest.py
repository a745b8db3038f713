"""The real pair, loaded once for all engines."""

import pytest
from engine_comparison import load_pair


@pytest.fixture(scope="session")
def pair():
    return load_pair()
