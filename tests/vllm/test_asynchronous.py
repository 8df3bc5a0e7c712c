"""Asynchronous scheduling, vLLM's default on GPUs, with real answers: a step is scheduled while another computes.

The engine is a CPU's, made to schedule so (`asynchronous_engine`). Calls are preempted, and blocks are copied, while a
step is in flight that uses them: answers are those of stock vLLM, which schedules alike.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from asynchronous_engine import schedules_asynchronously
from witness import Witness

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess, LiveStats
from tokencake.live.engine.control.metadata import KEY
from tokencake.policies.registry import load_policy
from tokencake.policies.replay.replay import replay_file
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.apps import Application, CallId, Segment
from tokencake.traces.errors import RunError
from tokencake.traces.format.events_file import EventsWriter, Record
from tokencake.traces.format.reader import read_trace
from tokencake.traces.generate.single_call import one_call_application
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]
BLOCKS = 36  # two contexts and a bit
OPTIONS = EngineOptions(model="tiny", gpu_blocks=BLOCKS, host_gib=0.05, link_gbps=0.05, asynchronous=True)
POLICIES: Mapping[str, tuple[type, ...]] = {  # and what has to happen under them while a step is in flight
    "vllm": (e.CallPreempted,),
    "tokencake:gate=off": (e.CallPreempted, e.OffloadStarted, e.OffloadFinished, e.LoadStarted, e.LoadFinished),
    "tokencake-time:gate=off,upload=pause": (e.CallPreempted, e.LoadFinished, e.UploadStarted, e.UploadFinished),
    "native-offload": (e.CallPreempted, e.StoreStarted, e.StoreFinished, e.LoadStarted, e.LoadFinished),
}
MOST_RUNS = 5  # how calls fall together depends on how fast the machine is just now


class Turn(NamedTuple):
    """A call of an agent: its prompt repeats all that was said before."""

    prompt: list[int]
    answer: list[int]
    stop: int | None  # the token that ends the answer, which might have been longer


Conversation = list[Turn]


class Stock(NamedTuple):
    """What stock vLLM answers."""

    answers: Mapping[CallId, list[int]]
    conversations: list[Conversation]


def workload() -> list[Application]:
    """Code writers with a 24th of their tokens, and tools of a fiftieth of their time."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 24))[:5]


@pytest.fixture(scope="module", autouse=True)
def asynchronously() -> Iterator[None]:
    with schedules_asynchronously():
        yield


@pytest.fixture(scope="module")
def stock(asynchronously: None) -> Stock:
    """What stock vLLM answers."""
    with InProcess(OPTIONS, stock=True) as engine:
        assert type(engine.scheduler).__name__ == "AsyncScheduler"
        return Stock(engine.play(workload(), RunSettings(), outputs=True).outputs, conversations(engine))


@pytest.fixture(scope="module")
def engine(stock: Stock) -> Iterator[InProcess]:
    with InProcess(OPTIONS) as running:
        assert type(running.scheduler).__name__ == "TokencakeAsyncScheduler"
        assert running.info()["asynchronous"] is True
        yield running


MOST_TOKENS = 48  # of an answer in a conversation


def conversations(engine: InProcess) -> list[Conversation]:
    """Of eight agents. A third of the answers end at one of their tokens, before they must."""
    rng = random.Random(7)
    talks: list[Conversation] = [[] for _ in range(8)]
    for turn in range(3):
        prompts = [talk[-1].prompt + talk[-1].answer if talk else [] for talk in talks]
        prompts = [said + [rng.randrange(1, 4096) for _ in range(rng.randint(20, 140))] for said in prompts]
        clients = Clients(engine, rng)
        for index, prompt in enumerate(prompts):
            clients.send(str(index), Turn(prompt, [], None), {})
        answers = {}
        while clients.under_way:
            answers.update(clients.step())
        for index, (talk, prompt) in enumerate(zip(talks, prompts, strict=True)):
            answer, stop = answers[str(index)], None
            if (turn + index) % 3 == 0:
                stop = answer[rng.randrange(MOST_TOKENS)]
                answer = answer[: answer.index(stop) + 1]
            talk.append(Turn(prompt, answer, stop))
    return talks


