"""Numbers for which two masks of one input mean what the graph says: those that both take."""

from __future__ import annotations

import pytest

from tersor.ir.raising.fold_mask import _overlap

Domain = tuple[int | None, int | None]


@pytest.mark.parametrize(
    ("left", "right", "both"),
    [
        ((0, 1), (None, 3), (0, 1)),
        ((None, 3), (0, 1), (0, 1)),
        ((0, 9), (-2, 4), (0, 4)),
        ((None, None), (0, None), (0, None)),
        ((None, None), (None, None), (None, None)),
    ],
)
def test_domains_overlap(left: Domain, right: Domain, both: Domain) -> None:
    assert _overlap(left, right) == both
