"""Applications of a single call: what a chat or completion request is."""

from __future__ import annotations

from ..apps import AppId, Application, Call, Prompt, Segment
from ..format.derive import derive_hints

_CALL = Call("a/call", "a", "a/call", "call", Prompt((Segment("a/prompt", 0, 1),), tokens=1), 1, 1)
_HINTS = derive_hints((_CALL,))[0]  # the same for all: derived once, not once a call


def one_call_application(
    app: AppId, arrival_s: float, segments: tuple[Segment, ...], output_tokens: int
) -> Application:
    """An application whose only call, `app/call`, has this prompt and answer. Its budget is the answer's length."""
    tokens = sum(segment.tokens for segment in segments)
    call = Call(
        id=f"{app}/call",
        app=app,
        agent=f"{app}/call",
        agent_type="call",
        prompt=Prompt(segments, tokens=tokens),
        output_tokens=output_tokens,
        max_output_tokens=output_tokens,
        hints=_HINTS,
    )
    return Application(app, arrival_s, (call,))
