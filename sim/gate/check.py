"""Runs a suite, and says of each case what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from ...traces.errors import PolicyFault, TokencakeError
from ...traces.files.escaping import one_line
from ...traces.files.source_file import check_file
from ...traces.format.reader import read_trace
from ...traces.results.metric import metric_value
from ..experiments.preflight import SeededPolicy
from ..experiments.processes.workers import cores
from ..experiments.run import RunSpec, applications_of
from ..machine.machine import DEFAULTS, Machine
from .baseline import Baseline, Inputs, baseline_of, decisions_file, inputs_of, read_baseline
from .case_run import CaseRun, Digests, Players
from .decisions import DecisionDifference, first_difference
from .judge import Chance, Finding, judge
from .suite.suite import Case, Gate, Suite

Behaviour: TypeAlias = Literal["same", "times", "changed"]
State: TypeAlias = Literal["good", "changed", "improved", "uncertain", "regressed", "failed"]
FAILING: frozenset[State] = frozenset({"regressed", "failed"})
FAILING_STRICTLY: frozenset[State] = FAILING | {"changed", "improved", "uncertain"}
LONGEST_ERROR = 2000  # characters
RUNS_WORTH_A_PROCESS = 4  # starting one takes as long as a few runs

Progress: TypeAlias = Callable[[int, int], None]  # runs that are done, of how many


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of a case."""

    case: Case
    causes: tuple[str, ...] = ()  # what is not as it was when the baseline was written, beside the policy's code
    behaviour: Behaviour = "same"
    repeats_changed: int = 0
    same_decisions: bool = True  # whether the policy wanted the same, whatever came of it
    difference: DecisionDifference | None = None
    agent: str | None = None  # the agent whose call `difference` is about, if it is about a call
    findings: tuple[Finding, ...] = ()
    missing_file: str | None = None  # of the baseline's decisions, if it is not there
    error: str | None = None  # why there is nothing to judge

    @property
    def state(self) -> State:
        """The worst that is to be said."""
        words = {finding.word for finding in self.findings}
        if self.error is not None:
            return "failed"
        for word in ("regressed", "uncertain", "improved"):
            if word in words:
                return word
        return "good" if self.behaviour == "same" else "changed"


@dataclass(frozen=True, slots=True)
class Check:
    """What became of a suite."""

    suite: Suite
    cases: tuple[CaseResult, ...]
    wall_s: float
    strict: bool = False

    @property
    def over_budget(self) -> bool:
        return self.suite.budget_s is not None and self.wall_s > self.suite.budget_s

    def fails(self, one: CaseResult) -> bool:
        return one.state in (FAILING_STRICTLY if self.strict else FAILING)

    @property
    def good(self) -> bool:
        return not self.over_budget and not any(self.fails(one) for one in self.cases)


class CasePlan(NamedTuple):
    """A case, and all that it needs to be run."""

    case: Case
    machine: Machine
    inputs: Inputs

    def specs(self, suite: Suite) -> tuple[RunSpec, ...]:
        """Of its own policy, a run a repeat."""
        return tuple(self._specs(suite, self.case.policy))

    def rivals(self, suite: Suite) -> Mapping[str, tuple[RunSpec, ...]]:
        return {rival: tuple(self._specs(suite, rival)) for rival in self.case.rivals}

    def all_specs(self, suite: Suite) -> Iterator[RunSpec]:
        """Of its own policy and of the rivals, all runs of a repeat together."""
        for repeat in zip(self.specs(suite), *self.rivals(suite).values(), strict=True):
            yield from repeat

    def _specs(self, suite: Suite, policy: str) -> Iterator[RunSpec]:
        case = self.case
        for repeat in range(case.repeats):
            yield RunSpec(
                suite.paths.path(case.trace),
                self.machine,
                suite.paths.policy(policy),
                case.variation,
                repeat,
                case.seed,
                case.rate,
                case.arrivals,
                case.skip_oversized,
            )


