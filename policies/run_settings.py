"""What a live run is told: the policy, what it believes that things cost, and what is to be written down.

A server's own settings come from the command line that starts it, and clients' from HTTP: each field is looked at, and
a client may name neither files nor code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..traces.errors import EngineError
from ..traces.files.fields import WrongField, flag, members, seconds, shown, whole
from .costs import LinearCosts

SECTION = "tokencake"  # in vLLM's `additional_config`
LARGEST_SEED = 2**63 - 1
LONGEST_POLICY = 1000  # characters
LONGEST_FILE_NAME = 4096
SHORTEST_TOKEN = 32  # characters
CLIENT_TIMEOUT_S = 60.0
LONGEST_COPY_S = 60.0  # no copy takes longer
SESSION_TIMEOUT_S = 3600.0  # nobody says that a session is over
STALL_S = 60.0  # calls wait and nothing happens: so long, until that is an error

# A 7B-class model on a PCIe 4 GPU, roughly: where nobody measured, a policy has to believe something.
UNMEASURED = LinearCosts(copy_s=0.0005, copy_block_s=0.0001, prefill_token_s=0.00008, attention_s=2e-9)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One run of a policy on a live engine. Travels as plain data (`as_record`, `from_record`)."""

    policy: str = "vllm"  # as `load_policy` takes it
    seed: int = 0
    costs: LinearCosts = field(default=UNMEASURED)
    steps: bool = False  # whether each step is reported as a fact
    events: str | None = None  # a file that the engine's process writes facts, questions and plans into
    keep_facts: bool = False  # whether the facts are kept in memory for those who ask for them
    app_timeout_s: float | None = None  # an application of which nothing was heard for so long has ended
    session_timeout_s: float | None = SESSION_TIMEOUT_S  # the same of a session of vLLM's; None: it is no application

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is told when it starts."""

    run: RunSettings | None = None  # its own run; None: it serves as plain vLLM until a client begins one
    control_token_env: str | None = None  # the environment variable that has the token of the control routes
    stall_s: float = STALL_S  # calls wait and nothing happens: so long, until that is said
    client_timeout_s: float = CLIENT_TIMEOUT_S  # a client of which nothing was heard for so long has left its run


def from_record(record: object) -> RunSettings:
    """Settings from plain data. Raises `EngineError` that names the field."""
    return _settings(record, _CHECKS)


def from_client(record: object) -> RunSettings:
    """The same of settings that came over HTTP: no file is named in them."""
    return _settings(record, {name: check for name, check in _CHECKS.items() if name != "events"})


def to_server(settings: RunSettings) -> dict[str, Any]:
    """What `from_client` reads."""
    record = settings.as_record()
    if record.pop("events") is not None:
        raise EngineError("events: a server writes no file for its clients: they ask for the facts, and write it")
    return record


def server_settings(additional_config: Mapping[str, Any] | None) -> ServerSettings:
    """What our section of vLLM's `additional_config` says. Raises `EngineError` that names the field."""
    said = (additional_config or {}).get(SECTION)
    if said is None:
        return ServerSettings()
    try:
        own = members(said, frozenset(_CHECKS) | {"control_token_env", "client_timeout_s", "stall_s"})
        environment = own.get("control_token_env")
        return ServerSettings(
            from_record({name: value for name, value in own.items() if name in _CHECKS}),
            None if environment is None else _variable(environment, "control_token_env"),
            _duration_s(own.get("stall_s", STALL_S), "stall_s"),
            _duration_s(own.get("client_timeout_s", CLIENT_TIMEOUT_S), "client_timeout_s"),
        )
    except WrongField as wrong:
        raise _refused(wrong) from None


def control_token(settings: ServerSettings, api_keys: list[str]) -> str | None:
    """The token that opens the control routes; None if nobody asked for them.

    It is read from the environment, since command lines are there for all to see, and vLLM writes its own into its log.
    Raises `EngineError` for one that could be guessed, or that users have.
    """
    name = settings.control_token_env
    if name is None:
        return None
    token = os.environ.get(name, "")
    place = f"tokencake settings: control_token_env: {name}"
    if len(token) < SHORTEST_TOKEN:
        found = f"one of {len(token)}" if token else "none"
        raise EngineError(
            f"{place}: expected a token of at least {SHORTEST_TOKEN} characters in that environment variable, found"
            f" {found}: `export {name}=$(openssl rand -hex 32)` makes one"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise EngineError(f"{place}: expected a token of ASCII letters, digits and signs, without blanks")
    if token in api_keys:
        raise EngineError(f"{place}: expected a token of its own, found the API key that users have")
    return token


# -- fields


def _settings(record: object, checks: Mapping[str, Callable[[object, str], Any]]) -> RunSettings:
    try:
        said = members(record, checks.keys())
        return RunSettings(**{name: checks[name](value, name) for name, value in said.items()})
    except WrongField as wrong:
        raise _refused(wrong) from None


def _refused(wrong: WrongField) -> EngineError:
    return EngineError(f"tokencake settings: {wrong}")


def _printable(value: object, field: str, longest: int) -> str:
    if type(value) is str and 0 < len(value) <= longest and value.isprintable():
        return value
    raise WrongField(field, f"expected 1 to {longest} printable characters, got {shown(value)}")


def _policy(value: object, field: str) -> str:
    return _printable(value, field, LONGEST_POLICY)


def _file_name(value: object, field: str) -> str:
    return _printable(value, field, LONGEST_FILE_NAME)


def _variable(value: object, field: str) -> str:
    if type(value) is str and value.isascii() and value.isidentifier():
        return value
    raise WrongField(field, f"expected the name of an environment variable, got {shown(value)}")


def _seed(value: object, field: str) -> int:
    return whole(value, field, 0, LARGEST_SEED)


def _duration_s(value: object, field: str) -> float:
    duration_s = seconds(value, field)
    if not duration_s:
        raise WrongField(field, f"expected seconds above 0, got {shown(value)}")
    return duration_s


def _costs(value: object, field: str) -> LinearCosts:
    names = tuple(f.name for f in fields(LinearCosts))
    try:
        said = members(value, frozenset(names), names)
        return LinearCosts(**{name: seconds(said[name], name) for name in names})
    except WrongField as wrong:
        raise wrong.inside(field) from None


def _or_none(check: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    return lambda value, field: None if value is None else check(value, field)


_CHECKS: Mapping[str, Callable[[object, str], Any]] = {
    "policy": _policy,
    "seed": _seed,
    "costs": _costs,
    "steps": flag,
    "events": _or_none(_file_name),
    "keep_facts": flag,
    "app_timeout_s": _or_none(_duration_s),
    "session_timeout_s": _or_none(_duration_s),
}
