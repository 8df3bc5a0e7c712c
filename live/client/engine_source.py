"""Where an engine comes from: it is started in this process, or is that of a server which is up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...policies.foreign_code import supervise_foreign
from ...policies.registry import is_file, load_policy
from ...policies.runs.playable import Playable
from ...traces.errors import EngineError
from .engine_options import EngineOptions
from .in_process import InProcess
from .remote.address import sound_key
from .remote.remote import Remote

LONGEST_KEY_FILE = 10_000  # bytes of it that are looked at


class EngineSource(Protocol):
    """An engine that can be had."""

    def check_policies(self, policies: Sequence[str], seed: int) -> None:
        """Finds what is wrong with policies before the engine starts, which takes a while."""
        ...

    def start(self) -> AbstractContextManager[Playable]:
        """The engine. Raises EngineError if it cannot be had."""
        ...


class EngineHere(NamedTuple):
    """An engine of this process."""

    options: EngineOptions

    def check_policies(self, policies: Sequence[str], seed: int) -> None:
        """Errors as `load_policy`."""
        supervise_foreign(policies)
        for spec in policies:
            load_policy(spec, seed=seed)

    def start(self) -> InProcess:
        """Errors as `InProcess`."""
        return InProcess(self.options)


class EngineThere(NamedTuple):
    """The engine of the server at `url`."""

    url: str
    model: str
    chat: bool = False
    control_token_file: Path | None = None  # None: the token is that of the environment

    def check_policies(self, policies: Sequence[str], seed: int) -> None:
        """Raises EngineError for a policy that no server takes; which ones it knows, the server says."""
        if files := [spec for spec in policies if is_file(spec)]:
            raise EngineError(
                f"policy {files[0]}: --connect: a server takes policies that it knows by name, and no files"
            )

    def start(self) -> Remote:
        """Errors as `Remote`; EngineError for a token's file that holds none."""
        token = None if self.control_token_file is None else _key_in(self.control_token_file)
        return Remote(self.url, self.model, chat=self.chat, control_token=token)


def engine_here(options: Mapping[str, Any], seed: int) -> InProcess:
    """An engine of this process, of `EngineOptions` by their names. Errors as `InProcess`."""
    return InProcess(EngineOptions(**options, seed=seed))


def _key_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_KEY_FILE).decode("ascii").strip()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is no ASCII text"
        raise EngineError(f"--control-token-file {path}: cannot be read: {said}") from None
    return sound_key(text, f"--control-token-file {path}")
