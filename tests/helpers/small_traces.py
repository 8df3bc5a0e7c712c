"""Agents that a tiny model on a CPU serves in seconds."""

from __future__ import annotations

import json
from pathlib import Path

from tokencake.traces.apps import Application
from tokencake.traces.convert.formats import convert
from tokencake.traces.format.reader import read_trace
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]


def code_writers() -> list[Application]:
    """Code writers with a 24th of their tokens, and tools of a thirtieth of their time."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.03), 24))[:4]


def coding_conversations(folder: Path, names: str = "abc") -> list[Application]:
    """Recorded conversations of coding agents, in the recording's format: one context that grows, tools of seconds."""
    for name in names:
        entries, ids = [], [1, 2, 3]
        for turn in range(6):
            ids = [*ids, 10 * turn + 7, 10 * turn + 8]
            at_s = 9.0 * turn
            entries.append(
                {
                    "t": at_s,
                    "type": "n",
                    "in": 64 * len(ids),
                    "out": 12,
                    "hash_ids": ids,
                    "api_time": 2.0,
                    "think_time": 6.0,
                    "input_types": ["tool_result"],
                    "output_types": ["tool_use"],
                }
            )
        talk = {"id": f"talk-{name}", "block_size": 64, "hash_id_scope": "local", "requests": entries}
        (folder / f"{name}.json").write_text(json.dumps(talk))
    return list(scaled(convert(folder, "agentic-coding", rate=2.0), 0.1))
