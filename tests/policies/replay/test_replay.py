"""A recorded run gives the same plans again, with no engine at all; and where it does not, the replay says where."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from adversary import Adversary, hard_workload
from runs import MakePolicy, Record, play

from tokencake.cli import run
from tokencake.policies.costs import LinearCosts
from tokencake.policies.field.vllm import Vllm
from tokencake.policies.interface import EVERYTHING, Plan, View
from tokencake.policies.replay.replay import Difference, began, differing, replay, replay_file
from tokencake.policies.tokencake.policy import tokencake
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, Application
from tokencake.traces.errors import PolicyError, TraceError
from tokencake.traces.events import Request
from tokencake.traces.format.events_file import EventsWriter, read_events
from tokencake.traces.generate.workloads import code_writer
from tokencake.traces.questions import as_now_recorded

EXAMPLES = Path(__file__).parents[3] / "examples"
COSTS = LinearCosts(0.0, 0.001, 0.0001, 0.0)
PUBLISHED_RULES = "tokencake:rules=published"
published = partial(tokencake, rules="published")


def planned(records: list[Record]) -> list[e.Planned]:
    return [record for record in records if isinstance(record, e.Planned)]


@pytest.mark.parametrize("seed", range(30))
def test_recorded_facts_give_the_same_plans(seed: int) -> None:
    applications, machine = hard_workload(seed)
    makes: tuple[MakePolicy, ...] = (
        tokencake,
        published,
        partial(tokencake, upload="pause"),
        partial(tokencake, rules="published", gate=False, upload="pause"),
        partial(Adversary, seed),
        Vllm,
    )
    for make in makes:
        records = play(applications, make, machine)
        parity = replay(records, make(), machine.beliefs())
        assert parity.equal, parity.first
        assert parity.plans == len(planned(records)) > 0


@pytest.fixture(scope="module")
def crowded() -> tuple[tuple[Application, ...], Machine]:
    """Code writers with so little memory that contexts are offloaded."""
    return tuple(code_writer(apps=4, qps=2.0, spread=0.2)), replace(PUBLISHED, gpu_blocks=1500)


@pytest.fixture(scope="module")
def recorded(crowded: tuple[tuple[Application, ...], Machine]) -> list[Record]:
    applications, machine = crowded
    return play(applications, published, machine)


@pytest.fixture
def file(tmp_path: Path, crowded: tuple[tuple[Application, ...], Machine], recorded: list[Record]) -> Path:
    return written(tmp_path / "run.jsonl", [began(PUBLISHED_RULES, 7, crowded[1].beliefs()), *recorded])


def written(path: Path, records: list[Record]) -> Path:
    with EventsWriter(path) as writer:
        for record in records:
            writer.add(record)
    return path


def test_a_file_says_itself_how_it_is_replayed(file: Path, recorded: list[Record]) -> None:
    assert any("offload" in record.plan for record in planned(recorded))
    setup, parity = replay_file(file)
    assert (setup.policy, setup.seed) == (PUBLISHED_RULES, 7)
    assert (parity.plans, parity.different, parity.not_replayed, parity.first) == (len(planned(recorded)), 0, 0, None)


def test_a_changed_plan_is_found_with_its_time_and_field(recorded: list[Record]) -> None:
    at = next(i for i, record in enumerate(recorded) if isinstance(record, e.Planned) and "offload" in record.plan)
    original = recorded[at]
    changed = original._replace(plan={**original.plan, "offload": [["nobody", 1, True]]})
    parity = replay([*recorded[:at], changed, *recorded[at + 1 :]], published(), PUBLISHED.beliefs())
    assert (parity.different, parity.not_replayed) == (1, 0)
    number = len(planned(recorded[: at + 1]))
    offload = json.loads(json.dumps(original.plan["offload"]))
    assert parity.first == Difference(number, original.at_s, {"offload": ([["nobody", 1, True]], offload)})


def test_a_changed_fact_shows_in_the_plans_behind_it(recorded: list[Record]) -> None:
    """Half the memory: the same policy must come to other plans."""
    started = recorded[0]
    assert isinstance(started, e.RunStarted)
    parity = replay([started._replace(gpu_blocks=700), *recorded[1:]], published(), PUBLISHED.beliefs())
    assert not parity.equal
    assert parity.plans == len(planned(recorded))


def test_other_beliefs_give_other_plans(recorded: list[Record]) -> None:
    dear = replace(PUBLISHED, link_gbps=0.1).beliefs()
    assert not replay(recorded, published(), dear).equal


class FillsPlaces:
    """Starts as many calls as may run beside those that do."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        return Plan(admit=tuple(view.waiting)[: view.max_running - len(view.running)])