class Clients:
    """They send requests to an engine, and some go away before they are answered."""

    def __init__(self, engine: InProcess, rng: random.Random) -> None:
        self.llm = engine._engine.llm
        self.core = engine._engine.core
        self.rng = rng
        self.under_way: dict[str, str] = {}  # by name, vLLM's own name

    def send(self, name: str, turn: Turn, said: Mapping[str, Any]) -> None:
        from vllm.sampling_params import SamplingParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=MOST_TOKENS,
            ignore_eos=True,
            stop_token_ids=None if turn.stop is None else [turn.stop],
            detokenize=False,
            extra_args={KEY: said} if said else None,
        )
        self.under_way[name] = self.llm.add_request(name, {"prompt_token_ids": turn.prompt}, sampling)

    def step(self) -> dict[str, list[int]]:
        """The answers that came."""
        ended = {out.request_id: list(out.outputs[0].token_ids) for out in self.llm.step() if out.finished}
        for name in ended:
            del self.under_way[name]
        return ended

    def go_away(self, name: str) -> None:
        """vLLM hears of it between two steps, or when a step's outcome has come and before it looks at that."""
        request = self.under_way.pop(name)
        if self.rng.random() < 0.5:
            self.llm.abort_request([request], internal=True)
        else:
            self.core.aborts_queue.put(self.llm.output_processor.abort_requests([request], internal=True))


class Played:
    """A run, its facts, and how many of each kind came while a step was in flight."""

    def __init__(self, engine: InProcess, policy: str, journal: EventsWriter) -> None:
        self._engine = engine
        self.facts: list[Any] = []
        self.in_flight: Counter[type] = Counter()
        settings = RunSettings(policy, steps=True)
        self.stats: LiveStats = engine.play(workload(), settings, [self._hear], journal.add, outputs=True)

    def _hear(self, fact: Record) -> None:
        self.facts.append(fact)
        self.in_flight[type(fact)] += self._engine.adapter.computing


