"""vLLM's own server with our scheduler, connector and routes, and our client against it. Starts one server for all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as Question
from urllib.request import urlopen

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from thief import THIEF
from trace_files import written

from tokencake.live.client.counters import read_counters
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.remote.remote import Remote
from tokencake.live.client.remote.serve_args import ENVIRONMENT, serve_args
from tokencake.live.client.remote.server import Server
from tokencake.live.engine.control.protocol import new_name
from tokencake.live.engine.control.versions import for_cpus
from tokencake.policies.replay.replay import replay_file
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, Call, Prompt, Segment
from tokencake.traces.errors import EngineError
from tokencake.traces.events import Request, ToolHint
from tokencake.traces.format.events_file import EventsWriter, decode
from tokencake.traces.format.reader import read_trace
from tokencake.traces.results.metrics import Metrics

pytestmark = pytest.mark.slow

START_S = 300.0
WAIT_S = 60.0
GPU_BLOCKS = 48
CLIENT_TIMEOUT_S = 5.0
STALL_S = 2.0
TOKEN = "t" * 40  # of the control routes
PACKAGE = Path(__file__).parents[2]
OPTIONS = EngineOptions(
    model="tiny", gpu_blocks=GPU_BLOCKS, block_tokens=32, max_context_tokens=1024, dtype="float32", host_gib=0.1,
    compile="none",
)  # fmt: skip


def agent(app: str, arrival_s: float) -> dict[str, object]:
    """A conversation of four calls with tools between them: more than a quarter of the blocks at its end."""
    tool = {"kind": "search", "duration_s": 0.4, "declared_s": 0.4, "result": 60}
    calls: list[dict[str, object]] = [{"id": "c0", "prompt": [["/system", 64], ["task", 160]], "output": 12}]
    for i in range(1, 4):
        calls[-1]["tools"] = [tool]
        calls.append({"id": f"c{i}", "agent": "c0", "type": "c0", "after": [f"c{i - 1}"], "extends": f"c{i - 1}",
                      "prompt": [[f"result{i}", 60]], "output": 12})  # fmt: skip
    return {"id": app, "arrival_s": arrival_s, "calls": calls}


class Running:
    """The server that the tests share."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
        self.url = url
        self.process = process
        self.environment = environment
        self.log = log

    def await_start(self) -> None:
        limit_s = time.monotonic() + START_S
        while time.monotonic() < limit_s and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/health", timeout=5):
                    return
            except (URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(f"the server did not start:\n{self.log.read_text(errors='replace')[-5000:]}")

    def await_idle(self) -> None:
        """Until nobody holds a block."""
        limit_s = time.monotonic() + WAIT_S
        while self.gauge("vllm:kv_cache_usage_perc") > 0 or self.gauge("vllm:num_requests_running") > 0:
            assert time.monotonic() < limit_s, "some blocks are still held"
            time.sleep(0.1)

    def metrics(self) -> str:
        with urlopen(f"{self.url}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    def gauge(self, name: str) -> float:
        (line,) = (line for line in self.metrics().splitlines() if line.startswith(name + "{"))
        return float(line.rpartition(" ")[2])

    def tokencake(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the command line."""
        return subprocess.Popen(
            [sys.executable, "-m", "tokencake.cli", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of the server and of commands. Where this package is imported without being installed, vLLM is shown the
    plugin's entry point all the same."""
    folder = tmp_path_factory.mktemp("site")
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    if not entry_points(group="vllm.endpoint_plugins", name="tokencake"):
        installed(folder, "tokencake", "[vllm.endpoint_plugins]\ntokencake = tokencake.live.route:Routes\n")
    installed(folder, "thief", "[tokencake.policies]\nthief = thief:Thief\n")
    (folder / "thief.py").write_text(THIEF)
    told = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if for_cpus():  # two threads that wait for each other on cores that others use are ten times slower than one
        told |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    told["TOKENCAKE_CONTROL_TOKEN"] = TOKEN  # commands inherit it, as users would set it
    return {**os.environ, **told, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def installed(folder: Path, package: str, points: str) -> None:
    """As if a package with these entry points were."""
    about = folder / f"{package}-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0\n")
    (about / "entry_points.txt").write_text(points)


@pytest.fixture(scope="module")
def running(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    args = serve_args(OPTIONS, RunSettings(policy="tokencake"), on_cpu=for_cpus(), control=True)
    with started(["-m", "vllm.entrypoints.openai.api_server"], args, environment, log) as server:
        yield server


@contextmanager
def started(program: list[str], args: list[str], environment: dict[str, str], log: Path) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = args.index("--additional-config") + 1
    told = json.loads(args[where])
    told["tokencake"] |= {"client_timeout_s": CLIENT_TIMEOUT_S, "stall_s": STALL_S}
    args[where] = json.dumps(told)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *program, "--model", *args, "--port", str(port)],
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    server = Running(f"http://127.0.0.1:{port}", process, environment, log)
    try:
        server.await_start()
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the engine, where the server was killed


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients in this process have it, too."""
    monkeypatch.setenv("TOKENCAKE_CONTROL_TOKEN", TOKEN)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return written(tmp_path, *(agent(f"a{i}", 0.1 * i) for i in range(5)))


def a_call(name: str, output_tokens: int, *tools: ToolHint) -> tuple[Call, Request]:
    """A call of the application `app`, agent `main`, and what is said of it."""
    prompt = Prompt((Segment("app/task", 0, 70),), tokens=70)
    call = Call(f"app/{name}", "app", "app/main", "main", prompt, output_tokens, output_tokens)
    return call, Request(call.id, "app", "app/main", "main", 70, output_tokens, tools, NO_HINTS)


class Talking(Server):
    """A client that keeps the facts of its run."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "tiny", TOKEN)
        self.run = new_name()
        self.seen: list[Any] = []

    async def start(self, policy: str) -> None:
        await self.begin(self.run, RunSettings(policy=policy, keep_facts=True))

    async def stop(self) -> Any:
        return await self.end(self.run)

    async def facts_so_far(self) -> list[Any]:
        while (found := await self.facts(self.run, len(self.seen))).lines:
            self.seen += [decode(line.encode() + b"\n", "a fact") for line in found.lines]
        return self.seen


def talk(running: Running, conversation: Any) -> Any:
    """Has a conversation, a coroutine function, with the server."""

    async def through() -> Any:
        server = Talking(running.url)
        try:
            return await conversation(server)
        finally:
            await server.close()

    return asyncio.run(through())


async def reported(server: Talking, kind: type, many: int = 1) -> list[Any]:
    """Waits until so many facts of a kind are there, and returns them."""
    limit_s = time.monotonic() + WAIT_S
    while True:
        found = [fact for fact in await server.facts_so_far() if isinstance(fact, kind)]
        if len(found) >= many:
            return found
        assert time.monotonic() < limit_s, f"{len(found)} facts of {kind.__name__}, expected {many}"
        await asyncio.sleep(0.05)


def test_it_serves_under_its_policy_from_the_start(running: Running) -> None:
    with Remote(running.url, "tiny") as remote:
        info = remote.info()
    assert (info["policy"], info["gpu_blocks"], info["block_tokens"]) == ("tokencake", GPU_BLOCKS, 32)
    assert (info["max_context_tokens"], info["vocabulary"], info["errors"]) == (1024, 4096, [])


def test_a_request_without_metadata_is_served(running: Running) -> None:
    import openai

    before = read_counters(running.metrics())
    assert before is not None
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        answer = client.completions.create(
            model="tiny", prompt=[list(range(100))], max_tokens=5, extra_body={"ignore_eos": True}
        )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (100, 5)
    after = read_counters(running.metrics())
    assert after is not None
    assert after.output_tokens == before.output_tokens + 5


@pytest.mark.parametrize("policy", ["vllm", "tokencake", "tokencake-time:upload=demand"])
def test_a_trace_is_played_and_measured_by_facts_that_vllm_confirms(
    running: Running, trace: Path, tmp_path: Path, policy: str
) -> None:
    events, metrics = tmp_path / "events.jsonl", Metrics()
    remote = Remote(running.url, "tiny")
    with EventsWriter(events) as writer:
        stats = remote.play(read_trace(trace), RunSettings(policy=policy, seed=7), [metrics.add], writer.add)
    assert (stats.applications, stats.calls, list(stats.errors)) == (5, 20, [])
    result = metrics.result()
    assert (result["applications"], result["calls"], result["aborted_calls"]) == (5, 20, 0)
    assert stats.counters["vllm"]["output_tokens"] == 20 * 12
    assert list(stats.disagreements) == []
    assert stats.lateness_s["max"] is not None
    setup, parity = replay_file(events)
    assert (setup.policy, setup.seed, parity.equal) == (policy, 7, True)
    running.await_idle()
    assert Remote(running.url, "tiny").info()["policy"] == "tokencake"  # the server's own run goes on


def test_tool_events_reach_the_scheduler(running: Running) -> None:
    async def conversation(server: Talking) -> list[Any]:
        await server.start("tokencake")
        call, request = a_call("one", 3, ToolHint("web", 2.0))
        assert len(await server.complete(call, request, range(70), False)) == 3
        await reported(server, e.ToolStarted)
        await server.tell([{"event": "tool_returned", "app": "app", "agent": "main"}])
        await reported(server, e.ToolReturned)
        call, request = a_call("two", 3, ToolHint("web", 2.0))
        await server.complete(call, request, range(70), False)
        call, request = a_call("three", 3)  # that it comes says that the tool returned
        await server.complete(call, request, range(70), False)
        await server.tell([{"event": "app_finished", "app": "app"}], wait=True)
        await server.stop()
        return await server.facts_so_far()

    facts = talk(running, conversation)
    told = [type(fact).__name__ for fact in facts if isinstance(fact, e.ToolStarted | e.ToolReturned | e.CallArrived)]
    assert told == [
        "CallArrived",
        "ToolStarted",
        "ToolReturned",
        "CallArrived",
        "ToolStarted",
        "ToolReturned",
        "CallArrived",
    ]
    assert [fact.app for fact in facts if isinstance(fact, e.AppFinished)] == ["app"]


def test_a_stock_client_says_whose_its_calls_are_with_one_header(running: Running) -> None:
    """It never heard of us: its session is the agent, and stalled between its calls."""
    import openai

    async def conversation(server: Talking) -> list[Any]:
        await server.start("tokencake")
        url, headers = f"{running.url}/v1", {"X-Session-ID": "chat-7"}
        async with openai.AsyncOpenAI(base_url=url, api_key="none", default_headers=headers) as client:
            for tokens in (70, 120):
                await client.completions.create(model="tiny", prompt=[list(range(tokens))], max_tokens=5)
                await reported(server, e.ToolStarted)
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as stranger:
            await stranger.completions.create(model="tiny", prompt=[list(range(70))], max_tokens=5)
        await server.stop()
        return await server.facts_so_far()

    facts = talk(running, conversation)
    kinds = (e.AppStarted, e.CallArrived, e.CallFinished, e.ToolStarted, e.ToolReturned, e.AppFinished)
    assert [type(fact).__name__ for fact in facts if isinstance(fact, kinds)] == [
        "AppStarted",
        "CallArrived",
        "CallFinished",
        "ToolStarted",
        "ToolReturned",
        "CallArrived",
        "CallFinished",
        "ToolStarted",
        "AppFinished",
    ]
    assert {fact.request.agent for fact in facts if isinstance(fact, e.CallArrived)} == {"session:chat-7/main"}
    (again,) = [fact for fact in facts if isinstance(fact, e.CallAdmitted)][1:]
    assert again.gpu_hit_tokens == 64  # of the first call's prompt


def test_a_client_that_disconnects_gives_up_its_call(running: Running) -> None:
    async def conversation(server: Talking) -> list[Any]:
        await server.start("tokencake")
        call, request = a_call("long", 900)
        sent = asyncio.create_task(server.complete(call, request, range(70), True))
        await reported(server, e.FirstToken)
        sent.cancel()
        aborted = await reported(server, e.CallAborted)
        await server.stop()
        return aborted

    (aborted,) = talk(running, conversation)
    assert aborted.call == "app/long"
    running.await_idle()


async def policy_of(running: Running) -> object:
    other = Server(running.url, "tiny")
    try:
        return (await other.about()).everything["policy"]
    finally:
        await other.close()


@pytest.mark.parametrize("order", [("end", "disconnect"), ("disconnect", "end"), ("both",), ("disconnect",)])
@pytest.mark.parametrize("policy", ["tokencake", "native-offload"])
def test_a_run_may_end_with_calls_under_way_in_any_order(running: Running, order: tuple[str, ...], policy: str) -> None:
    """The last of the orders is a client that goes without a word: the server ends its run."""

    async def conversation(server: Talking) -> object:
        await server.start(policy)
        calls = [a_call(name, 900) for name in ("one", "two", "three")]
        sent = [asyncio.create_task(server.complete(call, request, range(70), False)) for call, request in calls]
        await reported(server, e.FirstToken, 2)
        for what in order:
            if what in ("disconnect", "both"):
                for task in sent:
                    task.cancel()
            if what in ("end", "both"):
                await server.stop()
                assert await policy_of(running) == "tokencake"
        if "end" not in order and "both" not in order:
            assert await policy_of(running) == policy
            await asyncio.sleep(CLIENT_TIMEOUT_S + 1)
            assert await policy_of(running) == "tokencake"
        call, request = a_call("after", 5)
        assert len(await server.complete(call, request, range(70), True)) == 5
        return None

    talk(running, conversation)
    running.await_idle()
    assert running.process.poll() is None


def test_without_the_token_nobody_begins_a_run(running: Running) -> None:
    async def through() -> str:
        server = Server(running.url, "tiny", "w" * 40)
        try:
            with pytest.raises(EngineError) as caught:
                await server.begin(new_name(), RunSettings(policy="vllm"))
            return str(caught.value)
        finally:
            await server.close()

    assert "the server refuses the control token" in asyncio.run(through())


@pytest.mark.parametrize("policy", ["/usr/lib/python3/os.py:abort", "os.py:system:command=id", "vllm\0"])
def test_a_client_names_no_code(running: Running, policy: str) -> None:
    async def conversation(server: Talking) -> None:
        with pytest.raises(EngineError, match="polic"):
            await server.start(policy)

    talk(running, conversation)
    assert Remote(running.url, "tiny").info()["policy"] == "tokencake"


def test_what_no_client_sends_is_refused_and_the_server_serves_on(running: Running) -> None:
    def post(path: str, body: bytes, **headers: str) -> int:
        asked = Question(f"{running.url}/tokencake/{path}", body, {"Authorization": f"Bearer {TOKEN}", **headers})
        try:
            with urlopen(asked, timeout=30) as answer:
                return int(answer.status)
        except HTTPError as error:
            said, status = error.read(), error.code
        assert b"\n" not in said
        return status

    chunked = {"Content-Type": "application/json"}
    asking = HTTPConnection("127.0.0.1", int(running.url.rpartition(":")[2]), timeout=30)
    asking.putrequest("POST", "/tokencake/run")
    asking.putheader("Authorization", f"Bearer {TOKEN}")
    asking.putheader("Content-Length", str(2**20 + 1))
    asking.endheaders()
    assert asking.getresponse().status == 413  # before any of it is sent
    asking.close()
    assert post("run", b'{"policy": "vllm", "events": "/tmp/x"}') == 400
    assert post("run", b'{"seed": 1' + b"0" * 400 + b"}") == 400
    assert post("run", b"[" * 100_000) == 400
    assert post("events", b'{"events": [{"event": "app_started", "app": "\\u0000"}]}', **chunked) == 400
    assert post("run", b"\x1f\x8b", **{"Content-Encoding": "gzip"}) == 415
    assert Remote(running.url, "tiny").info()["policy"] == "tokencake"


def test_what_is_refused_is_said_in_one_line_and_leaves_the_run_under_way_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.server.BUSY_S", 0.0)

    def refusal(ask: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, str]:
        async def refused() -> str:
            with pytest.raises(EngineError) as caught:
                await ask
            return str(caught.value)

        return refused()

    async def conversation(server: Talking) -> tuple[list[str], list[Any]]:
        unknown = await refusal(server.start("nope"))
        await server.start("vllm")
        second = await refusal(server.begin(new_name(), RunSettings(policy="vllm")))
        wrong = await refusal(server.tell([{"event": "tea_break", "app": "a"}], wait=True))
        facts = list(await server.facts_so_far())
        await server.stop()
        again = await refusal(server.end(new_name()))
        return [unknown, second, wrong, again], facts

    said, facts = talk(running, conversation)
    assert "unknown policy 'nope'" in said[0]
    assert "a run is under way" in said[1]
    assert 'event: expected app_started, app_finished, tool_started or tool_returned, got "tea_break"' in said[2]
    assert "no run" in said[3]
    assert not any("\n" in line for line in said)
    assert any(isinstance(fact, e.RunStarted) for fact in facts)


def test_a_call_that_the_engine_cannot_hold_is_found_before_the_run(running: Running, tmp_path: Path) -> None:
    long = written(tmp_path, {"id": "a", "arrival_s": 0, "calls": [{"id": "c", "prompt": [["x", 2000]], "output": 5}]})
    command = running.tokencake("live", str(long), "--connect", running.url, "--model", "tiny")
    out, err = command.communicate(timeout=WAIT_S)
    assert (command.returncode, out) == (2, "")
    assert err == "error: call 'a/c': 2005 tokens of prompt and answer, but the model's context is 1024\n"


def test_the_command_line_compares_policies_on_a_server(running: Running, trace: Path, tmp_path: Path) -> None:
    report, events = tmp_path / "report.json", tmp_path / "events"
    command = running.tokencake(
        "live", str(trace), "--connect", running.url, "--model", "tiny", "--policy", "vllm", "--policy", "tokencake",
        "--json", str(report), "--events", str(events),
    )  # fmt: skip
    out, err = command.communicate(timeout=5 * WAIT_S)
    assert command.returncode == 0, err
    found = json.loads(report.read_text())
    assert (found["schema"], found["engine"]) == ("tokencake.report/1", "vllm")
    assert [run["policy"] for run in found["runs"]] == ["vllm", "tokencake"]
    assert [run["metrics"]["calls"] for run in found["runs"]] == [20, 20]
    assert all(run["lateness_s"]["max"] >= 0 for run in found["runs"])
    assert sorted(path.name for path in events.iterdir()) == ["1-vllm.jsonl", "2-tokencake.jsonl"]
    assert "tokencake" in out


def test_an_interrupt_leaves_a_server_that_serves(running: Running, tmp_path: Path) -> None:
    path = written(
        tmp_path, {"id": "stopped", "arrival_s": 0, "calls": [{"id": "c", "prompt": [["x", 50]], "output": 900}]}
    )
    command = running.tokencake(
        "live", str(path), "--connect", running.url, "--model", "tiny", "--policy", "vllm", "--events", str(tmp_path)
    )
    partial = tmp_path / "1-vllm.jsonl.partial"
    await_first_token(partial)
    command.send_signal(signal.SIGINT)
    err = command.communicate(timeout=WAIT_S)[1]
    assert (command.returncode, err.strip()) == (130, "interrupted")
    assert "FirstToken" in partial.read_text()
    running.await_idle()
    assert Remote(running.url, "tiny").info()["policy"] == "tokencake"


@pytest.mark.skipif(not for_cpus(), reason="on a GPU the others are asynchronous already")
def test_a_server_that_schedules_asynchronously(
    running: Running, environment: dict[str, str], trace: Path, tmp_path: Path
) -> None:
    """As on a GPU. Its answers are those of the other server, also after calls were given up with a step in flight."""

    async def conversation(server: Talking) -> list[int]:
        await server.start("native-offload")
        calls = [a_call(name, 900) for name in ("one", "two")]
        sent = [asyncio.create_task(server.complete(call, request, range(70), False)) for call, request in calls]
        await reported(server, e.FirstToken, 2)
        for task in sent:
            task.cancel()
        await reported(server, e.CallAborted, 2)
        call, request = a_call("after", 100)
        answer = await server.complete(call, request, range(70), True)
        await server.stop()
        return list(answer)

    args = serve_args(replace(OPTIONS, asynchronous=True), RunSettings(policy="tokencake"), control=True)
    program = [str(PACKAGE / "tests" / "helpers" / "asynchronous_server.py")]
    with started(program, args, environment, tmp_path / "server.log") as server:
        assert Remote(server.url, "tiny").info()["asynchronous"] is True
        for policy in ("tokencake:gate=off", "native-offload"):
            facts: list[Any] = []
            stats = Remote(server.url, "tiny").play(read_trace(trace), RunSettings(policy, steps=True), [facts.append])
            assert (stats.calls, stats.failed, list(stats.disagreements)) == (20, None, [])
            steps = [fact for fact in facts if isinstance(fact, e.Stepped)]
            assert sum(after.from_s < before.at_s for before, after in pairwise(steps)) > len(steps) / 2
        assert talk(server, conversation) == talk(running, conversation)
        server.await_idle()


def test_an_engine_that_stalls_ends_the_run_with_the_call_that_waits(
    running: Running, trace: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    command = running.tokencake(
        "live", str(trace), "--connect", running.url, "--model", "tiny", "--policy", "vllm", "--policy", "thief",
        "--json", str(report),
    )  # fmt: skip
    out, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 1, err
    said = err.splitlines()[-1].removeprefix(f"error: {running.url}: ")
    assert said.startswith("call 'a")
    assert f"and nothing was computed or copied for {STALL_S:.0f} s: it needs " in said
    assert said in running.log.read_text(errors="replace")
    found = json.loads(report.read_text())
    (whole,), (partial,) = found["runs"], found["partial"]
    assert (whole["policy"], partial["policy"], partial["partial"]) == ("vllm", "thief", f"{running.url}: {said}")
    assert 0 < partial["metrics"]["calls"] < whole["metrics"]["calls"]
    assert out.splitlines()[-1].startswith("thief ended after ")

    async def give_back(server: Talking) -> None:
        await server.start("thief:back=on")
        await server.stop()

    talk(running, give_back)
    large = written(tmp_path, {"id": "a", "arrival_s": 0, "calls": [{"id": "c", "prompt": [["x", 900]], "output": 5}]})
    assert Remote(running.url, "tiny").play(read_trace(large), RunSettings("vllm")).calls == 1


def test_a_server_that_dies_fails_the_run_and_what_was_measured_is_kept(running: Running, tmp_path: Path) -> None:
    """The last test: it takes the server with it."""
    path = written(
        tmp_path, {"id": "cut", "arrival_s": 0, "calls": [{"id": "c", "prompt": [["x", 50]], "output": 900}]}
    )
    command = running.tokencake(
        "live", str(path), "--connect", running.url, "--model", "tiny", "--policy", "vllm", "--events", str(tmp_path)
    )
    partial = tmp_path / "1-vllm.jsonl.partial"
    await_first_token(partial)
    running.process.kill()
    err = command.communicate(timeout=WAIT_S)[1]
    assert command.returncode == 1
    assert err.startswith(f"error: {running.url}: ")
    assert "no answer from the server" in err
    assert err.count("\n") == 1
    assert "FirstToken" in partial.read_text()


def await_first_token(partial: Path) -> None:
    """Until the client of a run has heard of one, which its events tell."""
    limit_s = time.monotonic() + WAIT_S
    while not partial.exists() or "FirstToken" not in partial.read_text():
        assert time.monotonic() < limit_s, "no first token"
        time.sleep(0.1)
