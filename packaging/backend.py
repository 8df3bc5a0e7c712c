"""How a wheel is built: setuptools, with the core compiled where there is a C compiler, and pure Python where not.

`TOKENCAKE_COMPILE=0` asks for a pure wheel, `=1` for a compiled one or an error. An editable install is never compiled:
its sources are there to be edited. `python packaging/in_place.py` compiles a checkout.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

if TYPE_CHECKING:
    from setuptools import Extension

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any] | None

ASKED = "TOKENCAKE_COMPILE"
NEEDED = ["mypy==2.4.1", "simpy>=4.1"]  # the second for its types

_compiles = False  # while a wheel with a compiled core is being built


def extensions() -> list[Extension]:
    """What setup.py has setuptools compile."""
    if not _compiles:
        return []
    import core

    return core.extensions()


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *(NEEDED if _wanted() else [])]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    global _compiles
    asked = os.environ.get(ASKED)
    if _wanted():
        _compiles = True
        try:
            return _built(wheel_directory, config_settings, metadata_directory)
        except (Exception, SystemExit):
            if asked == "1":
                raise
            shutil.rmtree("build", ignore_errors=True)
            _notice("the core could not be compiled (`pip install -v` says why)")
        finally:
            _compiles = False
    elif asked != "0":
        _notice("there is no C compiler")
    return _built(wheel_directory, config_settings, metadata_directory)


def _built(*arguments: object) -> str:
    for folder in Path("build").glob("lib*"):  # of another build: what has gone since would go into this wheel
        shutil.rmtree(folder)
    name: str = build_meta.build_wheel(*arguments)
    return name


def _wanted() -> bool:
    return os.environ.get(ASKED, "") != "0" and (os.environ.get(ASKED) == "1" or _has_compiler())


def _has_compiler() -> bool:
    """Whether the compiler that extensions are built with can be found; on Windows setuptools looks itself."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return os.name == "nt" or shutil.which(command.split()[0]) is not None


def _notice(reason: str) -> None:
    """One line for people, past pip, which shows what a build prints only if it fails."""
    line = f"tokencake: {reason}: installed as pure Python, which simulates the same, several times slower"
    print(line, file=sys.stderr)
    with suppress(OSError), open("/dev/tty", "w", encoding="utf-8") as terminal:
        print(line, file=terminal)
