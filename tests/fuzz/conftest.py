"""A worker for the cases of a test run, in which a crash is a finding and not the end of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz_watch import Watch


@pytest.fixture(scope="session")
def watch() -> Iterator[Watch]:
    """Started with the first case."""
    with Watch() as watching:
        yield watching
