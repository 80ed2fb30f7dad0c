"""``target="triton"`` through the front door, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_places import PLACES, run_tests


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_front_door(place: str) -> None:
    run_tests(Path(__file__).parent / "kernels" / "test_front_door.py", place)
