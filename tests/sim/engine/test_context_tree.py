"""The tree of contexts against lists of tokens: contexts share blocks exactly as far as their tokens are the same."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import given

from tokencake.sim.engine.memory.context_tree import Context, ContextTree
from tokencake.traces.apps import Segment

Token = tuple[str, int]  # a source and a position in it


class Text(NamedTuple):
    context: Context
    tokens: list[Token]


class Write(NamedTuple):
    """Continue the first part of a living text, or of none, by some segments."""

    base: int
    keep_share: float
    segments: list[Segment]
    aside: bool  # nothing is going to continue it


class Erase(NamedTuple):
    text: int


segments = st.builds(Segment, st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 9))
writes = st.builds(
    Write, st.integers(0, 20), st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)), st.lists(segments, max_size=4), st.booleans()
)
scripts = st.lists(st.one_of(writes, writes, st.builds(Erase, st.integers(0, 20))), max_size=25)


@given(scripts, st.integers(1, 4))
def test_contexts_share_blocks_as_far_as_their_tokens_are_the_same(script: list[Write | Erase], size: int) -> None:
    tree = ContextTree(size)
    texts: list[Text] = []
    for act in script:
        if isinstance(act, Write):
            texts.append(_written(tree, texts, act))
        elif texts:
            tree.release(texts.pop(act.text % len(texts)).context.node)
        _check_paths(tree, texts, size)
    for text in texts:
        tree.release(text.context.node)
    assert tree.nodes == 1
    assert not tree.empty.node.children


def _written(tree: ContextTree, texts: list[Text], write: Write) -> Text:
    base = Text(tree.empty, [])
    if write.base and texts:
        base = texts[write.base % len(texts)]
    keep = round(write.keep_share * len(base.tokens))
    tokens = base.tokens[:keep]
    for source, start, count in write.segments:
        tokens = tokens + [(source, start + i) for i in range(count)]
    return Text(tree.follow(tree.cut(base.context, keep), write.segments, write.aside), tokens)


def _check_paths(tree: ContextTree, texts: list[Text], size: int) -> None:
    paths = [
        [(id(node), block) for node, first, end in tree.path(text.context) for block in range(first, end)]
        for text in texts
    ]
    for text, path in zip(texts, paths, strict=True):
        assert text.context.num_tokens == len(text.tokens)
        assert [block for _, block in path] == list(range(len(text.tokens) // size))
    for one, path in zip(texts, paths, strict=True):
        for other, other_path in zip(texts, paths, strict=True):
            same = _common(one.tokens, other.tokens) // size
            assert _common(path, other_path) == same
            assert path[same:] == [] or other_path[same:] == [] or path[same] != other_path[same]


def _common(one: list, other: list) -> int:  # type: ignore[type-arg]
    """How many items two lists begin with in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def test_a_conversation_stays_one_node_and_an_answer_that_nobody_repeats_hangs_beside_it() -> None:
    tree = ContextTree(4)
    prompt = tree.follow(tree.empty, [Segment("a/prompt", 0, 10)])
    answered = tree.follow(prompt, [Segment("a/1", 0, 6)], aside=True)
    grown = tree.follow(prompt, [Segment("a/result", 0, 8)])
    assert grown.node is prompt.node
    assert answered.node is not prompt.node
    assert tree.nodes == 3