def prepare(suite: Suite, case: Case) -> CasePlan:
    """Finds what is wrong with a case before anything is run. Raises TokencakeError, naming the case."""
    try:
        check_case_files(suite, case)
        machine = suite.paths.machine(case.machine, case.settings)
        read_trace(suite.paths.path(case.trace))
        return CasePlan(case, machine, inputs_of(suite, case, machine))
    except TokencakeError as error:
        raise _bad(suite, case, str(error)) from None


def check_case_files(suite: Suite, case: Case) -> None:
    """Raises TokencakeError for what a case names and is no plain file: a pipe would be waited for."""
    paths = suite.paths
    own = [paths.policy_file(policy) for policy in (case.policy, *case.rivals)]
    for file in (paths.path(case.trace), paths.machine_file(case.machine), *own):
        if file is not None:
            check_file(file, TokencakeError)


def _preflight(suite: Suite, players: Players) -> dict[str, str]:
    """Makes all policies once, where they can do no harm: what those did that failed, by policy.

    Raises TokencakeError, naming the case, for one that the suite asks for wrongly.
    """
    cases = {
        SeededPolicy(suite.paths.policy(policy), case.seed): case
        for case in suite.cases
        for policy in (case.policy, *case.rivals)
    }
    faults: dict[str, str] = {}
    for seeded, error in players.preflight(cases).items():
        if not isinstance(error, PolicyFault):
            raise _bad(suite, cases[seeded], str(error))
        faults[seeded.policy] = str(error)
    return faults


def _bad(suite: Suite, case: Case, problem: str) -> TokencakeError:
    return TokencakeError(f"{suite.file}: cases.{case.name}: {problem}")


