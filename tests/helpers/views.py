"""Views for tests of policies, told as a story: calls arrive, start and finish, tools run; no engine is needed."""

from __future__ import annotations

from tokencake.policies.costs import LinearCosts
from tokencake.policies.interface import Hits, View
from tokencake.policies.ledger import Ledger
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS, Hints
from tokencake.traces.events import Fact, Request, ToolHint

BLOCK_TOKENS = 16
NOTHING_CACHED = Hits(0, 0, 0)


class Story:
    """What happened so far. Ids are `application/call`; an agent is named like its first call unless told otherwise.

    Blocks have 16 tokens; copying a block takes `copy_block_s` either way, and nothing else costs anything. The cache
    is what `cached` says it is; `free_blocks` and `growth_blocks` may be set at any time.
    """

    def __init__(
        self,
        gpu_blocks: int = 100,
        free_blocks: int | None = None,
        host_blocks: int = 1000,
        copy_block_s: float = 0.001,
    ) -> None:
        self.now_s = 0.0
        self.step = 0
        self.free_blocks = gpu_blocks if free_blocks is None else free_blocks
        self.growth_blocks = 0
        self.host_free_blocks = host_blocks
        self.asked: list[str] = []  # calls whose hits were asked for
        self._cached: dict[str, Hits] = {}
        self._requests: dict[str, Request] = {}
        self._apps: set[str] = set()
        self._news: list[Fact] = []
        self._ledger = Ledger(LinearCosts(0.0, copy_block_s, 0.001, 0.0), self)
        self._tell(e.RunStarted(0.0, BLOCK_TOKENS, gpu_blocks, host_blocks, 1 << 20))

    def view(self) -> View:
        """The view of now. What happened since the last one is its news."""
        self._tell(e.Polled(self.now_s, self.step, self.free_blocks, self.growth_blocks, self.host_free_blocks))
        self._ledger.tell(self._news[:-1])
        self._news.clear()
        return self._ledger.view

    def passes(self, seconds: float, steps: int = 0) -> None:
        """Time goes by."""
        self.now_s += seconds
        self.step += steps

    def hits(self, call: str) -> Hits:
        self.asked.append(call)
        return self._cached.get(call, NOTHING_CACHED)

    def shared_blocks(self, call: str) -> int:
        hits = self._cached.get(call, NOTHING_CACHED)
        return hits.gpu_blocks - hits.idle_blocks

    def cached(self, call: str, gpu_blocks: int, idle_blocks: int = 0, host_blocks: int = 0) -> None:
        """So much of the call's prompt is cached from now on."""
        self._cached[call] = Hits(gpu_blocks, idle_blocks, host_blocks)

    def arrives(
        self,
        call: str,
        prompt_tokens: int = 160,
        max_output_tokens: int = 16,
        agent: str | None = None,
        agent_type: str = "worker",
        tools: tuple[ToolHint, ...] = (),
        hints: Hints = NO_HINTS,
    ) -> None:
        app = call.split("/")[0]
        if app not in self._apps:
            self._apps.add(app)
            self._tell(e.AppStarted(self.now_s, app))
        request = Request(call, app, agent or call, agent_type, prompt_tokens, max_output_tokens, tools, hints)
        self._requests[call] = request
        self._tell(e.CallArrived(self.now_s, request))

    def starts(self, call: str, gpu_hit_tokens: int = 0) -> None:
        self._tell(e.CallAdmitted(self.now_s, call, gpu_hit_tokens, 0, 0))

    def finishes(self, call: str) -> None:
        request = self._requests[call]
        tokens = request.prompt_tokens + request.max_output_tokens
        self._tell(e.CallFinished(self.now_s, call, request.max_output_tokens, (tokens - 1) // BLOCK_TOKENS))

    def tool_starts(self, call: str) -> None:
        self._tell(e.ToolStarted(self.now_s, call, self._requests[call].agent))

    def tool_returns(self, call: str) -> None:
        self._tell(e.ToolReturned(self.now_s, call, self._requests[call].agent))

    def runs(self, call: str, **asked: object) -> None:
        """It arrives, starts and finishes at once."""
        self.arrives(call, **asked)  # type: ignore[arg-type]
        self.starts(call)
        self.finishes(call)

    def happens(self, fact: Fact) -> None:
        """Anything else."""
        self._tell(fact)

    def _tell(self, fact: Fact) -> None:
        self._ledger.fold(fact)
        self._news.append(fact)
