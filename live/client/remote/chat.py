"""Messages that realise a trace's prompts as text, for servers that are to be talked to in chat completions.

What a call says to the model becomes words, one for each token that the trace counts, and what the model said stays
what it said. So prompts that share a prefix in the trace share their text; but how many tokens the server makes of it,
with the chat template around it, is only about what the trace says.
"""

from __future__ import annotations

from ....traces.apps import Application, Call, CallId, Segment
from ..tokens import Tokens
from .server import Message

# Short and common: nearly every tokenizer has each of them, with the space before it, as one token.
_TEXT = """
the of and to in is that it was for on are as with his they at be this have from or one had by but not what all were we
when your can said there use an each which she do how their if will up other about out many then them these so some her
would make like him into time has look two more write go see number no way could people my than first water been call
who its now find long down day did get come made may part over new sound take only little work know place year live me
"""
WORDS = tuple(_TEXT.split())


class Messages(Tokens):
    """The messages of applications under way."""

    def __init__(self) -> None:
        super().__init__(len(WORDS))
        self._texts: dict[CallId, str] = {}  # what calls answered, until their application ends

    def end(self, application: Application) -> None:
        super().end(application)
        for call in application.calls:
            self._texts.pop(call.id, None)

    def prompt(self, call: Call) -> list[int]:
        """None: a chat's prompt is made of messages."""
        return []

    def said(self, call: CallId, text: str) -> None:
        """What the model said."""
        self._texts[call] = text

    def of(self, call: Call) -> list[Message]:
        """The conversation up to a call. Every call whose answer it contains has answered."""
        messages: list[Message] = []
        for segment in self._segments(call):
            role = "assistant" if segment.source in self._texts else "user"
            text = self._text(segment)
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += " " + text
            else:
                messages.append({"role": role, "content": text})
        return messages

    def _text(self, segment: Segment) -> str:
        said = self._texts.get(segment.source)
        if said is None:
            return " ".join(WORDS[token] for token in self._ids(segment))
        answered_tokens = self._calls[segment.source].output_tokens
        first, end = (
            len(said) * tokens // answered_tokens for tokens in (segment.start, segment.start + segment.tokens)
        )
        return said[first:end]
