"""Where the tests find reference material that is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference checkpoints, golden cases and test pictures (`PCSR_SHARED`).

    A stranger's clone has none: the tests that need it skip and say so. With `PCSR_REQUIRE_SHARED=1` such
    a skip is a failure, so that continuous integration cannot pass by having nothing to compare with.
    """
    folder = Path(os.environ.get("PCSR_SHARED", ROOT.parent / "shared")).resolve()
    if not (folder / "reference" / "golden" / "manifest.json").is_file():
        reason = f"no reference material at {folder} (set PCSR_SHARED to the folder that has it)"
        if os.environ.get("PCSR_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Test data that lies in the repository."""
    return ROOT / "tests" / "data"