def _players(suite: Suite, plans: Sequence[CasePlan], workers: int | None) -> Players:
    """`workers` processes (None: one a core, if there is enough to do)."""
    runs = sum(plan.case.repeats * (1 + len(plan.case.rivals)) for plan in plans)
    count = min(cores(), max(1, runs // RUNS_WORTH_A_PROCESS)) if workers is None else workers
    return Players(count, suite.policy_timeout_s)


def _run_all(
    players: Players, faults: Mapping[str, str], specs: Sequence[RunSpec], progress: Progress | None
) -> dict[RunSpec, CaseRun]:
    """Each run once, but for those of policies that cannot be made."""
    todo = list(dict.fromkeys(specs))
    done = {spec: CaseRun(spec, error=faults[spec.policy]) for spec in todo if spec.policy in faults}
    for one in players.play(spec for spec in todo if spec.policy not in faults):
        done[one.spec] = one
        if progress is not None:
            progress(len(done), len(todo))
    return done


def run_suite(
    suite: Suite, workers: int | None = None, progress: Progress | None = None
) -> list[tuple[Case, Baseline]]:
    """What each case comes to now, on so many processes. Raises TokencakeError if one cannot be run."""
    plans = [prepare(suite, case) for case in suite.cases]
    with _players(suite, plans, workers) as players:
        faults = _preflight(suite, players)
        done = _run_all(players, faults, [spec for plan in plans for spec in plan.specs(suite)], progress)
    came: list[tuple[Case, Baseline]] = []
    for plan in plans:
        repeats = [done[spec] for spec in plan.specs(suite)]
        for one in repeats:
            if one.error is not None:
                raise _bad(suite, plan.case, one.error)
        came.append((plan.case, baseline_of(plan.case, plan.inputs, repeats)))
    return came


def check_suite(
    suite: Suite, *, strict: bool = False, workers: int | None = None, progress: Progress | None = None
) -> Check:
    """Runs each case on so many processes (see `Players`) and compares it with its baseline and its rivals.

    Raises TokencakeError for what is wrong with the suite, its files or its baselines, mostly before the first run.
    """
    began = time.perf_counter()
    plans = [prepare(suite, case) for case in suite.cases]
    wanted = [spec for plan in plans for spec in plan.all_specs(suite)]
    with _players(suite, plans, workers) as players:
        faults = _preflight(suite, players)
        baselines = [read_baseline(suite, case) for case in suite.cases]
        done = _run_all(players, faults, wanted, progress)
    cases = tuple(_checked(suite, plan, base, done) for plan, base in zip(plans, baselines, strict=True))
    return Check(suite, cases, time.perf_counter() - began, strict)


def _checked(suite: Suite, plan: CasePlan, base: Baseline, done: Mapping[RunSpec, CaseRun]) -> CaseResult:
    repeats = [done[spec] for spec in plan.specs(suite)]
    rivals = {name: [done[spec] for spec in specs] for name, specs in plan.rivals(suite).items()}
    causes = tuple(causes_of(base.inputs, plan.inputs))
    for one in (*repeats, *(one for runs in rivals.values() for one in runs)):
        if one.error is not None and one.mendable:
            raise _bad(suite, plan.case, one.error)
        if one.error is not None:
            return CaseResult(plan.case, causes, error=_bounded(one.error))
    chance = Chance(suite.confidence, suite.comparisons, plan.case.seed)
    findings = tuple(_found(gate, base, repeats, rivals, chance) for gate in plan.case.gates)
    missing = str(decisions_file(suite, plan.case)) if base.decisions is None else None
    return _behaved(CaseResult(plan.case, causes, findings=findings, missing_file=missing), base, repeats)


def _bounded(error: str) -> str:
    """In one line that a log can hold: what a policy raises may say anything."""
    line = one_line(error)
    return line if len(line) <= LONGEST_ERROR else f"{line[: LONGEST_ERROR - 1]}…"


def _found(
    gate: Gate, base: Baseline, repeats: Sequence[CaseRun], rivals: Mapping[str, Sequence[CaseRun]], chance: Chance
) -> Finding:
    against = base.metrics[gate.metric] if gate.than is None else _values(rivals[gate.than], gate.metric)
    return judge(gate, _values(repeats, gate.metric), against, chance)


def _values(runs: Sequence[CaseRun], metric: str) -> list[float | None]:
    return [metric_value(one.metrics or {}, metric) for one in runs]


def _behaved(checked: CaseResult, base: Baseline, repeats: Sequence[CaseRun]) -> CaseResult:
    """With what is to be said of the behaviour."""
    now = [one.digests for one in repeats if one.digests is not None]
    kinds = [_behaviour(old, new) for old, new in zip(base.digests, now, strict=True)]
    same_decisions = all(old.decisions == new.decisions for old, new in zip(base.digests, now, strict=True))
    behaviour: Behaviour = "changed" if "changed" in kinds else "times" if "times" in kinds else "same"
    checked = replace(
        checked,
        behaviour=behaviour,
        repeats_changed=sum(kind != "same" for kind in kinds),
        same_decisions=same_decisions,
    )
    if base.decisions is None or same_decisions:
        return checked
    difference = first_difference(base.decisions, repeats[0].decisions)
    if difference is None or difference.about is None:
        return replace(checked, difference=difference)
    return replace(checked, difference=difference, agent=_agent_of(repeats[0].spec, difference.about))


def _behaviour(old: Digests, new: Digests) -> Behaviour:
    return "same" if old.events == new.events else "times" if old.order == new.order else "changed"


def _agent_of(spec: RunSpec, name: str) -> str | None:
    """The agent of a call of the trace; None if the name is no call's."""
    applications, _ = applications_of(spec)
    return next((call.agent for one in applications for call in one.calls if call.id == name), None)


def causes_of(was: Inputs, now: Inputs) -> Iterator[str]:
    """What may have changed the figures beside the policy's code, the likeliest first; nothing if all is as it was."""
    if was.trace_sha256 != now.trace_sha256:
        yield f"the trace is another one (sha256 {was.trace_sha256[:12]}…, now {now.trace_sha256[:12]}…)"
    before = {**DEFAULTS, **was.machine}  # an older baseline says nothing of a newer setting: it was the default
    changed = [
        f"{key} {_shown(before.get(key))} -> {_shown(now.machine.get(key))}"
        for key in sorted({*before, *now.machine})
        if before.get(key) != now.machine.get(key)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        yield f"the machine is another one: {', '.join(changed[:3])}{more}"
    if was.tokencake != now.tokencake:
        yield f"tokencake is {now.tokencake}, the baseline was written by {was.tokencake}"
    if was.policy_sha256 != now.policy_sha256:
        yield "the policy's file was edited"


def _shown(value: Any) -> str:
    return json.dumps(value)
