"""A file is complete or it is not there: what is written takes its place at once, at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """A file that takes the place of `path` once it is complete, and is gone if something goes wrong.

    Raises OSError if it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # after its renaming there is none, and without a folder there never was
            temporary.unlink()
