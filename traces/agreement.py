"""How a thing that is kept twice is checked."""

from __future__ import annotations

from .errors import CheckError


def agree(what: str, kept: object, counted: object) -> None:
    """Raises `CheckError` if what is kept is not what it comes to when it is counted anew."""
    if kept != counted:
        raise CheckError(f"{what}: {kept} as it is kept, {counted} as it is counted")
