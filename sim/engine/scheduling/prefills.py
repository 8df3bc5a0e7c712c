"""The calls in the middle of their prompts: how many tokens each computes in the next step, and the blocks for them."""

from __future__ import annotations

from ....traces.arithmetic import div_ceil
from ...machine.engine_versions import LONE_PROMPTS_ARE_NOT_CUT
from ...machine.machine import Machine
from ..memory.block_pool import BlockPool
from ..requests import EngineCall
from .batch import DecodeBatch
from .step import Step


class Prefills:
    """`calls` are in order of admission.

    Nobody was admitted behind a call that got less than its share, and no call asks for more than in the step before.
    So at most the last one, which is then the last of all running calls, gets what the others leave; and everybody gets
    something.
    """

    def __init__(self, machine: Machine, gpu: BlockPool, batch: DecodeBatch) -> None:
        self._block_tokens = machine.block_tokens
        self._budget_tokens = machine.step_budget_tokens
        self._long_prompt_tokens = machine.long_prefill_token_threshold
        self._spares_lone_prompts = machine.has(LONE_PROMPTS_ARE_NOT_CUT)
        self._gpu = gpu
        self._batch = batch
        self.calls: dict[EngineCall, None] = {}
        self.max_chunk_tokens = self._budget_tokens  # of one prompt, in the step that is being scheduled
        self.alone = False  # a prompt takes more than the threshold, until there is somebody to starve

    def limit_chunks(self, num_calls: int) -> None:
        """A long prompt is cut so that it starves nobody of tokens; one that is alone has nobody to starve."""
        if self._long_prompt_tokens:
            self.alone = self._spares_lone_prompts and num_calls == 1
            self.max_chunk_tokens = (
                self._budget_tokens if self.alone else min(self._budget_tokens, self._long_prompt_tokens)
            )

    def chunks(self) -> list[tuple[EngineCall, int, int]]:
        """Of each call, the tokens that it computes next, and the blocks for them."""
        left_tokens = self._budget_tokens - self._batch.num_calls
        chunks = []
        for call in self.calls:
            chunk_tokens, blocks = self.chunk(call, left_tokens)
            left_tokens -= chunk_tokens
            chunks.append((call, chunk_tokens, blocks))
        return chunks

    def chunk(self, call: EngineCall, budget_tokens: int) -> tuple[int, int]:
        """The tokens that one call computes next, at most the budget, and the blocks for them."""
        done_tokens = call.num_computed_tokens
        chunk_tokens = min(call.num_prefill_tokens - done_tokens, self.max_chunk_tokens, budget_tokens)
        size = self._block_tokens
        return chunk_tokens, div_ceil(done_tokens + chunk_tokens, size) - div_ceil(done_tokens, size)

    def compute(self, step: Step, call: EngineCall, chunk_tokens: int, blocks: int) -> None:
        """Compute the next tokens of a running call's prompt. Its full blocks can be hit from this moment on."""
        hold = call.hold
        assert hold is not None
        self._gpu.allocate(hold, blocks)
        computed_tokens = call.num_computed_tokens + chunk_tokens
        self._gpu.cache(hold, call.path, computed_tokens // self._block_tokens)
        self.book(step, call, chunk_tokens)

    def book(self, step: Step, call: EngineCall, chunk_tokens: int) -> None:
        """A step computes the next tokens of a call's prompt."""
        computed_tokens = call.num_computed_tokens + chunk_tokens
        step.prefill_tokens[call] = chunk_tokens
        if computed_tokens == call.num_prefill_tokens:
            step.finals.append(call)
            self.calls.pop(call, None)
        else:
            self.calls[call] = None

    def begin_stretch(self, step: Step, *, others_wait: bool) -> int:
        """How many iterations may follow each other that compute a chunk as long as this step's only one; 0: just one.

        All chunks but the last one, which leaves room for other calls. A call that waits may hit what an iteration
        computes: then there is no stretch, unless the chunk leaves no token for anybody.
        """
        ((call, chunk_tokens),) = step.prefill_tokens.items()
        if not self.fill_the_step(step) and (chunk_tokens < self.max_chunk_tokens or others_wait):
            return 0
        self._batch.chunk = (call.num_computed_tokens, chunk_tokens)
        return (call.num_prefill_tokens - call.num_computed_tokens - 1) // chunk_tokens

    def fill_the_step(self, step: Step) -> bool:
        """Whether no token is left for anybody who waits."""
        return self._batch.num_calls + sum(step.prefill_tokens.values()) == self._budget_tokens

    def end_stretch(self, step: Step) -> None:
        """A stretch of chunks is over: its later ones have their blocks, too, and can be hit."""
        self._batch.chunk = None
        for call, chunk_tokens in step.prefill_tokens.items():
            hold = call.hold
            assert hold is not None
            computed_tokens = call.num_computed_tokens + step.iterations * chunk_tokens
            hold.uncached_blocks += div_ceil(computed_tokens, self._block_tokens) - hold.num_blocks
            self._gpu.cache(hold, call.path, computed_tokens // self._block_tokens)
