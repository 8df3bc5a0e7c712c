"""A small suite for tests of `tokencake check`: two code writers, few blocks, a policy in a file."""

from __future__ import annotations

from pathlib import Path

from tokencake.cli import run

SUITE = """\
[defaults]
trace = "t.jsonl"
machine = "h100-llama-3.1-8b"
settings = { gpu_blocks = 850 }
policy = "mine.py:Mine"

[metrics]
app_latency_s.mean = { relative = 0.02 }
makespan_s = { relative = 0.02 }

[cases.one]
"""

POLICY = '''\
"""Calls in the order in which they came, or in another one."""

from tokencake.policies.interface import Plan
from tokencake.traces.events import CallArrived, CallFinished


class Mine:
    listens_to = frozenset({CallArrived, CallFinished})

    def plan(self, view):
        waiting = sorted(view.waiting.values(), key=lambda call: (call.arrived_at_s, call.request.id))
        return Plan(admit=tuple(call.request.id for call in waiting))
'''
ONE_AT_A_TIME = POLICY.replace("for call in waiting)", "for call in waiting[: not view.running])")
BACKWARDS = POLICY.replace("for call in waiting)", "for call in reversed(waiting))")


def make_suite(folder: Path, suite: str = SUITE, policy: str = POLICY) -> Path:
    """The suite with its trace and its policy, but no baselines yet. Its file."""
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", str(folder / "t.jsonl")]) == 0
    (folder / "mine.py").write_text(policy, encoding="utf-8")
    (folder / "tokencake.toml").write_text(suite, encoding="utf-8")
    return folder / "tokencake.toml"
