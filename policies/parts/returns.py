"""Will this agent call again? What its last call says, and what others of its type did."""

from __future__ import annotations

from ...traces.events import Request


class Returns:
    """Guesses whether an agent that ended a call comes back: a view tells of no call that has not arrived.

    It does after tools, and after a call whose context is declared reusable. After any other call it does if an agent
    of this type did before: applications may call a context not reusable though the same agent goes on with it.
    """

    def __init__(self) -> None:
        self._came_back: set[str] = set()  # agent types

    def calls_again(self, last: Request) -> bool:
        """Whether an agent whose latest call is `last` is expected to call again."""
        return _says_so(last) or last.agent_type in self._came_back

    def learn(self, last: Request) -> bool:
        """The agent whose latest call was `last` has called again. Whether more is expected of some agents now."""
        if _says_so(last) or last.agent_type in self._came_back:
            return False
        self._came_back.add(last.agent_type)
        return True


def _says_so(last: Request) -> bool:
    return bool(last.tools) or last.hints.reusable
