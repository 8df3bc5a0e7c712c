"""Groups of layers whose KV cache follows one rule, as vLLM makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...traces.arithmetic import div_ceil
from ...traces.errors import MachineError
from ...traces.files.fields import shown

FULL, SLIDING_WINDOW, CHUNKED_LOCAL, MAMBA = "full", "sliding_window", "chunked_local", "mamba"
KINDS = (FULL, SLIDING_WINDOW, CHUNKED_LOCAL, MAMBA)
WINDOWED = (SLIDING_WINDOW, CHUNKED_LOCAL)
SPARSE = (SLIDING_WINDOW, MAMBA)  # groups that `prefix_cache_retention_interval` concerns
MOST_GROUPS = 64
LONGEST_WINDOW = 2**31 - 1  # as the longest context
_FORM = f"{FULL}, {MAMBA}, {SLIDING_WINDOW}:TOKENS or {CHUNKED_LOCAL}:TOKENS"
_ONE = re.compile(r"(?:([1-9][0-9]{0,2})\*)?([a-z_]{1,20})(?::([0-9]{1,10}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class KvGroup:
    """One group. A page of the pool holds `block_tokens` tokens of its layers, or one state of a `mamba` group.

    `full`: keys and values (or an MLA layer's latent) of every token. `sliding_window`: a token sees the last
    `window_tokens`, itself included. `chunked_local`: a token sees those of its own chunk of `window_tokens`.
    `mamba`: a state, of a Mamba or a gated-delta-net layer. Raises MachineError if kind and window do not fit.
    """

    kind: str
    window_tokens: int = 0  # 0 where the kind has none

    def __post_init__(self) -> None:
        if problem := _problem(self.kind, self.window_tokens):
            raise MachineError(f"kv_groups: {problem}")


@dataclass(frozen=True, slots=True)
class Groups:
    """A setting that is a list of KV cache groups: text, such as `full+6*sliding_window:1024`, or a file's tables."""

    def problem(self, value: object) -> str | None:
        if isinstance(value, str):
            pairs, problem = _pairs_of_text(value)
        else:
            pairs, problem = _pairs_of_tables(value)
        if problem:
            return problem
        if not 1 <= len(pairs) <= MOST_GROUPS:
            return f"expected 1 to {MOST_GROUPS} groups, got {len(pairs)}"
        for number, (kind, window) in enumerate(pairs, 1):
            if problem := _problem(kind, window):
                return f"group {number}: {problem}"
        if all(kind != FULL for kind, _ in pairs):
            return f'expected at least one group of kind "{FULL}"'
        return None


def groups_of(value: object) -> tuple[KvGroup, ...]:
    """The groups of a value that `Groups` finds nothing wrong with."""
    pairs, _ = _pairs_of_text(value) if isinstance(value, str) else _pairs_of_tables(value)
    return tuple(KvGroup(kind, window) for kind, window in pairs)  # type: ignore[arg-type]


def groups_text(groups: Sequence[KvGroup]) -> str:
    """Groups as `--set` takes them: `full+6*sliding_window:1024`."""
    parts = []
    for group, alike in groupby(groups):
        count = len(list(alike))
        window = f":{group.window_tokens}" if group.window_tokens else ""
        parts.append(f"{f'{count}*' if count > 1 else ''}{group.kind}{window}")
    return "+".join(parts)


Pairs = list[tuple[object, object]]  # kind and window of each group


def _pairs_of_text(text: str) -> tuple[Pairs, str | None]:
    pairs: Pairs = []
    for part in text.split("+"):
        found = _ONE.fullmatch(part.strip())
        if found is None:
            return [], f"expected {_FORM}, joined by +, got {shown(text)}"
        count, kind, window = found.groups()
        pairs += [(kind, int(window or 0))] * int(count or 1)
    return pairs, None


def _pairs_of_tables(value: object) -> tuple[Pairs, str | None]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        return [], f"expected tables [[kv_groups]], or {_FORM}, joined by +, got {shown(value)}"
    pairs: Pairs = []
    for number, table in enumerate(value, 1):
        if strangers := table.keys() - set(KvGroup.__slots__):
            return [], f"group {number}: expected kind and window_tokens, got {shown(min(strangers))}"
        pairs.append((table.get("kind"), table.get("window_tokens", 0)))
    return pairs, None


def _problem(kind: object, window: object) -> str | None:
    if kind not in KINDS:
        return f"kind: expected one of {', '.join(KINDS)}, got {shown(kind)}"
    if not isinstance(window, int) or isinstance(window, bool) or not 0 <= window <= LONGEST_WINDOW:
        return f"window_tokens: expected a whole number from 1 to {LONGEST_WINDOW}, got {shown(window)}"
    if kind in WINDOWED and not window:
        return f"{kind}: expected window_tokens, of at least 1"
    if kind not in WINDOWED and window:
        return f"{kind}: expected no window_tokens, got {window}"
    return None


def context_pages(groups: Sequence[KvGroup], block_tokens: int) -> tuple[int, int]:
    """What a long context is in pages: so many for each block of it, and so many beside, for windows and states.

    Beside are those that a call behind the context needs: a window before it, a whole chunk at most, or a state.
    """
    per_block = sum(group.kind == FULL for group in groups)
    beside = 0
    for group in groups:
        if group.kind == SLIDING_WINDOW:
            beside += div_ceil(group.window_tokens - 1, block_tokens)
        elif group.kind == CHUNKED_LOCAL:
            beside += group.window_tokens // block_tokens
        elif group.kind == MAMBA:
            beside += 1
    return per_block, beside
