"""The timing table of a toy job takes a moment."""

import pytest
from tiny_runs import quick_timing


@pytest.fixture(scope="module", autouse=True)
def _quick_timing():
    with quick_timing():
        yield
