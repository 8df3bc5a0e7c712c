"""What the simulated hardware costs: memory, the time of a step, the link to the host, the client's latency.

A `Machine` is in units for people; the engine spends its `Timing`, whole picoseconds, so that a stretch of steps in
closed form and the same steps one by one come to equal times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import MappingProxyType

from ...policies.costs import LinearCosts
from ...traces.errors import MachineError
from ...traces.files.fields import MAX_NAME, shown
from .engine_versions import (
    CHECKPOINTS_ARE_SPARSE,
    DEFAULT_ENGINE_VERSION,
    ENGINE_VERSIONS,
    STATES_ARE_GIVEN_BACK,
    NewRule,
)
from .kv_groups import (
    CHUNKED_LOCAL,
    FULL,
    LONGEST_WINDOW,
    MAMBA,
    SPARSE,
    WINDOWED,
    Groups,
    KvGroup,
    context_pages,
    groups_text,
)
from .timing import Timing, experts_ps, ps
from .window import Window


@dataclass(frozen=True, slots=True)
class Whole:
    """What a whole-number setting may be."""

    low: int
    high: int

    def problem(self, value: object) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"expected a whole number from {self.low} to {self.high}, got {shown(value)}"


@dataclass(frozen=True, slots=True)
class Real:
    """What a real-number setting may be: `low` to `high`, and 0 if `zero`."""

    low: float
    high: float
    zero: bool = True

    def problem(self, value: object) -> str | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and self._holds(value):
            return None
        return f"expected {'0 or ' if self.zero else ''}a number from {self.low:g} to {self.high:g}, got {shown(value)}"

    def _holds(self, value: float) -> bool:
        return self.low <= value <= self.high or (self.zero and value == 0)


@dataclass(frozen=True, slots=True)
class Switch:
    """A setting that is on or off."""

    def problem(self, value: object) -> str | None:
        return None if isinstance(value, bool) else f"expected true or false, got {shown(value)}"


@dataclass(frozen=True, slots=True)
class Name:
    """A setting that is a word."""

    def problem(self, value: object) -> str | None:
        if isinstance(value, str) and value.isprintable() and 0 < len(value) <= MAX_NAME:
            return None
        return f"expected a name of 1 to {MAX_NAME} printable characters, got {shown(value)}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting that is one of a few words."""

    words: tuple[str, ...]

    def problem(self, value: object) -> str | None:
        if isinstance(value, str) and value in self.words:
            return None
        return f"expected one of {', '.join(map(shown, self.words))}, got {shown(value)}"


Rule = Whole | Real | Switch | Name | Choice | Groups

_OF_VERSION = -2  # not given: its default
DENSE = -1  # vLLM's None: every block of a sliding window and every state of a Mamba group may be found again

MOST_EXPERTS = 4096  # of a layer

