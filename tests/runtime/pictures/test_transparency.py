"""What lies under transparent pixels must not be seen at their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pcsr.runtime.pictures import fill_transparent


def disc(dtype: Any, under: float) -> np.ndarray[Any, Any]:
    """An orange disc, opaque, on nothing; `under` is what the file has where nothing is seen."""
    full = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1.0)
    y, x = np.mgrid[:40, :50]
    inside = (y - 20) ** 2 + (x - 25) ** 2 < 150
    picture = np.full((40, 50, 4), under * full)
    picture[inside, :3] = np.array([1.0, 0.5, 0.1]) * full
    picture[..., 3] = inside * full
    return picture.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("under", [0, 1])
def test_invisible_colour_is_replaced_by_that_of_what_is_visible(dtype: Any, under: float) -> None:
    picture = disc(dtype, under)
    filled = fill_transparent(picture)

    assert filled.dtype == dtype
    np.testing.assert_array_equal(filled[..., 3], picture[..., 3])
    colour = picture[20, 25, :3]
    np.testing.assert_allclose(filled[..., :3].astype(float), np.broadcast_to(colour, (40, 50, 3)), rtol=1e-6)


def test_two_colours_reach_to_their_own_sides() -> None:
    picture = np.zeros((16, 64, 4), np.uint8)
    picture[:, :4] = (200, 0, 0, 255)
    picture[:, -4:] = (0, 0, 200, 255)
    filled = fill_transparent(picture)
    assert filled[8, 5, 0] > 190
    assert filled[8, 58, 2] > 190


@settings(deadline=None)
@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4)),
        elements=st.sampled_from([0, 1, 77, 255]),
    )
)
def test_visible_pixels_never_change_and_the_others_stay_among_their_colours(picture: Any) -> None:
    before = picture.copy()
    filled = fill_transparent(picture)
    visible = picture[..., 3] > 0

    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(filled[visible], picture[visible])
    if visible.any():
        seen = picture[visible][:, :3]
        assert (filled[..., :3] >= seen.min(axis=0)).all()
        assert (filled[..., :3] <= seen.max(axis=0)).all()
    else:
        np.testing.assert_array_equal(filled, picture)
