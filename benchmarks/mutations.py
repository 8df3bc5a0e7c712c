"""Does `tokencake check` notice a bug in a policy, and only a bug? Ten plausible ones, and fifty days without one.

    python benchmarks/mutations.py [--only NAME]... [--seeds 50] [--workers N] [--json FILE]

The suite is the project's own (`tokencake.toml`), with its tolerances; the baselines are written anew first, into a
temporary folder. Then each bug is put into Tokencake's policy, in this process, and the suite is checked: which cases
and metrics tell of it, and in how many cases the behaviour changed at all?

A check plays the draws that its baseline played, so an unchanged policy comes to the same figures, and the first line
of the trial shows that. The fifty other days are harder: the suite's repeated cases are played with other seeds, so
that all that varies in them is drawn anew, and their figures are judged against the baselines of seed 0 as if a change
of the policy had brought them about. None may fail.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

from exits import exit_code

from tokencake import __version__
from tokencake.policies.interface import Move
from tokencake.policies.parts.tool_times import ToolTimeEstimates
from tokencake.policies.tokencake.pins import Pins
from tokencake.policies.tokencake.published.partition import Partition
from tokencake.policies.tokencake.published.score_table import ScoreTable
from tokencake.policies.tokencake.published.spatial import PublishedSpace
from tokencake.policies.tokencake.published.uploads import Uploads
from tokencake.policies.tokencake.seniority_queue import SeniorityQueue
from tokencake.policies.tokencake.stalls import Stalls
from tokencake.policies.tokencake.time_half import StalledContexts
from tokencake.sim.gate.baseline import read_baseline
from tokencake.sim.gate.check import check_suite, run_suite
from tokencake.sim.gate.formats.report import report_of
from tokencake.sim.gate.formats.words import sentence
from tokencake.sim.gate.judge import Chance, judge
from tokencake.sim.gate.suite.suite import Suite
from tokencake.sim.gate.suite.suite_file import load_suite
from tokencake.sim.gate.update import update_suite
from tokencake.traces.files.outputs import check_outputs, outputs_of, write_whole

SUITE = Path(__file__).parents[1] / "tokencake.toml"
SCHEMA = "tokencake.mutations/1"
LATE_S = 1.0


class Mutation(NamedTuple):
    """A bug: what somebody got wrong, and what makes it so while it is entered."""

    about: str
    patch: Callable[[], AbstractContextManager[Any]]


# -- the bugs. Each replaces one method by what a slip of the hand would have made of it.

_weight, _own, _charge = SeniorityQueue.weight, ScoreTable.own, Partition.charge
_saves, _progress, _offload_finished = StalledContexts.saves, Uploads._progress, Stalls._offload_finished
_begin, _pins = PublishedSpace.begin, Pins.pins


def youngest_first(self: SeniorityQueue, rank: int, size: float) -> float:
    return -_weight(self, rank, size)


def least_urgent_first(self: ScoreTable, call: Any) -> float:
    return -_own(self, call)


def one_block_less(self: StalledContexts, view: Any) -> tuple[Move, ...]:
    return tuple(move._replace(blocks=move.blocks - 1) for move in _saves(self, view) if move.blocks > 1)


def late(self: Uploads, stall: Any, copy_s: float, now_s: float) -> tuple[float, float | None]:
    share, next_s = _progress(self, stall, copy_s, now_s - LATE_S)
    return share, None if next_s is None else next_s + LATE_S


def never_returned(self: Partition, charge: Any, sign: int = 1) -> None:
    if sign > 0:
        _charge(self, charge, sign)


def not_learned(self: ToolTimeEstimates, request: Any, gap_s: float) -> None:
    return None


def given_up_at_once(self: Stalls, fact: Any, view: Any) -> None:
    _offload_finished(self, fact, view)
    agent = self._agents.by_id.get(fact.agent)
    if agent is not None and agent.hold is not None:
        self._hold(agent, fact.at_s)


def nothing_forgotten(self: Stalls) -> tuple[str, ...]:
    self._forget = []
    return ()


def never_unpinned(self: Pins, *arguments: Any) -> Mapping[str, float]:
    kept = vars(self).setdefault("everything", {})
    kept.update(dict.fromkeys(_pins(self, *arguments), 1e9))
    return dict(kept)


def answers_forgotten(self: PublishedSpace, view: Any) -> None:
    _begin(self, view)
    self._uncommitted_blocks = view.free_blocks


def method(owner: type, name: str, new: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: patch.object(owner, name, new)


MUTATIONS: Mapping[str, Mutation] = {
    "youngest-first": Mutation(
        "the sign of seniority is wrong: whose application started last goes first",
        method(SeniorityQueue, "weight", youngest_first),
    ),
    "least-urgent-first": Mutation(
        "the published score is sorted the wrong way round", method(ScoreTable, "own", least_urgent_first)
    ),
    "one-block-less": Mutation(
        "off by one: of each saved context the last block is missing", method(StalledContexts, "saves", one_block_less)
    ),
    "upload-too-late": Mutation(f"uploads start {LATE_S:g} s after they should", method(Uploads, "_progress", late)),
    "reserve-never-returned": Mutation(
        "what a call drew from the reserves stays booked when it ends",
        method(Partition, "charge", never_returned),
    ),
    "gap-not-learned": Mutation(
        "how long tools really took is not taken in", method(ToolTimeEstimates, "learn", not_learned)
    ),
    "given-up-at-once": Mutation(
        "host copies are given up as soon as they are made", method(Stalls, "_offload_finished", given_up_at_once)
    ),
    "never-forgets": Mutation(
        "host copies that nobody needs any more are not given up", method(Stalls, "forgotten", nothing_forgotten)
    ),
    "pins-never-released": Mutation("what was once kept on the GPU stays there", method(Pins, "pins", never_unpinned)),
    "answers-forgotten": Mutation(
        "calls start without room for their answers", method(PublishedSpace, "begin", answers_forgotten)
    ),
}


# -- the trials


def trial(name: str | None, baselines: str) -> dict[str, Any]:
    """The suite with one bug, or with none: what tells of it."""
    began = time.perf_counter()
    suite = replace(load_suite(SUITE), baselines=baselines)
    if name is None:
        report = report_of(check_suite(suite, workers=0))
    else:
        with MUTATIONS[name].patch():
            report = report_of(check_suite(suite, workers=0))
    cases = report["cases"]
    return {
        "mutation": name,
        "about": MUTATIONS[name].about if name else "the policy as it is",
        "caught": any(case["fails"] for case in cases),
        "failing": {case["name"]: _told(case) for case in cases if case["fails"]},
        "improved": [case["name"] for case in cases if case["state"] == "improved"],
        "behaviour_changed": [case["name"] for case in cases if case["error"] or case["behaviour"] != "same"],
        "wall_s": round(time.perf_counter() - began, 1),
    }


def _told(case: Mapping[str, Any]) -> list[str]:
    if case["error"] is not None:
        return [case["error"]]
    return [sentence(finding) for finding in case["metrics"] if finding["verdict"] == "regressed"]


def other_day(seed: int, baselines: str) -> dict[str, Any]:
    """The repeated cases with another seed, against the baselines of their own: what every gate says."""
    suite = _repeated(replace(load_suite(SUITE), baselines=baselines))
    drawn = replace(suite, cases=tuple(replace(case, seed=seed) for case in suite.cases))
    words: dict[str, int] = {}
    failing = []
    for case, (_, came) in zip(suite.cases, run_suite(drawn, workers=0), strict=True):
        base, chance = read_baseline(suite, case), Chance(suite.confidence, suite.comparisons, case.seed)
        for gate in case.gates:
            word = judge(gate, came.metrics[gate.metric], base.metrics[gate.metric], chance).word
            words[word] = words.get(word, 0) + 1
            if word == "regressed":
                failing.append(f"{case.name}: {gate.metric}")
    return {"seed": seed, "gates": words, "failing": failing}


def _repeated(suite: Suite) -> Suite:
    return replace(suite, cases=tuple(case for case in suite.cases if case.repeats > 1))


def main() -> None:
    """Print a line a bug and one for the other days; write all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=MUTATIONS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check_outputs(outputs_of(json=arguments.json))
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as baselines, ProcessPoolExecutor(arguments.workers, context) as pool:
        update_suite(replace(load_suite(SUITE), baselines=baselines), arguments.workers)
        trials = []
        for found in pool.map(partial(trial, baselines=baselines), (None, *(arguments.only or MUTATIONS))):
            trials.append(found)
            print("\n".join(_lines(found)), flush=True)
        days = list(pool.map(partial(other_day, baselines=baselines), range(1, arguments.seeds + 1)))
    unchanged, *bugs = trials
    caught = sum(bug["caught"] for bug in bugs)
    failed = [day for day in days if day["failing"]]
    print(f"\n{caught} of {len(bugs)} bugs caught; {len(failed)} of {len(days)} other days failed")
    for day in failed:
        print(f"  seed {day['seed']}: {', '.join(day['failing'])}")
    if arguments.json:
        record = {
            "schema": SCHEMA,
            "version": __version__,
            "caught": caught,
            "of": len(bugs),
            "days_failed": len(failed),
            "days": len(days),
            "unchanged": unchanged,
            "bugs": bugs,
            "other_days": days,
        }
        write_whole(arguments.json, json.dumps(record, indent=2) + "\n")


def _lines(found: Mapping[str, Any]) -> list[str]:
    name = found["mutation"] or "none"
    state = "caught" if found["caught"] else "not caught" if found["mutation"] else "good"
    head = f"{name:24s} {state:11s} behaviour changed in {len(found['behaviour_changed'])} cases: {found['about']}"
    return [head, *(f"    {case}: {told[0]}{_more(told)}" for case, told in found["failing"].items())]


def _more(told: list[str]) -> str:
    return f" (and {len(told) - 1} more)" if len(told) > 1 else ""


if __name__ == "__main__":
    sys.exit(exit_code(main))
