from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tag2mask.ops.pairs import disc_offsets, disc_paths, path_offsets, reach, window

# Written out from the definition: length, then row by row.
PATHS_OF_5 = (
    "0,1 1,0 0,2 2,0 0,3 1,-1 1,1 3,0 0,4 4,0 1,-2 1,2 2,-1 2,1 2,-2 2,2 1,-3 1,3 2,-3 2,3 3,-2 3,-1 3,1 3,2 "
    "1,-4 1,4 3,-3 3,3 4,-1 4,1 2,-4 2,4 4,-2 4,2"
)


@pytest.mark.parametrize(("radius", "count"), [(5, 34), (10, 152), (2, 4), (1.5, 4)])
def test_offsets_are_half_of_an_open_disc(radius, count):
    offsets = disc_offsets(radius)
    assert len(offsets) == len(set(offsets)) == count
    both = {(s * y, s * x) for y, x in offsets for s in (-1, 1)}
    inside = {(y, x) for y in range(-12, 13) for x in range(-12, 13) if 0 < y * y + x * x < radius**2}
    assert both == inside
    assert list(offsets) == sorted(offsets)
    assert reach(radius) == max(y for y, _ in offsets)


def test_irn_order_of_radius_5():
    assert " ".join(f"{y},{x}" for y, x in path_offsets(5)) == PATHS_OF_5
    lengths = Counter(len(path) for path in disc_paths(5))
    assert lengths == {2: 2, 3: 2, 4: 4, 5: 2, 6: 4, 7: 2, 8: 8, 10: 6, 11: 4}
    assert set(path_offsets(5)) == set(disc_offsets(5))
    assert path_offsets(5) != disc_offsets(5)


def test_a_path_by_hand():
    paths = {path[0]: path for path in disc_paths(5)}
    assert paths[1, -1] == ((1, -1), (0, -1), (1, 0), (0, 0))
    assert paths[0, 3] == ((0, 3), (0, 2), (0, 1), (0, 0))
    assert all(path[-1] == (0, 0) for path in paths.values())


def test_a_cell_that_is_one_away_is_on_no_path():
    """Down 3 and right 4 is a line of length 5, from which the cells marked o are exactly 1 away."""
    drawn = ("XX...", "XXXo.", ".oXXX", "...XX")
    cells = {(y, x) for y, row in enumerate(drawn) for x, sign in enumerate(row) if sign == "X"}
    exactly = {(y, x) for y in range(4) for x in range(5) if abs(3 * x - 4 * y) == 5}
    assert exactly == {(1, 3), (2, 1)}
    paths = {path[0]: path for path in disc_paths(10)}
    assert set(paths[3, 4]) == cells
    assert set(paths[3, -4]) == {(y, -x) for y, x in cells}
    assert set(paths[4, 3]) == {(x, y) for y, x in cells}


def pair_indices(size, radius, offsets):
    """Flat indices into a map of this size: sources (S,) and destinations (P, S)."""
    flat = torch.arange(size[0] * size[1]).view(size)
    return window(flat, radius).flatten(), torch.stack([window(flat, radius, each).flatten() for each in offsets])


@pytest.mark.parametrize("radius", [5, 10])
def test_paths_equal_irn(golden, radius):
    recorded = golden(f"clims/irn_path_index_r{radius}")
    size = tuple(recorded["size"].tolist())
    assert np.array_equal(recorded["search_dst"], path_offsets(radius))
    paths, start = disc_paths(radius), 0
    for group in range(int(recorded["n_groups"])):
        expected = recorded[f"search_path_{group}"]  # (paths, length, 2)
        mine = paths[start : start + len(expected)]
        assert np.array_equal(expected, mine)
        start += len(expected)
        if f"path_indices_{group}" in recorded:
            flat = torch.arange(size[0] * size[1]).view(size)
            cells = [[window(flat, radius, cell).flatten().numpy() for cell in path] for path in mine]
            assert np.array_equal(recorded[f"path_indices_{group}"], cells)
    assert start == len(paths)
    sources, destinations = pair_indices(size, radius, path_offsets(radius))
    assert np.array_equal(recorded["src_indices"], sources)
    assert np.array_equal(recorded["dst_indices"], destinations)


def test_pairs_equal_psa(golden):
    recorded = golden("clims/psa_pair_indices_r5")
    sources, destinations = pair_indices(tuple(recorded["size"].tolist()), int(recorded["radius"]), disc_offsets(5))
    assert np.array_equal(recorded["indices_from"], sources)
    assert np.array_equal(recorded["indices_to"], destinations)


def test_windows_are_views_and_sources_are_counted():
    maps = torch.zeros(3, 128, 128)
    seen = window(maps, 10, (9, -4))
    assert seen.shape[1] * seen.shape[2] == 13090
    seen += 1
    assert maps[:, 9:, 5:115].eq(1).all()
    assert maps.sum() == 3 * 13090


def test_too_small_a_map_is_refused():
    window(torch.zeros(5, 9), 5)
    for size in ((4, 9), (5, 8)):
        with pytest.raises(ValueError, match=r"expected at least \(5, 9\)"):
            window(torch.zeros(size), 5)
    with pytest.raises(ValueError, match="above 1"):
        disc_offsets(1)
