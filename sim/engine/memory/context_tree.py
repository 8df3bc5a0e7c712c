"""The tree of contexts: which prompts share which tokens, without a list of tokens or hashes anywhere.

A context is a place in a tree: a node and the position up to which it goes. A node holds a run of segments; a branch
hangs at the position where it leaves its parent, so nodes are never split. What is known to be continued extends a
node in place: a growing conversation stays one node, and answers that no later prompt repeats become stubs beside it.
Without such knowledge, too, texts that grow make no chain of nodes: a stub that is continued after all grows in place,
and where a text takes more of a source than the one before it, as the next one may again, what is new is no stub.

A full block belongs to the node of its last token, and so does what is known of its copies (see `cached_runs`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from ....traces.agreement import agree
from ....traces.apps import Segment
from .blocks import NO_RUNS, Node


class Context(NamedTuple):
    """The first `num_tokens` tokens on the way from the root through `node`."""

    node: Node
    num_tokens: int


class Piece(NamedTuple):
    """Blocks `first` … `end − 1` of a context, all of one node."""

    node: Node
    first_block: int
    end_block: int


Path = tuple[Piece, ...]
_tuple = tuple.__new__  # of a named tuple: half the time of its own constructor

ENDLESS: Final = 2**62  # tokens


class ContextTree:
    """All contexts that somebody may still continue or that have blocks somewhere."""

    def __init__(self, sides: int = 2) -> None:
        """`sides`: places where a block may lie, each KV cache group on the GPU and on the host."""
        self._no_runs = (NO_RUNS,) * sides
        self._root = Node(None, 0, self._no_runs)
        self._root.ref_cnt = 1
        self.nodes = 1

    @property
    def empty(self) -> Context:
        return Context(self._root, 0)

    def follow(self, context: Context, segments: Iterable[Segment], line_end_token: int = ENDLESS) -> Context:
        """The context that continues `context` by these segments; the caller holds it until it calls `release`.

        Up to `line_end_token` it is going to be continued: what is new of that stays in the node that it continues. The
        rest hangs beside, as a stub.
        """
        node, at = context
        for segment in segments:
            source, start, left = segment
            while left:
                if at < node.end_token:
                    ends = node.segment_end_tokens
                    i = bisect_right(ends, at)
                    known_source, known_start, known_tokens = node.segments[i]
                    same = ends[i] - at
                    if known_source == source and known_start + known_tokens - same == start:
                        if same > left:
                            same = left
                        at += same
                        start += same
                        left -= same
                        continue
                child = node.children.get((at, source, start)) if node.children else None
                if child is not None:
                    node = child
                    continue
                in_line = at < line_end_token or _goes_on(node, at, source, start)
                if at < node.end_token or node is self._root or not (in_line or node.is_stub):
                    node = self._branch(node, at, source, start)
                    node.is_stub = not in_line
                new = left
                if at < line_end_token:
                    node.is_stub = False
                    new = min(left, line_end_token - at)
                at = self._extend(node, segment, start, new)
                start += new
                left -= new
        node.ref_cnt += 1
        return Context(node, at)

    def cut(self, context: Context, tokens: int) -> Context:
        """The first `tokens` tokens of a context. Nobody holds it: use it only to follow on."""
        node = context.node
        while node.parent is not None and tokens <= node.start_token:
            node = node.parent
        return Context(node, tokens)

    def release(self, node: Node) -> None:
        """One need less for this node."""
        node.ref_cnt -= 1
        while not node.ref_cnt:
            parent = node.parent
            assert parent is not None, "the root is always needed"
            assert parent.children is not None, "its parent knows it"
            first = node.segments[0]
            del parent.children[node.start_token, first.source, first.start]
            self.nodes -= 1
            node = parent
            node.ref_cnt -= 1

    def all_nodes(self) -> list[Node]:
        """Every node, the root first."""
        nodes = [self._root]
        for node in nodes:
            nodes.extend((node.children or {}).values())
        return nodes

    def check(self) -> None:
        """Raises `CheckError` if the nodes do not agree with each other."""
        nodes = self.all_nodes()
        agree("nodes of the context tree", self.nodes, len(nodes))
        for node in nodes:
            children = node.children or {}
            runs = sum(len(side) for side in node.runs)
            agree(f"whether a node is needed that begins at token {node.start_token}", node.ref_cnt > 0, True)
            agree(
                f"whether all need a node that begins at token {node.start_token}",
                node.ref_cnt >= runs + len(children),
                True,
            )
            agree("the parent of a node", all(child.parent is node for child in children.values()), True)

    def _branch(self, parent: Node, at: int, source: str, start: int) -> Node:
        child = Node(parent, at, self._no_runs)
        if parent.children is None:
            parent.children = {}
        parent.children[at, source, start] = child
        parent.ref_cnt += 1
        self.nodes += 1
        return child

    def _extend(self, node: Node, segment: Segment, start: int, tokens: int) -> int:
        """Append a part of a segment to a node that ends here, and return its new end."""
        node.end_token += tokens
        source = segment.source
        if node.segments:
            last = node.segments[-1]
            if last[0] == source and last[1] + last[2] == start:
                node.segments[-1] = Segment(source, last[1], last[2] + tokens)
                node.segment_end_tokens[-1] = node.end_token
                return node.end_token
        node.segments.append(segment if segment.tokens == tokens else Segment(source, start, tokens))
        node.segment_end_tokens.append(node.end_token)
        return node.end_token


def full_blocks(context: Context, block_tokens: int) -> Path:
    """The context's full blocks, node by node from the root on."""
    pieces: list[Piece] = []
    node: Node | None
    node, end = context
    while node is not None:
        first, last = node.start_token // block_tokens, end // block_tokens
        if last > first:
            pieces.append(_tuple(Piece, (node, first, last)))
        end = node.start_token
        node = node.parent
    pieces.reverse()
    return tuple(pieces)


def changes(path: Path) -> int:
    """Rises with all that changes what is found of a path: while it is the same, so is what every look-up finds."""
    count = 0
    for node, _, _ in path:
        count += node.changes
    return count


def _goes_on(node: Node, at: int, source: str, start: int) -> bool:
    """Whether the token of the source behind the one before position `at` of a node is this one."""
    i = bisect_left(node.segment_end_tokens, at)
    if i == len(node.segments) or node.segment_end_tokens[i] != at:
        return False
    known = node.segments[i]
    return known[0] == source and known[1] + known[2] == start
