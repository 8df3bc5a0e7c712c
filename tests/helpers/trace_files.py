"""Traces in files and in memory, for the tests of whatever reads or writes them."""

import json
from pathlib import Path

from hypothesis import strategies as st

from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.format.derive import with_hints
from tokencake.traces.format.reader import read_trace

HEADER = {"format": "tokencake.trace", "version": 1}


def one_call(**fields: object) -> dict[str, object]:
    """The JSON of a call with a prompt of 10 tokens and an answer of 5."""
    return {"id": "c", "prompt": [["task", 10]], "output": 5, **fields}


def one_app(*calls: object, **fields: object) -> dict[str, object]:
    return {"id": "a0", "arrival_s": 0, "calls": list(calls), **fields}


def written(folder: Path, *lines: object, header: object = HEADER) -> Path:
    """A trace file with these lines, as JSON except where they are bytes."""
    path = folder / "t.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in (header, *lines)]
    path.write_bytes(b"\n".join(data) + b"\n")
    return path


def applications(folder: Path, *lines: object) -> list[Application]:
    return list(read_trace(written(folder, *lines)))


def calls(folder: Path, *entries: object) -> dict[str, Call]:
    """The calls of an application with these entries, by local name."""
    (application,) = applications(folder, one_app(*entries))
    return {call.id.partition("/")[2]: call for call in application.calls}


TOKENS = st.integers(1, 50)
SECONDS = st.floats(0, 1e6, allow_nan=False)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1, max_size=8)


@st.composite
def dags(draw: st.DrawFn, app: str = "a0", arrival_s: float = 0.0) -> Application:
    """An application of up to six calls, each an agent of its own or going on with one whose last call it waits for."""
    calls: list[Call] = []
    latest: dict[str, int] = {}
    waits_for: list[set[int]] = []
    for at in range(draw(st.integers(1, 6))):
        direct = draw(st.lists(st.integers(0, at - 1), unique=True, max_size=3)) if at else []
        known = set(direct).union(*(waits_for[before] for before in direct))
        agents = sorted(agent for agent, last in latest.items() if last in known)
        agent = draw(st.sampled_from([f"agent{at}", *agents]))
        latest[agent] = at
        waits_for.append(known)
        calls.append(_call(draw, app, at, agent, [calls[i] for i in direct], [calls[i] for i in sorted(known)]))
    return with_hints(Application(app, arrival_s, tuple(calls)))


def _call(draw: st.DrawFn, app: str, at: int, agent: str, direct: list[Call], known: list[Call]) -> Call:
    extended = draw(st.sampled_from([None, *known]))
    context_tokens = extended.prompt_tokens + extended.output_tokens if extended else 0
    keep_tokens = draw(st.integers(1, context_tokens)) if extended else 0
    segments = tuple(_segment(draw, app, known) for _ in range(draw(st.integers(0 if extended else 1, 3))))
    output_tokens = draw(TOKENS)
    return Call(
        id=f"{app}/c{at}",
        app=app,
        agent=f"{app}/{agent}",
        agent_type=draw(st.sampled_from([agent, "worker"])),
        prompt=Prompt(
            segments,
            extended.id if extended else None,
            keep_tokens,
            keep_tokens + sum(segment.tokens for segment in segments),
        ),
        output_tokens=output_tokens,
        max_output_tokens=output_tokens + draw(st.integers(0, 5)),
        after=tuple(call.id for call in direct),
        pause_s=draw(SECONDS),
        tools=tuple(draw(st.lists(TOOLS, max_size=2))),
    )


def _segment(draw: st.DrawFn, app: str, known: list[Call]) -> Segment:
    cited = draw(st.sampled_from([None, *known]))
    if cited:
        start = draw(st.integers(0, cited.output_tokens - 1))
        return Segment(cited.id, start, draw(st.integers(1, cited.output_tokens - start)))
    source = draw(st.sampled_from(["/system", "/docs/guide.md", f"{app}/task", f"{app}/notes/1"]))
    return Segment(source, draw(st.integers(0, 30)), draw(TOKENS))


TOOLS = st.builds(Tool, NAMES, SECONDS, st.none() | SECONDS, st.integers(0, 100))
