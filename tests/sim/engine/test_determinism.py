"""The same inputs give the same facts, whatever Python's hash seed; and no fact depends on what is yet to come."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from adversary import Adversary, hard_workload
from runs import MakePolicy, Record, play
from seeds import seeds

from tokencake.policies.field.vllm import Vllm
from tokencake.policies.tokencake.policy import tokencake
from tokencake.traces import events as e
from tokencake.traces.apps import Application, Call, CallId, Tool

SCRIPT = """
import sys
from dataclasses import replace
from tokencake.policies.tokencake.policy import tokencake
from tokencake.policies.field.vllm import Vllm
from tokencake.sim.machine.presets import PUBLISHED
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.format.events_file import EventsWriter
from tokencake.traces.generate.workloads import code_writer, deep_research

machine = replace(PUBLISHED, gpu_blocks=1500)
for trace in (code_writer(apps=3, seed=1, spread=0.2, arrivals="poisson"), deep_research(apps=3, qps=0.5, seed=1)):
    applications = list(trace)
    for policy in (Vllm(), tokencake(), tokencake(rules="published", gate=False)):
        with EventsWriter(sys.argv[1]) as writer:
            simulate(applications, policy, machine, journal=writer.add)
        sys.stdout.buffer.write(open(sys.argv[1], "rb").read())
"""


def test_an_events_file_is_the_same_to_the_byte_in_any_process(tmp_path: Path) -> None:
    files = [_events(tmp_path / f"{seed}.jsonl", seed) for seed in ("0", "1", "4242")]
    assert b'"fact":"OffloadFinished"' in files[0]
    assert b'"fact":"Planned"' in files[0]
    assert files[0] == files[1] == files[2]


def _events(path: Path, hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, path], env=environment, cwd=path.parent, capture_output=True, check=True
    )
    return run.stdout


def policies(seed: int) -> list[MakePolicy]:
    return [Vllm, tokencake, partial(tokencake, rules="published", gate=False), partial(Adversary, seed)]


@seeds(10, 30)
def test_a_tool_that_is_still_running_does_not_show_how_long_it_will_take(seed: int) -> None:
    """One tool takes longer than in another run: up to its return in that one nothing differs, plans included."""
    applications, machine = hard_workload(seed)
    with_tools = [call.id for application in applications for call in application.calls if call.tools]
    for make in policies(seed):
        records = play(applications, make, machine)
        for call in with_tools[:: max(1, len(with_tools) // 2)]:
            slower = tuple(_with_slower_tool(application, call) for application in applications)
            returned_s = _time(records, e.ToolReturned, call)
            assert _before(records, returned_s) == _before(play(slower, make, machine), returned_s)


def _with_slower_tool(application: Application, name: CallId) -> Application:
    def slower(call: Call) -> Call:
        tools = tuple(
            Tool(tool.kind, tool.duration_s * 3 + 1, tool.declared_s, tool.result_tokens) for tool in call.tools
        )
        return call._replace(tools=tools)

    return application._replace(calls=tuple(slower(call) if call.id == name else call for call in application.calls))


@seeds(10, 30)
def test_a_call_that_still_answers_does_not_show_how_long_its_answer_will_be(seed: int) -> None:
    """Only the declared budget is known: a longer answer within it changes nothing before it is longer."""
    applications, machine = hard_workload(seed)
    lasts = [_last_call(application) for application in applications]
    most = max(call.output_tokens for call in lasts) + 9
    applications = tuple(
        _with_answer(app, call, call.output_tokens, most) for app, call in zip(applications, lasts, strict=True)
    )
    machine = replace(machine, gpu_blocks=machine.gpu_blocks + -(-most // machine.block_tokens))
    for make in policies(seed):
        records = play(applications, make, machine)
        for at in range(0, len(lasts), 2):
            call = lasts[at]
            longer = _with_answer(applications[at], call, most, most)
            others = play((*applications[:at], longer, *applications[at + 1 :]), make, machine)
            end_s = _time(records, e.CallFinished, call.id)
            assert _before(records, end_s) == _before(others, end_s)


def _last_call(application: Application) -> Call:
    """The last one in the trace: no other call waits for it or holds its answer."""
    return application.calls[-1]


def _with_answer(application: Application, last: Call, output_tokens: int, most: int) -> Application:
    call = application.calls[-1]._replace(output_tokens=output_tokens, max_output_tokens=most)
    assert call.id == last.id
    return application._replace(calls=(*application.calls[:-1], call))


def _time(records: list[Record], kind: type[e.ToolReturned] | type[e.CallFinished], call: CallId) -> float:
    (at_s,) = [record.at_s for record in records if isinstance(record, kind) and record.call == call]
    return at_s


def _before(records: list[Record], at_s: float) -> list[Record]:
    """What a policy can have been told by then.

    Not what the last step stores: a step that is scheduled while one runs has the tokens of a call that ends with that
    one, and the policy is asked only afterwards.
    """
    before = [record for record in records if record.at_s < at_s]
    while before and isinstance(before[-1], e.StoreStarted | e.StoreRefused):
        before.pop()
    return before
