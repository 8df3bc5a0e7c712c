"""What the figures of a run depend on: kept figures are used again only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from ...policies.registry import policy_file
from ...traces.errors import PolicyError
from ...traces.files.source_file import digest
from ...traces.format.reader import trace_digest
from ...traces.version import __version__
from ..machine.machine import Machine
from .run import RunSpec

PACKAGE = Path(__file__).parents[2]
PLAYING = (  # what a simulation is made of
    "traces/**/*.py",
    "policies/**/*.py",
    "sim/engine/**/*.py",
    "sim/machine/*.py",
    "sim/experiments/run.py",
)


def identity_of(spec: RunSpec, base: Machine) -> dict[str, object]:
    """What a run has in common with all others of its sweep. `base` is the machine of which theirs are changes."""
    return {
        "tokencake": __version__,
        "code_sha256": code_digest(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "trace_sha256": trace_digest(spec.trace),
        "machine": base.settings(),
        "variation": asdict(spec.variation),
        "seed": spec.seed,
        "arrivals": spec.arrivals,
        "skip_oversized": spec.skip_oversized,
    }


def differing(kept: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """The keys in which two identities differ, of their tables those inside."""
    keys: list[str] = []
    for key in dict.fromkeys((*kept, *wanted)):
        one, other = kept.get(key), wanted.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys += [f"{key}.{inner}" for inner in differing(one, other)]
        elif one != other:
            keys.append(key)
    return keys


def key_of(spec: RunSpec, base: Machine) -> str:
    """What is the run's own: as JSON, equal for runs that come to the same figures."""
    settings, usual = spec.machine.settings(), base.settings()
    own: dict[str, object] = {
        "rate": spec.rate,
        "set": {key: value for key, value in settings.items() if value != usual[key]},
        "policy": spec.policy,
        "repeat": spec.repeat,
    }
    if (file := policy_file(spec.policy)) is not None:
        own["policy_sha256"] = _file_digest(file)
    return json.dumps(own, sort_keys=True)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the code that plays: who changes a policy gets new figures, whatever the version says."""
    found = hashlib.sha256()
    for pattern in PLAYING:
        for file in sorted(PACKAGE.glob(pattern)):
            found.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(path: Path) -> str:
    return digest(path, PolicyError)
