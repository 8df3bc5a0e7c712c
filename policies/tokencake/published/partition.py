"""GPU blocks as the spatial half divides them: a shared part, and reserves of the critical agent types.

The partition is the policy's own book-keeping. An engine knows nothing of it: it is expressed through the calls that
the policy admits and those that it holds back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...parts.admission import Claim
from ..options import Options
from .agent_types import AgentType

Charge = tuple[tuple[str | None, int], ...]  # blocks drawn from an agent type's reserve, or from the shared part (None)


class Partition:
    """Who may take how much. Blocks are charged once, to the first call that takes them; shared hits are free."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._share = options.reserve_min_share
        self._window: int | None = None  # of `reserve_every_steps` steps, the last one looked at
        self.reserve_blocks: dict[str, int] = {}  # by agent type, the highest type score first
        self._charged_blocks: dict[str, int] = {}  # to reserves, by agent type

    def charge(self, charge: Charge, sign: int = 1) -> None:
        """Book blocks that a call took (`sign` 1) or gave back (−1)."""
        for part, blocks in charge:
            if part is not None:
                self._charged_blocks[part] = self._charged_blocks.get(part, 0) + sign * blocks

    def update(self, step: int, now_s: float, free_blocks: int, gpu_blocks: int, types: Iterable[AgentType]) -> None:
        """Once in `reserve_every_steps` steps: adapt the reserved share to the usage, rank the types, split anew.

        Windows that passed since the policy was last asked are made up for with the usage of now.
        """
        options = self._options
        window = step // options.reserve_every_steps
        if window == self._window:
            return
        usage = 1 - free_blocks / gpu_blocks
        windows = 0 if self._window is None else window - self._window
        if usage >= options.reserve_raise_share:
            self._share = min(options.reserve_max_share, self._share + windows * options.reserve_step_share)
        elif usage <= options.reserve_lower_share:
            self._share = max(options.reserve_min_share, self._share - windows * options.reserve_step_share)
        self._window = window
        scores = {kind.name: kind.score(now_s, step) for kind in types if kind.live}
        used = {kind.name: kind.used_blocks for kind in types}
        ranked = sorted(scores, key=lambda name: -scores[name])  # equal ones as they appeared
        critical = ranked[: max(1, int(options.critical_share * len(ranked)))]
        self.reserve_blocks = split(int(self._share * gpu_blocks), critical, scores, used)

    def room(self, uncommitted_blocks: int) -> Room:
        """What may be handed out now: idle reserves, and as the shared part all else that is uncommitted.

        So reserves beyond what is uncommitted leave nothing to share and are cut themselves, those of the lowest types
        first. The shared part is never what it was less its charges: a call gives its charge back when it ends,
        though others may go on holding those blocks, and two that start in one plan are both charged for what they
        have in common.
        """
        charged = self._charged_blocks
        idle = {name: max(0, blocks - charged.get(name, 0)) for name, blocks in self.reserve_blocks.items()}
        shared = max(0, uncommitted_blocks) - sum(idle.values())
        for name in reversed(idle):
            if shared >= 0:
                break
            cut = min(-shared, idle[name])
            idle[name] -= cut
            shared += cut
        return Room(uncommitted_blocks, shared, idle)


class Room:
    """Blocks that one plan may hand out."""

    __slots__ = ("idle_blocks", "shared_blocks", "uncommitted_blocks")

    def __init__(self, uncommitted_blocks: int, shared_blocks: int, idle_blocks: dict[str, int]) -> None:
        self.uncommitted_blocks = uncommitted_blocks
        self.shared_blocks = shared_blocks
        self.idle_blocks = idle_blocks

    def grant(self, claim: Claim) -> None:
        """A claim takes its share, whoever it is reserved for."""
        self.uncommitted_blocks -= claim.grant(self.uncommitted_blocks)

    def draw(self, blocks: int, reserves: Sequence[str]) -> Charge | None:
        """Take blocks from the shared part, then from these reserves in turn. None, and nothing taken, if too few."""
        if blocks > self.uncommitted_blocks:
            return None
        charge: list[tuple[str | None, int]] = []
        rest = blocks
        if part := min(rest, self.shared_blocks):
            charge.append((None, part))
            rest -= part
        for name in reserves:
            if not rest:
                break
            if part := min(rest, self.idle_blocks[name]):
                charge.append((name, part))
                rest -= part
        return None if rest else self._take(tuple(charge))

    def lend(self, blocks: int) -> Charge | None:
        """Take idle blocks whoever they are reserved for, the lowest type's first, then what the shared part has left.

        None, and nothing taken, if too few: only growth may become a debt of the shared part.
        """
        if blocks > min(self.uncommitted_blocks, self.shared_blocks + sum(self.idle_blocks.values())):
            return None
        charge: list[tuple[str | None, int]] = []
        rest = blocks
        for name in reversed(self.idle_blocks):
            if part := min(rest, self.idle_blocks[name]):
                charge.append((name, part))
                rest -= part
        if rest:
            charge.append((None, rest))
        return self._take(tuple(charge))

    def _take(self, charge: Charge) -> Charge:
        for part, blocks in charge:
            self.uncommitted_blocks -= blocks
            if part is None:
                self.shared_blocks -= blocks
            else:
                self.idle_blocks[part] -= blocks
        return charge


def split(blocks: int, names: Sequence[str], scores: dict[str, float], used: dict[str, int]) -> dict[str, int]:
    """Divide reserved blocks among types by weight `max(s, (m + s) / 2)`, in the order of `names`.

    `s` is a type's share of the scores, `m` its share of the blocks used now. The largest remainders get what rounding
    leaves, of equal ones the first of `names`.
    """
    all_scores = sum((scores[name] for name in names), 0.0)
    all_used = sum(used[name] for name in names)
    weights = {}
    for name in names:
        s = scores[name] / all_scores
        m = used[name] / all_used if all_used else 0.0
        weights[name] = max(s, (m + s) / 2)
    unit = blocks / sum(weights.values(), 0.0) if weights else 0.0
    parts = {name: int(unit * weight) for name, weight in weights.items()}
    by_remainder = sorted(names, key=lambda name: parts[name] - unit * weights[name])
    for name in by_remainder[: blocks - sum(parts.values())]:
        parts[name] += 1
    return parts
