"""Seeds of a sweep: a few in every run of the tests, the others with the slow ones."""

from __future__ import annotations

import pytest


def seeds(quick: int, most: int) -> pytest.MarkDecorator:
    """A test for each seed up to `most`; those from `quick` on are slow."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, most)]
    return pytest.mark.parametrize("seed", [*range(quick), *slow])
