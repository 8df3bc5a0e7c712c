"""The tree of contexts against lists of tokens: contexts share blocks exactly as far as their tokens are the same."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import given

from tokencake.sim.engine.memory.context_tree import Context, ContextTree, full_blocks
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
    line_share: float  # of the new part, what is said to be continued


class Erase(NamedTuple):
    text: int


segments = st.builds(Segment, st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 9))
writes = st.builds(
    Write,
    st.integers(0, 20),
    st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)),
    st.lists(segments, max_size=4),
    st.sampled_from((0.0, 0.4, 1.0)),
)
scripts = st.lists(st.one_of(writes, writes, st.builds(Erase, st.integers(0, 20))), max_size=25)


@given(scripts, st.integers(1, 4))
def test_contexts_share_blocks_as_far_as_their_tokens_are_the_same(script: list[Write | Erase], size: int) -> None:
    tree = ContextTree()
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
    line_end_token = keep + round(write.line_share * (len(tokens) - keep))
    return Text(tree.follow(tree.cut(base.context, keep), write.segments, line_end_token), tokens)


def _check_paths(tree: ContextTree, texts: list[Text], size: int) -> None:
    paths = [
        [(id(node), block) for node, first, end in full_blocks(text.context, size) for block in range(first, end)]
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
    tree = ContextTree()
    prompt = tree.follow(tree.empty, [Segment("a/prompt", 0, 10)])
    answered = tree.follow(prompt, [Segment("a/1", 0, 6)], 0)
    grown = tree.follow(prompt, [Segment("a/result", 0, 8)])
    assert grown.node is prompt.node
    assert answered.node is not prompt.node
    assert tree.nodes == 3


def test_texts_that_take_ever_more_of_one_source_make_no_chain_of_nodes() -> None:
    """Each is followed by an answer of its own, so nothing continues the node of the one before it at its end."""
    tree = ContextTree()
    for i in range(1, 20):
        tree.follow(tree.empty, [Segment("a/document", 0, 8 * i), Segment(f"a/{i}", 0, 4)], 0)
    last = tree.follow(tree.empty, [Segment("a/document", 0, 160)], 0)
    assert [(first, end) for _, first, end in full_blocks(last, 4)] == [(0, 2), (2, 40)]


def test_a_text_that_repeats_another_and_its_answer_stays_in_its_node() -> None:
    tree = ContextTree()
    said = [Segment("a/system", 0, 8)]
    for turn in range(20):
        said += [Segment(f"a/{turn}.user", 0, 8), Segment(f"a/{turn}", 0, 4)]
        context = tree.follow(tree.empty, said, 0)
    assert len(full_blocks(context, 4)) == 1
    assert tree.nodes == 2
