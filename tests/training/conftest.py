"""A folder of small photographs and a run on them that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import skimage.data

from pcsr.runtime.pictures import write_picture


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small photographs."""
    folder = tmp_path_factory.mktemp("photos")
    write_picture(folder / "astronaut.png", skimage.data.astronaut()[40:140, 150:260])
    write_picture(folder / "chelsea.png", skimage.data.chelsea()[60:150, 100:190])
    write_picture(folder / "coffee.png", skimage.data.coffee()[100:180, 200:310])
    return folder


@pytest.fixture
def tree() -> dict[str, Any]:
    """Configuration of a very small run, as YAML would give it."""
    phase = {"batch": 2, "pixels": 60, "warmup": 2}
    return {
        "network": {
            "backbone": "carn",
            "width": 8,
            "upsamplers": [[4], [8, 8]],
            "classifier": [5],
            "mean": [0.45, 0.44, 0.4],
        },
        "data": {"patch": 12, "scales": [1.5, 4.0]},
        "phases": {"backbone": {"steps": 12, **phase}, "decision": {"steps": 8, **phase}},
        "seed": 3,
    }
