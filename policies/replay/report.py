"""`tokencake replay`: what a replay of recorded facts came to, as JSON and in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...traces.events import Began
from ...traces.results.reports.publishing import Outputs
from ..costs import LinearCosts
from ..foreign_code import supervise_foreign
from .replay import Parity, replay_file

LONGEST_SHOWN = 200  # characters of a field


def replay_and_report(
    events: Path,
    policy: str | None,
    seed: int | None,
    costs: LinearCosts | None,
    outputs: Outputs,
    inputs: Sequence[Path],
) -> int:
    """Play the recorded facts to a policy, and say whether its plans are the recorded ones. The exit code: 1 if not.

    Without a policy, a seed or costs those that are recorded are taken. `inputs`: all files that are read, `events`
    too. Errors as `replay_file`, and TokencakeError for an output that cannot be written.
    """
    outputs.check(inputs)
    if policy is not None:
        supervise_foreign([policy])
    setup, parity = replay_file(events, policy, seed, costs)
    outputs.publish(as_report(setup, parity), words(setup, parity))
    return 0 if parity.equal else 1


def as_report(setup: Began, parity: Parity) -> dict[str, object]:
    """As JSON: schema `tokencake.replay/1`."""
    first = parity.first
    return {
        "schema": "tokencake.replay/1",
        "policy": setup.policy,
        "seed": setup.seed,
        "costs": setup.costs._asdict(),
        **parity.record(),
        "equal": parity.equal,
        "first": first
        and {
            "plan": first.plan,
            "at_s": first.at_s,
            "fields": {
                name: {"recorded": recorded, "replayed": replayed}
                for name, (recorded, replayed) in first.fields.items()
            },
        },
    }


def words(setup: Began, parity: Parity) -> list[str]:
    """In words, a line each: how many plans, and the first difference field by field."""
    head = f"{parity.plans:,} plans of {setup.policy}, seed {setup.seed}: "
    if parity.equal:
        return [head + "all equal"]
    lines = [f"{head}{parity.different:,} different" + _behind(parity)]
    if parity.first is not None:
        lines.append(f"first difference: plan {parity.first.plan:,}, at {parity.first.at_s:.6f} s")
        for name, (recorded, replayed) in parity.first.fields.items():
            lines += [f"  {name}", f"    recorded  {_shown(recorded)}", f"    replayed  {_shown(replayed)}"]
    return lines


def _behind(parity: Parity) -> str:
    return f", {parity.not_replayed:,} behind them not replayed" if parity.not_replayed else ""


def _shown(value: object) -> str:
    text = "-" if value is None else json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
