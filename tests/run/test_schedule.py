from __future__ import annotations

import pytest

from tag2mask.run.schedule import warm_cosine


def test_it_warms_up_and_ends_at_nothing() -> None:
    assert [warm_cosine(step, 110, 10) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert warm_cosine(60, 110, 10) == pytest.approx(0.5)
    assert warm_cosine(109, 110, 10) < 0.001
    assert warm_cosine(110, 110, 10) == pytest.approx(0)


def test_a_warm_up_longer_than_the_training_ends_with_it() -> None:
    assert [warm_cosine(step, 40, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm_cosine(39, 40, 100) < 0.01
    assert warm_cosine(0, 4, 100) == 1.0