def test_a_replay_knows_how_many_calls_could_run_at_once(tmp_path: Path) -> None:
    machine = replace(PUBLISHED, max_running=3)
    records = play(tuple(code_writer(apps=4, qps=2.0, spread=0.2)), FillsPlaces, machine)
    file = written(tmp_path / "run.jsonl", records)
    assert replay(read_events(file), FillsPlaces(), machine.beliefs()).equal
    unlimited = [one._replace(max_running=1024) if isinstance(one, e.Polled) else one for one in records]
    assert not replay(unlimited, FillsPlaces(), machine.beliefs()).equal


class Curious:
    """Asks about every call that waits, and wants nothing."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        for call in view.waiting:
            view.shared_blocks(call)
        return Plan()


class Fails(Curious):
    """Raises when it is asked for the third time."""

    def __init__(self) -> None:
        self.asked = 0

    def plan(self, view: View) -> Plan:
        self.asked += 1
        if self.asked == 3:
            raise ValueError("no idea")
        return Plan()


def test_a_policy_that_asks_something_else_differs_and_is_not_replayed_further() -> None:
    """Nobody knows what the engine would have answered."""
    parity = replay(stream(3), Curious(), COSTS)
    assert parity.first == Difference(1, 0.0, {"questions": ("hits of 0/1", "blocks shared by 0/1")})
    assert (parity.plans, parity.different, parity.not_replayed) == (6, 1, 5)


def test_a_policy_that_asks_less_differs() -> None:
    parity = replay(stream(3), Vllm(), COSTS)
    assert parity.first == Difference(1, 0.0, {"skip": (True, None), "questions": ("hits of 0/1", None)})
    assert (parity.plans, parity.different, parity.not_replayed) == (6, 6, 0)


def test_a_policy_that_raises_where_it_did_not_is_a_difference() -> None:
    polled = e.Polled(1.0, 1, 100, 0, 50)
    records: list[Record] = [e.RunStarted(0.0, 16, 100, 50, 1), *[polled, e.Planned(1.0, {})] * 5]
    parity = replay(records, Fails(), COSTS)
    assert (parity.plans, parity.different, parity.not_replayed) == (5, 1, 2)
    assert parity.first is not None
    recorded, replayed = parity.first.fields["error"]
    assert recorded is None
    assert str(replayed).startswith("policy Fails: at 1.000000 s: plan() raised ValueError: no idea (test_replay.py:")


def test_a_policy_that_raised_when_it_was_recorded_must_raise_again() -> None:
    """The engine goes on by itself then: facts follow a question without a plan."""
    polled = e.Polled(1.0, 1, 100, 0, 50)
    records: list[Record] = [
        e.RunStarted(0.0, 16, 100, 50, 1),
        *[polled, e.Planned(1.0, {})] * 2,
        polled,
        e.AppStarted(2.0, "a"),
    ]
    assert replay(records, Fails(), COSTS).equal
    parity = replay(records, Curious(), COSTS)
    assert parity.first == Difference(2, 1.0, {"error": ("it raised", None)})
    assert parity.different == 1


def test_a_question_that_an_interrupt_cut_off_is_not_compared(recorded: list[Record]) -> None:
    last = max(i for i, record in enumerate(recorded) if isinstance(record, e.Planned))
    parity = replay(recorded[:last], published(), PUBLISHED.beliefs())
    assert parity.equal
    assert parity.plans == len(planned(recorded)) - 1


def test_fields_at_their_defaults_count_as_none() -> None:
    assert differing({"admit": ("a",), "skip": True}, {"admit": ["a"]}) == {"skip": (True, None)}


class AsksForHits:
    """Asks for the hits of every call that waits, once or `twice`, and keeps what it was told, a list a plan."""

    listens_to = EVERYTHING

    def __init__(self, told: list[list[e.Asked]] | None = None, twice: bool = False) -> None:
        self.told = [] if told is None else told
        self.twice = twice

    def plan(self, view: View) -> Plan:
        calls = list(view.waiting)
        asked = calls * 2 if self.twice else calls
        self.told.append([e.Asked(view.now_s, call, *view.hits(call)) for call in asked])
        return Plan()


class Silent:
    """Wants nothing and asks nothing."""

    listens_to = EVERYTHING

    def plan(self, view: View) -> Plan:
        return Plan()


@pytest.fixture
def told() -> list[list[e.Asked]]:
    return []


@pytest.fixture
def asked_for_hits(crowded: tuple[tuple[Application, ...], Machine], told: list[list[e.Asked]]) -> list[Record]:
    applications, machine = crowded
    return play(applications, lambda: AsksForHits(told), machine)


def test_an_answer_is_recorded_when_it_is_another_one(asked_for_hits: list[Record], told: list[list[e.Asked]]) -> None:
    answers = [record for record in asked_for_hits if isinstance(record, e.Asked)]
    last: dict[str, tuple[object, ...]] = {}
    for one in (one for of_plan in told for one in of_plan):
        if last.get(one.call) != one[2:]:
            assert answers.pop(0) == one
        last[one.call] = one[2:]
    assert not answers
    assert replay(asked_for_hits, AsksForHits(), COSTS).equal


def test_other_questions_are_found_though_their_answers_are_known(asked_for_hits: list[Record]) -> None:
    """But the last answers that are known may be old: nobody knows what the engine would have answered."""
    plans = planned(asked_for_hits)
    parity = replay(asked_for_hits, AsksForHits(twice=True), COSTS)
    assert parity.first is not None
    assert set(parity.first.fields) == {"questions"}
    recorded, replayed = map(str, parity.first.fields["questions"])
    assert recorded == f"checksum {plans[parity.first.plan - 1].questions}" != replayed
    assert (parity.different, parity.not_replayed) == (1, len(plans) - parity.first.plan)


class AsksForAllItHasSeen:
    """Asks for the hits of running and ended calls, too, and goes on without an answer."""

    listens_to = EVERYTHING

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}

    def plan(self, view: View) -> Plan:
        self.seen.update(dict.fromkeys(view.waiting))
        for call in self.seen:
            with suppress(Exception):
                view.hits(call)
        return Plan()


def test_who_asks_about_calls_that_wait_no_more_gets_no_answer_then_either(
    crowded: tuple[tuple[Application, ...], Machine],
) -> None:
    applications, machine = crowded
    assert replay(play(applications, AsksForAllItHasSeen, machine), AsksForAllItHasSeen(), COSTS).equal


def test_a_policy_that_asks_nothing_is_replayed_to_the_end(asked_for_hits: list[Record]) -> None:
    parity = replay(asked_for_hits, Silent(), COSTS)
    assert parity.different == sum(record.questions != 0 for record in planned(asked_for_hits)) > 0
    assert parity.not_replayed == 0


def test_older_records_have_every_answer(asked_for_hits: list[Record], told: list[list[e.Asked]]) -> None:
    """And no checksums. They are replayed as they are, and compared as they would be recorded now."""
    answers = iter(told)
    older: list[Record] = []
    for record in asked_for_hits:
        if isinstance(record, e.Planned):
            older += [*next(answers), record._replace(questions=None)]
        elif not isinstance(record, e.Asked):
            older.append(record)
    assert len(older) > len(asked_for_hits)
    assert replay(older, AsksForHits(), COSTS).equal
    assert not replay(older, AsksForHits(twice=True), COSTS).equal
    assert list(as_now_recorded(older)) == asked_for_hits
    assert list(as_now_recorded(asked_for_hits)) == asked_for_hits


def test_memory_does_not_grow_with_the_record() -> None:
    peaks = []
    for applications in (50, 500):
        tracemalloc.start()
        parity = replay(stream(applications), published(), COSTS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert parity.plans == 2 * applications
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def stream(applications: int) -> Iterator[Record]:
    """Applications of one call, one after another, as they are recorded; plans that are not those of any policy."""
    yield e.RunStarted(0.0, 16, 100, 50, 1)
    for n in range(applications):
        request = Request(f"{n}/1", f"{n}", f"{n}/x", "agent", 100, 20, (), NO_HINTS)
        yield e.AppStarted(float(n), f"{n}")
        yield e.CallArrived(float(n), request)
        yield e.Polled(float(n), n, 100, 0, 50)
        yield e.Asked(float(n), f"{n}/1", 0, 0, 0)
        yield e.AskedShared(float(n), f"{n}/1", 0)
        yield e.Planned(float(n), {"skip": True})
        yield e.CallAdmitted(float(n), f"{n}/1", 0, 0, 0)
        yield e.Polled(n + 0.1, n, 93, 1, 50)
        yield e.Planned(n + 0.1, {"skip": True})
        yield e.FirstToken(n + 0.2, f"{n}/1")
        yield e.CallFinished(n + 0.5, f"{n}/1", 20, 7)
        yield e.AppFinished(n + 0.5, f"{n}")


# -- the command


def test_the_command_says_equal_and_exits_with_0(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", str(file)]) == 0
    out = capsys.readouterr().out
    assert "tokencake" in out
    assert "all equal" in out


def test_the_command_shows_the_first_difference_and_exits_with_1(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    assert run(["replay", str(file), "--policy", "tokencake:upload=demand", "--json", str(report)]) == 1
    out = capsys.readouterr().out
    assert "recorded" in out
    assert "replayed" in out
    said = json.loads(report.read_text())
    assert said["schema"] == "tokencake.replay/1"
    assert said["policy"] == "tokencake:upload=demand"
    assert said["different"] > 0
    assert said["equal"] is False
    first = said["first"]
    assert first["fields"]
    for field in first["fields"].values():
        assert field["recorded"] != field["replayed"]


def test_simulated_events_replay_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["trace", "generate", "code-writer", "--apps", "2", "-o", "t.jsonl"]) == 0
    assert run(["simulate", "t.jsonl", "--policy", "tokencake:upload=pause", "--events", "e", "--seed", "3"]) == 0
    (events,) = (tmp_path / "e").iterdir()
    first = next(iter(read_events(events)))
    assert isinstance(first, e.Began)
    assert (first.policy, first.seed) == ("tokencake:upload=pause", 3)
    assert run(["replay", str(events)]) == 0


@pytest.mark.parametrize(
    ("records", "arguments", "message"),
    [
        ([], [], "holds no record"),
        ([e.RunStarted(0.0, 16, 100, 50, 1)], [], "does not say which policy ran"),
        ([e.RunStarted(0.0, 16, 100, 50, 1)], ["--policy", "vllm"], "does not say which policy ran"),
        ([began("vllm", 0, COSTS), e.RunStarted(0.0, 16, 100, 50, 1)], [], "no plan is recorded"),
        ([began("vllm", 0, COSTS), e.Planned(0.0, {})], [], "Planned: expected Polled before it"),
        ([began("tokencake", 0, COSTS), e.CallFinished(0.0, "a/1", 1, 0)], [], "'a/1' is not there"),
        (
            [
                began("tokencake", 0, COSTS),
                e.RunStarted(0.0, 16, 100, 50, 1),
                e.AppStarted(0.0, "a"),
                e.AppStarted(1.0, "a"),
            ],
            [],
            "AppStarted at 1.000000 s: application 'a' is started",
        ),
        ([began("vlm", 0, COSTS), e.RunStarted(0.0, 16, 100, 50, 1)], [], "unknown policy 'vlm'"),
        ([began("vllm", 0, COSTS)], ["--machine", "h300"], 'unknown machine "h300"'),
        ([began("vllm", 0, COSTS)], ["--json", "nowhere/r.json"], "cannot be written"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_line(
    records: list[Record], arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "run.jsonl", records)
    assert run(["replay", str(path), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_no_events_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"format": "tokencake.trace", "version": 1}\n')
    with pytest.raises(TraceError, match=r"t\.jsonl:1"):
        replay_file(tmp_path / "t.jsonl")
    with pytest.raises(TraceError, match="cannot be read"):
        replay_file(tmp_path / "absent.jsonl")
    with pytest.raises(PolicyError):
        replay_file(written(tmp_path / "p.jsonl", [began("x.py:Y", 0, COSTS)]))


def test_an_events_file_names_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof = tmp_path / "ran"
    for spec in (f"{json.__file__}:loads", f"{tmp_path}/mine.py:Mine", f"{tmp_path}/mine.py"):
        (tmp_path / "mine.py").write_text(f"open({str(proof)!r}, 'w')")
        file = written(tmp_path / "hostile.jsonl", [began(spec, 0, COSTS)])
        assert run(["replay", str(file)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith(f"error: {file}: policy {spec}")
        assert "data may name registered policies only: give this one with --policy" in said
        assert not proof.exists()


def test_who_replays_names_the_policy_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = f"{EXAMPLES / 'my_policy.py'}:ShortestFirst"
    trace = str(EXAMPLES / "code-writer.jsonl")
    assert run(["simulate", trace, "--policy", mine, "--events", str(tmp_path), "--quiet"]) == 0
    (file,) = tmp_path.glob("*.jsonl")
    assert run(["replay", str(file)]) == 2
    capsys.readouterr()
    assert run(["replay", str(file), "--policy", mine]) == 0
    assert "all equal" in capsys.readouterr().out
