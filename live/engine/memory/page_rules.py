"""Which pages of a context a hit needs, by KV cache group.

A page is a block of one group: `block_tokens` tokens of its layers, or the state that a Mamba layer has at its end. All
groups' pages have one size and come from one pool. A hit ends at a boundary between blocks where every group has what
the next token needs: of full attention all pages before it, of a window those that it reaches back to, of a state the
last one. Boundaries are counted in blocks from the start of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, overload

from ....traces.arithmetic import div_ceil
from ..vllm_surface import Hash

Kind = Literal["full", "sliding_window", "chunked_local", "mamba"]
Has = Callable[[int, int], bool]  # whether a page is there, by group and place in the context


class PageRule(NamedTuple):
    """One group's."""

    kind: Kind
    block_tokens: int
    window_tokens: int = 0  # of windows and chunks

    def first_page(self, boundary: int) -> int:
        """Where the pages begin that a hit at this boundary needs; they end at it."""
        if self.kind == "full":
            return 0
        if self.kind == "mamba":
            return max(0, boundary - 1)
        if self.kind == "sliding_window":
            return max(0, boundary - div_ceil(self.window_tokens - 1, self.block_tokens))
        chunk = boundary * self.block_tokens // self.window_tokens
        return chunk * self.window_tokens // self.block_tokens

    def held_pages(self, tokens: int) -> int:
        """How many pages a call holds that has computed so many tokens."""
        return div_ceil(tokens, self.block_tokens) - self._skipped_tokens(tokens) // self.block_tokens

    def _skipped_tokens(self, tokens: int) -> int:
        """Those that its next token does not see."""
        if self.kind == "full":
            return 0
        if self.kind == "mamba":
            return max(0, tokens - 1)
        if self.kind == "sliding_window":
            return max(0, tokens - self.window_tokens + 1)
        return tokens // self.window_tokens * self.window_tokens


Rules = Sequence[PageRule]


class PageSpan(NamedTuple):
    """Pages `first` … `end - 1` of a context in one group."""

    group: int
    first: int
    end: int


def spans(rules: Rules, lowest: int, boundary: int) -> Iterator[PageSpan]:
    """The pages that a hit at `boundary` needs, without those before `lowest`, group by group.

    The last group comes first: what is held is given up from its end on, and vLLM gives up the first group's first.
    """
    for group in every_group(rules):
        first = max(lowest, rules[group].first_page(boundary))
        if first < boundary:
            yield PageSpan(group, first, boundary)


def every_group(rules: Rules) -> range:
    """In the order of `spans`."""
    return range(len(rules) - 1, -1, -1)


def every_page(rules: Rules, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Group and place of all pages of blocks `first` … `end - 1`."""
    return places([PageSpan(group, first, end) for group in every_group(rules)])


def places(spans: Sequence[PageSpan]) -> Iterator[tuple[int, int]]:
    """Group and place of each page."""
    for group, first, end in spans:
        for at in range(first, end):
            yield group, at


def last_boundary(rules: Rules, lowest: int, upto: int, has: Has) -> int:
    """The last boundary up to `upto` at which a hit has all its pages from `lowest` on, or `lowest`."""
    for group, rule in enumerate(rules):
        if rule.kind == "full":
            at = lowest
            while at < upto and has(group, at):
                at += 1
            upto = at
    before = -1
    while upto != before:
        before = upto
        for group, rule in enumerate(rules):
            if rule.kind != "full":
                upto = _last_of(rule, group, lowest, upto, has)
    return upto


def _last_of(rule: PageRule, group: int, lowest: int, upto: int, has: Has) -> int:
    """The same of a group of which later pages may be there when earlier ones are not."""
    at = upto
    while at > max(lowest, rule.first_page(upto)):
        at -= 1
        if not has(group, at):
            upto = at
    return upto


class PageNames(Sequence[Hash]):
    """The names of a group's pages of one context: its blocks' hashes, and the group."""

    __slots__ = ("_group", "_hashes")

    def __init__(self, hashes: Sequence[Hash], group: int) -> None:
        self._hashes = hashes
        self._group = group.to_bytes(4, "big")

    def __len__(self) -> int:
        return len(self._hashes)

    @overload
    def __getitem__(self, at: int) -> Hash: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Hash]: ...
    def __getitem__(self, at: int | slice) -> Hash | Sequence[Hash]:
        if isinstance(at, slice):
            return [content + self._group for content in self._hashes[at]]
        return self._hashes[at] + self._group