# Seconds start at a picosecond, the engine's unit: less would silently be nothing.
_PER_STEP, _PER_TOKEN, _LATENCY = Real(1e-12, 1e3), Real(1e-12, 1.0), Real(1e-12, 1e6)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "name": Name(),
        "gpu_blocks": Whole(1, 10**9),
        "block_tokens": Whole(1, 2**16),
        "kv_bytes_per_token": Whole(1, 10**9),
        "kv_groups": Groups(),
        "prefix_cache_retention_interval": Whole(DENSE, 2**31 - 1),
        "host_gib": Real(1e-6, 1e6),
        "max_context_tokens": Whole(1, 2**31 - 1),
        "step_budget_tokens": Whole(1, 2**31 - 1),
        "max_running": Whole(1, 10**6),
        "long_prefill_token_threshold": Whole(0, 2**31 - 1),
        "asynchronous": Switch(),
        "engine_version": Choice(ENGINE_VERSIONS),
        "step_s": _PER_STEP,
        "floor_s": _PER_STEP,
        "experts_s": _PER_STEP,
        "experts": Whole(0, MOST_EXPERTS),
        "experts_per_token": Whole(0, MOST_EXPERTS),
        "token_s": _PER_TOKEN,
        "prefill_token_s": _PER_TOKEN,
        "prefill_context_token_s": _PER_TOKEN,
        "attention_s": _PER_TOKEN,
        "decode_call_s": _PER_TOKEN,
        "context_token_s": _PER_TOKEN,
        "window_tokens": Whole(0, LONGEST_WINDOW),
        "window_attention_s": _PER_TOKEN,
        "window_context_token_s": _PER_TOKEN,
        "host_call_s": _PER_TOKEN,
        "host_token_s": _PER_TOKEN,
        "link_gbps": Real(1e-3, 1e6, zero=False),
        "copy_s": _LATENCY,
        "client_s": _LATENCY,
    }
)
BELIEVABLE = ("link_gbps", "copy_s", "token_s", "prefill_token_s", "attention_s")  # what `beliefs` is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One engine's hardware and settings. With tensor parallelism: all its GPUs together, as one.

    A step takes `step_s + max(floor_s, token_s * (prefill tokens + decoding calls)) + prefill_token_s * prefill tokens
    + attention_s * (pairs of a prefill token and a token that it attends to, itself included) + decode_call_s *
    decoding calls + context_token_s * (sum of the decoding calls' contexts)` on the device. A mixture of experts adds
    to the floor `experts_s * (1 - (1 - experts_per_token / experts) ** tokens)`; `prefill_context_token_s` counts what
    lies before each chunk of a prompt; `window_attention_s` and `window_context_token_s` count pairs and contexts as
    layers see them that look at `window_tokens` only. And `host_call_s * (calls
    that are admitted to it, for the first time or again) + host_token_s * (tokens that it samples)` on the host: one
    after the other, or, where scheduling is asynchronous, beside each other, so that the longer one counts.

    Raises MachineError, naming the field, if a value is out of its range in `RULES`.
    """

    name: str
    gpu_blocks: int  # usable: vLLM's null block is not among them
    block_tokens: int = 16
    kv_bytes_per_token: int  # in a page of one group, on all GPUs together
    kv_groups: tuple[KvGroup, ...] = (KvGroup(FULL),)  # in vLLM's order
    # Tokens between checkpoints of sliding windows and Mamba states; 0: at boundaries of meaning alone; DENSE: all
    prefix_cache_retention_interval: int = _OF_VERSION
    host_gib: float  # memory for copies of blocks, in GiB
    max_context_tokens: int  # the longest prompt and answer of a call
    step_budget_tokens: int = 8192  # vLLM's max_num_batched_tokens
    max_running: int = 1024  # vLLM's max_num_seqs
    long_prefill_token_threshold: int = 0  # tokens of one prompt in a step that has other calls to think of; 0: all
    asynchronous: bool = True  # vLLM's asynchronous scheduling
    engine_version: str = DEFAULT_ENGINE_VERSION  # the vLLM whose scheduler it has
    step_s: float  # a step, whatever is in it
    floor_s: float = 0.0  # reading the weights: the least that a step's linear layers take
    experts_s: float = 0.0  # reading all experts that tokens choose from, of all layers, on top of the floor
    experts: int = 0  # that a layer has
    experts_per_token: int = 0  # that a token chooses
    token_s: float = 0.0  # a token in the linear layers
    prefill_token_s: float = 0.0  # a prefill token, on top
    prefill_context_token_s: float = 0.0  # a token before a chunk of a prompt, however long the chunk is
    attention_s: float = 0.0  # a prefill token x a token that it attends to
    decode_call_s: float = 0.0  # a decoding call, on top
    context_token_s: float = 0.0  # a token of a decoding call's context
    window_tokens: int = 0  # that windowed layers see, if they cost anything
    window_attention_s: float = 0.0  # as attention_s, in these layers
    window_context_token_s: float = 0.0  # as context_token_s, in these layers
    host_call_s: float = 0.0  # the engine's own work for a call that is admitted
    host_token_s: float = 0.0  # the engine's own work for a token that is sampled
    link_gbps: float  # GPU to host and host to GPU, each: 1e9 bytes a second
    copy_s: float = 0.0  # a copy job, whatever its size
    client_s: float = 0.0  # from the end of a call to the arrival of the one that follows it
    believed: tuple[tuple[str, float], ...] = ()  # costs that policies are told otherwise, by field

    def __post_init__(self) -> None:
        if self.prefix_cache_retention_interval == _OF_VERSION:
            object.__setattr__(self, "prefix_cache_retention_interval", retention_of(self.engine_version))
        settings = self.settings()
        for key, rule in RULES.items():
            if problem := rule.problem(settings[key]):
                raise MachineError(f"machine {shown(self.name)}: {key}: {problem}")
        if not self.step_s + self.floor_s:
            raise MachineError(f"machine {shown(self.name)}: step_s, floor_s: expected one above 0: a step takes time")
        if self.max_running > self.step_budget_tokens:  # as vLLM: else a step could not give every call its token
            raise MachineError(
                f"machine {shown(self.name)}: max_running: expected at most step_budget_tokens"
                f" ({self.step_budget_tokens}), got {self.max_running}"
            )
        if self.long_prefill_token_threshold > self.max_context_tokens:  # as vLLM
            raise MachineError(
                f"machine {shown(self.name)}: long_prefill_token_threshold: expected at most max_context_tokens"
                f" ({self.max_context_tokens}), got {self.long_prefill_token_threshold}"
            )
        for key, problem in (
            ("kv_groups", self._groups_problem()),
            ("prefix_cache_retention_interval", self._retention_problem()),
            ("kv_groups", self._states_problem()),
            ("experts_per_token", self._experts_problem()),
            ("window_tokens", self._window_problem()),
        ):
            if problem:
                raise MachineError(f"machine {shown(self.name)}: {key}: {problem}")
        for key, value in self.believed:
            if key not in BELIEVABLE:
                raise MachineError(
                    f"machine {shown(self.name)}: beliefs.{key}: expected one of {', '.join(BELIEVABLE)}"
                )
            if problem := RULES[key].problem(value):
                raise MachineError(f"machine {shown(self.name)}: beliefs.{key}: {problem}")

    @property
    def block_bytes(self) -> int:
        return self.kv_bytes_per_token * self.block_tokens

    @property
    def host_blocks(self) -> int:
        """Whole blocks that fit into the host's memory."""
        return int(self.host_gib * 2**30) // self.block_bytes

    def has(self, rule: NewRule) -> bool:
        """Whether the simulated version of vLLM has a rule that not all versions have."""
        return rule.holds(self.engine_version)

    def timing(self) -> Timing:
        """These costs in picoseconds, each rounded to the nearest."""
        return Timing(
            step_ps=ps(self.step_s),
            floor_ps=ps(self.floor_s),
            experts_ps=experts_ps(self.experts, self.experts_per_token, ps(self.experts_s)),
            token_ps=ps(self.token_s),
            prefill_token_ps=ps(self.prefill_token_s),
            prefill_context_token_ps=ps(self.prefill_context_token_s),
            attention_ps=ps(self.attention_s),
            decode_call_ps=ps(self.decode_call_s),
            context_token_ps=ps(self.context_token_s),
            window=self._window(),
            window_attention_ps=ps(self.window_attention_s),
            window_context_token_ps=ps(self.window_context_token_s),
            host_call_ps=ps(self.host_call_s),
            host_token_ps=ps(self.host_token_s),
            asynchronous=self.asynchronous,
            copy_ps=ps(self.copy_s),
            copy_block_ps=ps(self._copy_block_s()),
            client_ps=ps(self.client_s),
        )

    def beliefs(self) -> LinearCosts:
        """What policies are told: the truth, except for what `believed` says otherwise.

        A block of a context is a page in each group of full attention; the pages of windows and states come with a job.
        """
        told = replace(self, believed=(), **dict(self.believed)) if self.believed else self  # type: ignore[arg-type]
        pages, beside = context_pages(self.kv_groups, self.block_tokens)
        page_s = told._copy_block_s()
        return LinearCosts(
            copy_s=told.copy_s + beside * page_s,
            copy_block_s=pages * page_s,
            prefill_token_s=told.token_s + told.prefill_token_s + told.window_attention_s * told.window_tokens,
            attention_s=told.attention_s,
        )

    def settings(self) -> dict[str, object]:
        """Every field by name, as `--set` and reports have them: groups as text, `beliefs` as a table."""
        values: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["believed"]
        return {**values, "kv_groups": groups_text(self.kv_groups), "beliefs": dict(self.believed)}

    def _groups_problem(self) -> str | None:
        """A chunk is of whole pages: else vLLM gives back a page of which a part is still needed."""
        for number, group in enumerate(self.kv_groups, 1):
            if group.kind == CHUNKED_LOCAL and group.window_tokens % self.block_tokens:
                expected = f"expected chunks of whole blocks of {self.block_tokens} tokens, got {group.window_tokens}"
                return f"group {number}: {expected}"
        return None

    def _retention_problem(self) -> str | None:
        """As vLLM: an interval is of whole blocks, and there is a group that it concerns."""
        interval = self.prefix_cache_retention_interval
        if interval <= 0:
            return None
        if all(group.kind not in SPARSE for group in self.kv_groups):
            return f"expected 0 or -1: kv_groups has no group of kind {' or '.join(SPARSE)}, got {interval}"
        if interval % self.block_tokens:
            return f"expected a multiple of block_tokens ({self.block_tokens}), got {interval}"
        return None

    def _states_problem(self) -> str | None:
        if self.has(STATES_ARE_GIVEN_BACK) or all(group.kind != MAMBA for group in self.kv_groups):
            return None
        return f"expected no {MAMBA} groups with engine_version {self.engine_version}: they are simulated as of 0.30"

    def _experts_problem(self) -> str | None:
        """Whoever reads experts knows how many a token chooses, of how many."""
        if self.experts_s and not 1 <= self.experts_per_token <= self.experts:
            return f"expected 1 to experts ({self.experts}), for experts_s is above 0, got {self.experts_per_token}"
        return None

    def _window_problem(self) -> str | None:
        """Windowed layers that cost anything have a window, and it is that of a group, if one has any."""
        if not (self.window_attention_s or self.window_context_token_s):
            return None
        windows = sorted({group.window_tokens for group in self.kv_groups if group.kind in WINDOWED})
        if windows and self.window_tokens not in windows:
            return f"expected that of a group ({' or '.join(map(str, windows))}), got {self.window_tokens}"
        return None if self.window_tokens else "expected at least 1, for windowed layers cost something, got 0"

    def _window(self) -> Window | None:
        if not (self.window_attention_s or self.window_context_token_s):
            return None
        chunked = any(group == KvGroup(CHUNKED_LOCAL, self.window_tokens) for group in self.kv_groups)
        return Window(self.window_tokens, chunked)

    def _copy_block_s(self) -> float:
        return self.block_bytes / (self.link_gbps * 1e9)


def retention_of(engine_version: str) -> int:
    """What `prefix_cache_retention_interval` is by default in a vLLM."""
    return 0 if CHECKPOINTS_ARE_SPARSE.holds(engine_version) else DENSE


# What a setting is that nobody gave, in the form of `Machine.settings`.
DEFAULTS: Mapping[str, object] = MappingProxyType(
    {field.name: field.default for field in fields(Machine) if field.default is not MISSING and field.name in RULES}
    | {"kv_groups": FULL, "prefix_cache_retention_interval": retention_of(DEFAULT_ENGINE_VERSION)}
)
