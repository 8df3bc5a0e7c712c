"""Tokencake's options: which mechanisms are on, and their thresholds. What the authors published is a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from types import MappingProxyType
from typing import Literal

from ...traces.errors import PolicyError

UploadOption = Literal["predictive", "pause", "demand"]
SpaceOption = Literal["score", "seniority"]
SaveOption = Literal["stalls", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `Tokencake`. The values here are the default; `PRESETS` has others.

    Every number is finite and at least 0, every share at most 1; anything else is a `PolicyError`.
    """

    space: bool = True  # the spatial half: which calls start, and which give way
    time: bool = True  # the temporal half: what is saved, held, brought back and kept
    upload: UploadOption = "demand"  # ahead of need: before the predicted return, at once; demand: when a call needs it

    spatial: SpaceOption = "seniority"  # which spatial half; down to preempt, seniority knows skip and commit alone
    save: SaveOption = "all"  # when contexts are saved: at the end of each call; stalls: when a tool starts, if it pays

    order: bool = True  # by score; off: by arrival
    reserve: bool = True  # blocks for critical agent types
    lend: bool = True  # idle reserves go to any call that fits, after the ordered pass
    skip: bool = False  # a call that does not fit is passed over; off: it blocks those behind it
    commit: bool = False  # a call needs room for its whole output budget; off: for its prompt
    preempt: bool = False  # by score; off: the last admitted
    prefix_affinity: bool = True  # calls that share a running call's prefix first, when room is short
    gate: bool = True  # weigh each offload; off: save at every stall that may be saved

    affinity_points: float = 500.0
    affinity_free_share: float = 0.25
    borrow_points: float = 500.0
    preempt_points: float = 3000.0
    preempt_done_share: float = 0.9
    reserve_every_steps: int = 500
    reserve_raise_share: float = 0.75
    reserve_lower_share: float = 0.40
    reserve_step_share: float = 0.05
    reserve_min_share: float = 0.05
    reserve_max_share: float = 0.30
    critical_share: float = 0.75
    age_power: float = 1.5  # seniority: how much an application's rank counts beside a call's size
    lost_share: float = 0.02  # seniority: contexts get lost if returning calls miss more than this of them
    keep_weight: float = 3.0  # seniority: how much what a lost context costs counts beside the room that keeping takes

    gap_weight_share: float = 0.5
    unknown_gap_s: float = 1.0
    offload_score: float = 1.0
    offload_usage_share: float = 0.60
    offload_importance: float = 8.0
    notice_steps: int = 1  # from a tool's start to the first look at it: the authors' client tells their engine of it
    offload_retry_steps: int = 8
    emergency_usage_share: float = 0.85
    emergency_margin_s: float = 5.0
    margin_s: float = 0.05
    margin_copies: float = 2.0  # times the copy time
    hold_min_s: float = 60.0
    hold_max_s: float = 3600.0
    lead_s: float = 0.05  # an upload is to be complete so long before the predicted return
    gather_s: float = 0.5  # and gathers its blocks over so long a time before it must start

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (bool, str)):
                continue
            most = 1.0 if field.name.endswith("_share") else float("inf")
            if not (isfinite(value) and 0 <= value <= most):
                limit = "from 0 to 1" if most == 1.0 else "at least 0"
                raise PolicyError(f"tokencake: option {field.name}: expected a number {limit}, got {value!r}")
        for name in ("reserve_every_steps", "offload_retry_steps"):
            if getattr(self, name) == 0:
                raise PolicyError(f"tokencake: option {name}: expected at least 1, got 0")
        if self.reserve_min_share > self.reserve_max_share:
            raise PolicyError("tokencake: option reserve_min_share: expected at most reserve_max_share")


Preset = Literal["default", "published"]

PRESETS: Mapping[Preset, Options] = MappingProxyType(
    {
        "default": Options(),  # what measurements brought: docs/study.md
        "published": Options(
            spatial="score",
            skip=True,
            commit=True,
            preempt=True,
            save="stalls",
            upload="predictive",
            keep_weight=0.0,
        ),
    }
)
