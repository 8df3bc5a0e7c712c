"""The begin of a run in the tier: which policy, where its events go, and what is said of it."""

from __future__ import annotations

import atexit
import logging
from pathlib import Path

from ...policies.registry import load_policy
from ...policies.replay.replay import began
from ...policies.run_settings import RunSettings, server_settings
from ..engine.control.events_log import EventsLog
from .abilities import check_host_half, what_acts
from .chunks import Chunks
from .making import Making
from .run import TierRun

logger = logging.getLogger(__name__)


def begun(made: Making, chunks: Chunks, capacity: int) -> TierRun:
    """The run of the policy that `additional_config` names. It lasts as long as the process."""
    settings = server_settings(made.vllm_config.additional_config).run or RunSettings()
    check_host_half(settings.policy)
    policy = load_policy(settings.policy, seed=settings.seed)
    journal = None
    if settings.events is not None:
        log = EventsLog(_of_this_engine(Path(settings.events), made))
        atexit.register(log.close)
        journal = log.add
        journal(began(settings.policy, settings.seed, settings.costs))
    sizes = made.sizes(capacity)
    logger.warning("%s", what_acts(settings.policy, sizes.host_blocks, sizes.block_tokens))
    return TierRun(made.side, chunks, sizes, settings, policy, journal)


def _of_this_engine(path: Path, made: Making) -> Path:
    """With data parallelism each engine has a run of its own, and writes a file of its own.

    Dense models' engines are independent: each is told that it is alone, and its index all the same.
    """
    index = made.vllm_config.parallel_config.data_parallel_index
    return path.with_name(f"engine-{index}-{path.name}") if index else path
