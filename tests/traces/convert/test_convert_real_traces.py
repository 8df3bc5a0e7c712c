"""The public traces, where somebody has them: figures that their publishers state are found again.

The folder is given by TOKENCAKE_TRACES, or lies beside the checkout; without it these tests are skipped.
"""

import os
from itertools import islice
from pathlib import Path

import pytest
from tokens import assert_well_formed

from tokencake.traces.apps import Application
from tokencake.traces.convert.conversion import Conversion
from tokencake.traces.convert.formats import convert

TRACES = Path(os.environ.get("TOKENCAKE_TRACES", Path(__file__).parents[4] / "shared" / "traces"))

pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not here")


@pytest.fixture(scope="module")
def conversations() -> list[Application]:
    return list(convert(TRACES / "agentic-coding", "agentic-coding"))


def test_all_64_conversations_convert(conversations: list[Application]) -> None:
    mains = [c for conversation in conversations for c in conversation.calls if c.agent_type == "main"]
    subs = [c for conversation in conversations for c in conversation.calls if c.agent_type == "Explore"]
    assert len(conversations) == 64
    assert (len(mains), len(subs)) == (2_988, 116)
    assert len({call.agent for call in subs}) == 8


def test_prompts_keep_their_lengths(conversations: list[Application]) -> None:
    for conversation in conversations:
        contexts = {call.id: call.prompt_tokens for call in conversation.calls}
        for call in conversation.calls:
            said = sum(segment.tokens for segment in call.prompt.segments)
            assert said + call.prompt.keep_tokens == call.prompt_tokens
            assert call.prompt.extends is None or call.prompt.keep_tokens <= contexts[call.prompt.extends]
    assert sum(call.prompt_tokens for one in conversations for call in one.calls) == 297_880_516


def test_a_conversation_keeps_most_of_its_context(conversations: list[Application]) -> None:
    """The publishers found 96 % in the whole corpus; what an agent shares with its own last prompt is part of that."""
    calls = [call for conversation in conversations for call in conversation.calls]
    kept = sum(call.prompt.keep_tokens for call in calls)
    assert 0.93 < kept / sum(call.prompt_tokens for call in calls) < 0.97


def test_a_conversation_with_sub_agents_is_well_formed(conversations: list[Application]) -> None:
    with_subs = [c for c in conversations if any(call.agent_type == "Explore" for call in c.calls)]
    assert [conversation.id for conversation in with_subs] == ["trace_0274", "trace_0279", "trace_0282"]
    joins = [call for c in with_subs for call in c.calls if len(call.after) > 1]
    assert [len(call.after) - 1 for call in joins] == [3, 1, 1, 3]
    assert all(0 < call.pause_s < 60 for call in joins)


def test_mooncake_requests_keep_lengths_and_times() -> None:
    applications = list(convert(TRACES / "mooncake" / "conversation_trace.jsonl", "mooncake"))
    assert len(applications) == 12_031
    assert applications[-1].arrival_s == 3_536.999
    assert all(segment.source == "/blocks" for one in applications for segment in one.calls[0].prompt.segments)
    for application in islice(applications, 3):
        assert_well_formed(application)


def test_azure_requests_keep_lengths_and_times() -> None:
    applications = list(convert(TRACES / "azure" / "AzureLLMInferenceTrace_code.csv", "azure"))
    assert len(applications) == 8_819
    assert (applications[0].calls[0].prompt_tokens, applications[0].calls[0].output_tokens) == (4_808, 10)
    assert applications[-1].arrival_s == 3_435.948056


@pytest.mark.parametrize(
    ("path", "source_format"),
    [
        ("agentic-coding", "agentic-coding"),
        ("mooncake/conversation_trace.jsonl", "mooncake"),
        ("azure/AzureLLMInferenceTrace_code.csv", "azure"),
    ],
)
def test_nothing_of_the_public_traces_is_left_out(path: str, source_format: str) -> None:
    conversion = Conversion()
    calls = sum(len(one.calls) for one in convert(TRACES / path, source_format, conversion=conversion))
    assert calls == conversion.rows
    assert not conversion.left_out


def test_conversations_last_as_long_as_they_did() -> None:
    """81 requests of sub-agents ran side by side; one request began 0.21 s too early, in whole seconds."""
    conversion = Conversion()
    assert len(list(convert(TRACES / "agentic-coding", "agentic-coding", conversion=conversion))) == 64
    fidelity = conversion.fidelity
    assert (fidelity.sessions, fidelity.sessions_off, fidelity.requests) == (64, 0, 3_104)
    assert (fidelity.overlapping, fidelity.put_in_sequence, fidelity.waiting, fidelity.endless) == (81, 1, 1, 140)
    assert fidelity.worst is not None
    assert fidelity.worst.off_s < 0.001
