"""The host's pool of blocks, block by block: what `live.engine.memory.host_pool` does by runs, as plain as can be."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from tokencake.live.engine.vllm_surface import Hash


class PlainHostPool:
    """`slots` places of one block each. A slot that nobody holds stays readable until its room is needed."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._slot_of: dict[Hash, int] = {}
        self._hash_of: dict[int, Hash] = {}
        self._holders: dict[int, int] = {}  # by slot, those that somebody holds
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(slots))  # first to be taken first

    @property
    def free(self) -> int:
        """Slots that nobody holds, readable or not."""
        return len(self._idle)

    def end(self, hashes: Sequence[Hash], first: int, upto: int) -> int:
        """How far the blocks from `first` on are here without a gap, at most to `upto`."""
        slot_of = self._slot_of
        at = first
        while at < upto and hashes[at] in slot_of:
            at += 1
        return at

    def hold(self, hashes: Iterable[Hash]) -> list[int]:
        """The slots of these contents, all of which must be here; they stay until released."""
        held = [self._slot_of[content] for content in hashes]
        for slot in held:
            self._hold(slot)
        return held

    def take(self, count: int) -> list[int]:
        """So many slots for new contents, held. What they held is forgotten. There must be room."""
        taken = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for slot in taken:
            self._forget(slot)
            self._holders[slot] = 1
        return taken

    def store(self, slots: Sequence[int], hashes: Sequence[Hash]) -> list[int]:
        """These slots have their contents now. Those whose content another slot has are released, the others stay held.

        Returns which are held.
        """
        for slot, content in zip(slots, hashes, strict=True):
            if content not in self._slot_of:
                self._slot_of[content] = slot
                self._hash_of[slot] = content
        self.release([slot for slot in slots if slot not in self._hash_of])
        return [slot for slot in slots if slot in self._hash_of]

    def release(self, slots: Sequence[int]) -> None:
        """Give up slots, in the order of the blocks: the last one's room is taken first."""
        for slot in reversed(slots):
            holders = self._holders[slot] - 1
            if holders:
                self._holders[slot] = holders
                continue
            del self._holders[slot]
            self._idle[slot] = None
            if slot not in self._hash_of:
                self._idle.move_to_end(slot, last=False)  # nothing to read there: first to be taken

    def _hold(self, slot: int) -> None:
        self._idle.pop(slot, None)
        self._holders[slot] = self._holders.get(slot, 0) + 1

    def _forget(self, slot: int) -> None:
        content = self._hash_of.pop(slot, None)
        if content is not None:
            del self._slot_of[content]