def assert_all_is_free(engine: InProcess) -> None:
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS
    assert engine.adapter.copies.host_free == engine.info()["host_blocks"]
    assert engine.adapter.at_rest
    assert not engine.adapter.computing


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_stock_vllm(
    engine: InProcess, stock: Stock, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.adapter, "load_policy", lambda spec, *, seed: Witness(load_policy(spec, seed=seed)))
    seen: Counter[type] = Counter()
    for run in range(MOST_RUNS):
        path = tmp_path / f"{run}.jsonl"
        with EventsWriter(path) as journal:
            played = Played(engine, policy, journal)
        assert played.stats.outputs == stock.answers
        assert (played.stats.errors, played.stats.disagreements) == ([], [])
        assert_all_is_free(engine)
        check_order(played.facts)
        check_overlap(played.facts)
        replayed = replay_file(path)[1]
        assert replayed.equal, replayed.first
        seen.update(played.in_flight)
        if all(seen[kind] for kind in POLICIES[policy]):
            return
    raise AssertionError(f"{MOST_RUNS} runs of {policy} came to {seen}")


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "vllm"])
def test_clients_come_and_go_with_a_step_in_flight(
    engine: InProcess, stock: Stock, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are given up at any time: running, preempted, while their blocks are loaded. Who asks again is answered as
    ever, and so is who continues a context of which a step in flight has computed a token too many."""
    monkeypatch.setattr(engine.adapter, "load_policy", lambda spec, *, seed: Witness(load_policy(spec, seed=seed)))
    seen: Counter[str] = Counter()
    for run in range(MOST_RUNS):
        talk(engine, stock.conversations, RunSettings(policy), random.Random(run), seen)
        if all(seen[state] > 1 for state in ("running", "preempted", "loading", "ended early")):
            return
    raise AssertionError(f"{MOST_RUNS} runs of {policy} came to {seen}")


GO_AWAY = {"preempted": 0.5, "loading": 0.05}  # how often at a step; some states are rare, some do not last


def talk(
    engine: InProcess, talks: list[Conversation], settings: RunSettings, rng: random.Random, seen: Counter[str]
) -> None:
    """All conversations, some calls of which are given up and sent again."""
    engine.adapter.begin(settings)
    try:
        converse(engine, talks, rng, seen)
    finally:
        engine.adapter.end()
        while engine._engine.busy or engine.adapter.has_work():
            engine._engine.llm.step()
    assert not engine.adapter.errors
    assert_all_is_free(engine)


def converse(engine: InProcess, talks: list[Conversation], rng: random.Random, seen: Counter[str]) -> None:
    adapter, clients = engine.adapter, Clients(engine, rng)
    came = [0] * len(talks)  # turns of each that were answered
    whose: dict[str, int] = {}  # by request under way
    sent = 0
    while sum(came) < sum(map(len, talks)):
        for agent, turns in enumerate(talks):
            if agent not in whose.values() and came[agent] < len(turns) and rng.random() < 0.2:
                sent += 1
                tools = [{"kind": "think", "declared_s": 0.02}]
                said = {"app": f"app{agent // 2}", "agent": f"agent{agent}", "call": f"call{sent}", "tools": tools}
                whose[f"r{sent}"] = agent
                clients.send(f"r{sent}", turns[came[agent]], said)
        for name, answer in clients.step().items():
            agent = whose.pop(name)
            turn = talks[agent][came[agent]]
            assert answer == turn.answer
            seen["ended early"] += len(answer) < MOST_TOKENS and adapter.computing
            came[agent] += 1
        for name in list(whose):
            state = state_of(engine, clients.under_way[name])
            if adapter.computing and rng.random() < GO_AWAY.get(state, 0.01):
                seen[state] += 1
                clients.go_away(name)
                del whose[name]


def state_of(engine: InProcess, request_id: str) -> str:
    request = engine.scheduler.requests[request_id]
    if engine.adapter.call_of(request_id).loading:
        return "loading"
    return "preempted" if request.status.name == "PREEMPTED" else request.status.name.lower()


def test_a_run_that_is_broken_off_leaves_an_engine_at_rest(engine: InProcess, stock: Stock) -> None:
    """With a step in flight, and copies of which nobody hears any more."""
    facts: list[Record] = []

    def break_off(applications: int, at_s: float) -> None:
        if engine.adapter.computing and engine.adapter.copies.under_way:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.play(workload(), RunSettings("native-offload"), [facts.append], progress=break_off)
    assert sum(isinstance(fact, e.CallAborted) for fact in facts) > 0
    assert_all_is_free(engine)
    assert engine.play(workload(), RunSettings("native-offload"), outputs=True).outputs == stock.answers


# -- steps that take long, and calls that wait


STALL_S = 0.4


class Robbed:
    """An engine all of whose free blocks are gone when a call's first token has come.

    The call preempts itself when it needs its next block, with its latest token in flight.
    """

    def __init__(self, engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        self._engine = engine
        self._pool = engine.scheduler.kv_cache_manager.block_pool
        self._taken: list[Any] = []
        self._update = engine.scheduler.update_from_output
        self.preempted = 0
        self.comes_s = 0.0  # how much later that token comes
        monkeypatch.setattr(engine, "options", replace(engine.options, stall_s=STALL_S))
        monkeypatch.setattr(engine.scheduler, "update_from_output", self._come)

    def play(self) -> int:
        """The calls that were answered."""
        application = one_call_application("a", 0.0, (Segment("a/x", 0, 50),), 40)
        return self._engine.play([application], RunSettings(), [self._hear]).calls

    def give_back(self) -> None:
        self._pool.free_blocks(self._taken)
        self._taken = []

    def _hear(self, fact: object) -> None:
        if isinstance(fact, e.FirstToken):
            self._taken = self._pool.get_new_blocks(self._pool.get_num_free_blocks())
        elif isinstance(fact, e.CallPreempted):
            assert self._engine.adapter.computing
            self.preempted += 1

    def _come(self, *args: Any) -> Any:
        if self.preempted and self.comes_s:
            sleep(self.comes_s)
            self.comes_s = 0.0
            self.give_back()
        return self._update(*args)


def test_a_step_that_takes_long_is_no_stall(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing is scheduled beside it, and no answer ends with it."""
    robbed = Robbed(engine, monkeypatch)
    robbed.comes_s = 2 * STALL_S
    assert robbed.play() == 1
    assert robbed.preempted == 1
    assert_all_is_free(engine)


def test_a_call_that_was_preempted_and_never_gets_room_has_stalled(
    engine: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    robbed = Robbed(engine, monkeypatch)
    with pytest.raises(
        RunError, match=f"call 'a/call' waits, .*: it needs 3 blocks, and of {BLOCKS} blocks 2 are free"
    ):
        robbed.play()
    robbed.give_back()
    assert robbed.preempted == 1
    assert_all_is_free(engine)


def check_order(facts: list[Any]) -> None:
    """What happens to a call happens in an order that makes sense, also by its times."""
    times: dict[CallId, list[float]] = defaultdict(list)
    started: dict[CallId, float] = {}
    for fact in facts:
        if isinstance(fact, e.CallArrived):
            times[fact.request.id].append(fact.at_s)
        elif isinstance(fact, e.CallAdmitted | e.CallPreempted | e.FirstToken | e.CallFinished | e.LoadStarted):
            times[fact.call].append(fact.at_s)
        if isinstance(fact, e.CallAdmitted):
            started.setdefault(fact.call, fact.at_s)
        elif isinstance(fact, e.FirstToken):
            assert started[fact.call] < fact.at_s
    assert all(happened == sorted(happened) for happened in times.values())


def check_overlap(facts: list[Any]) -> None:
    """Steps end in the order in which they began, and most of them began before the one before them had ended."""
    steps = [fact for fact in facts if isinstance(fact, e.Stepped)]
    pairs = list(pairwise(steps))
    assert all(before.from_s < after.from_s and before.at_s < after.at_s for before, after in pairs)
    overlapping = sum(after.from_s < before.at_s for before, after in pairs)
    assert overlapping > len(steps) / 2
