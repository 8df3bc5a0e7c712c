"""Compile the core of this checkout, beside its sources: `python packaging/in_place.py`. `--clean` takes it away.

Needs a C compiler and mypy (`pip install -e '.[dev]'`). As soon as a source is edited, the sources are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import core
from setuptools import setup

from tokencake.traces import core_build


def clean() -> None:
    suffix = EXTENSION_SUFFIXES[0]  # of this Python: others may have compiled ones here, too
    for folder in ("live", "policies", "sim", "traces"):
        for compiled in (core.ROOT / folder).rglob(f"*{suffix}"):
            compiled.unlink()
    (core.ROOT / f"{core_build.LIBRARY}{suffix}").unlink(missing_ok=True)
    (core.ROOT / core_build.DIGESTS).unlink(missing_ok=True)


def build() -> None:
    os.chdir(core.ROOT)
    built = core.STAGE / "built"
    shutil.rmtree(built, ignore_errors=True)
    digests = {path: core_build.digest(core.ROOT / path) for path in core.sources()}
    setup(
        name="tokencake",
        packages=[],
        ext_modules=core.extensions(),
        script_args=["-q", "build_ext", "--build-lib", str(built), "--build-temp", str(core.STAGE / "objects")],
        options={"build_ext": {"parallel": os.cpu_count()}},
    )
    clean()
    shutil.copytree(built / "tokencake", core.ROOT, dirs_exist_ok=True)
    (core.ROOT / core_build.DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", action="store_true", help="take away what was compiled")
    if parser.parse_args().clean:
        clean()
    elif find_spec("mypyc") is None:
        parser.error("mypy is not installed: pip install -e '.[dev]'")
    else:
        build()
