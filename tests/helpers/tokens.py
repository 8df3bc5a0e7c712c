"""Prompts spelled out token by token, for tests with small numbers."""

from tokencake.traces.apps import Application, Call

Token = tuple[str, int]  # a source and a place in it


def prompt_of(application: Application, call_id: str) -> list[Token]:
    """Every token of a call's prompt."""
    call = _call(application, call_id)
    kept = context_of(application, call.prompt.extends)[: call.prompt.keep_tokens] if call.prompt.extends else []
    assert len(kept) == call.prompt.keep_tokens
    return kept + [(source, start + i) for source, start, tokens in call.prompt.segments for i in range(tokens)]


def context_of(application: Application, call_id: str) -> list[Token]:
    """A call's prompt, then its answer."""
    answer = [(call_id, i) for i in range(_call(application, call_id).output_tokens)]
    return prompt_of(application, call_id) + answer


def common_prefix(left: list[Token], right: list[Token]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def assert_well_formed(application: Application) -> None:
    """Calls follow what they wait for, prompts are as long as they say, and answers are read once they are there."""
    done: dict[str, set[str]] = {}
    lengths = {call.id: call.output_tokens for call in application.calls}
    for call in application.calls:
        assert all(awaited in done for awaited in call.after)
        behind = set(call.after).union(*(done[awaited] for awaited in call.after))
        assert len(prompt_of(application, call.id)) == call.prompt_tokens > 0
        assert call.prompt.extends is None or call.prompt.extends in behind
        for source, start, tokens in call.prompt.segments:
            assert tokens > 0
            assert source not in lengths or (source in behind and start + tokens <= lengths[source])
        assert 1 <= call.output_tokens <= call.max_output_tokens
        assert call.app == application.id
        assert call.id not in done
        done[call.id] = behind


def _call(application: Application, call_id: str) -> Call:
    return next(call for call in application.calls if call.id == call_id)
