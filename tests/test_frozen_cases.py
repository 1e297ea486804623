from __future__ import annotations

import numpy as np
import pytest

from frozen_cases import CASES, FROZEN, GOLDEN, read


def test_the_folder_holds_what_is_listed() -> None:
    files = {path.relative_to(FROZEN).with_suffix("").as_posix(): path for path in FROZEN.rglob("*.npz")}
    assert files.keys() == CASES.keys()
    assert (
        max(path.stat().st_size for path in files.values()) < 360_000
    )  # mctformer's weights, which no smaller part would do for


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_case_is_part_of_the_recorded_one(name) -> None:
    frozen = read(FROZEN / f"{name}.npz")
    assert all(array.dtype.kind in "biufU" and array.size for array in frozen.values())
    source = GOLDEN / f"{name}.npz"
    if source.exists():
        expected = CASES[name](read(source))
        assert frozen.keys() == expected.keys()
        for key, array in expected.items():
            assert (frozen[key].dtype, frozen[key].shape) == (array.dtype, array.shape), key
            if key == "pixels_coarse":  # worked out, so rounded as the processor does
                np.testing.assert_allclose(frozen[key], array, rtol=0, atol=1e-5)
            else:
                np.testing.assert_array_equal(frozen[key], array, err_msg=key)
