"""Makes policies once before the work starts, where they can do no harm: what is wrong with them is found then."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ...policies.registry import is_bound, is_ours, load_policy
from .workers import Worker


@lru_cache(maxsize=16)
def tried(policies: tuple[str, ...], seed: int, policy_timeout_s: float | None = None) -> Mapping[str, bool]:
    """Of each policy, whether it sees the future: see `is_bound`. Errors as `load_policy`.

    What is not this package's own is made in another process, which it may leave, or in which it may be ended.
    """
    theirs = [policy for policy in policies if not is_ours(policy)]
    bounds = {policy: try_out((policy, seed)) for policy in policies if is_ours(policy)}
    if theirs:
        worker = Worker(policy_timeout_s)
        try:
            for policy in theirs:
                bounds[policy] = worker.ask_of(policy, try_out, (policy, seed))
        finally:
            worker.end()
    return bounds


def try_out(asked: tuple[str, int]) -> bool:
    """Makes a policy with a seed: whether it sees the future."""
    policy, seed = asked
    load_policy(policy, seed=seed, applications=())
    return is_bound(policy)
