"""Makes policies once before the work starts, where they can do no harm: what is wrong with them is found then."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from ...policies.registry import is_bound, is_ours, load_policy


class SeededPolicy(NamedTuple):
    """A policy, as `load_policy` takes it, and the seed that it gets."""

    policy: str
    seed: int


@lru_cache(maxsize=16)
def preflight(policies: tuple[str, ...], seed: int, policy_timeout_s: float | None = None) -> Mapping[str, bool]:
    """Of each policy, whether it sees the future: see `is_bound`. Errors as `load_policy`.

    What is not this package's own is made in another process, which it may leave, or in which it may be ended.
    """
    theirs = [policy for policy in policies if not is_ours(policy)]
    bounds = {policy: make_once(SeededPolicy(policy, seed)) for policy in policies if is_ours(policy)}
    if theirs:
        from .processes.worker import Worker

        worker = Worker(policy_timeout_s)
        try:
            for policy in theirs:
                bounds[policy] = worker.ask_of(policy, make_once, SeededPolicy(policy, seed))
        finally:
            worker.end()
    return bounds


def make_once(seeded: SeededPolicy) -> bool:
    """Makes a policy: whether it sees the future. Errors as `load_policy`."""
    load_policy(seeded.policy, seed=seeded.seed, applications=())
    return is_bound(seeded.policy)
