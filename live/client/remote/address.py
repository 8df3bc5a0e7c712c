"""A server's address as a user writes it, and what the environment has to say about the way there.

Everything that can be wrong with either is found before a connection is opened, and is told by name: the address, the
variable.
"""

from __future__ import annotations

import os
import ssl
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from ....traces.errors import EngineError

API_KEY, CONTROL_TOKEN = "OPENAI_API_KEY", "TOKENCAKE_CONTROL_TOKEN"  # environment variables of clients
EXAMPLE = "http://localhost:8000"
SHORTEST_KEY, LONGEST_KEY = 1, 4096


def server_address(url: str) -> str:
    """The address without what clients like to put behind it. Raises `EngineError` for what is none."""
    expected = f"expected the address of a server, such as {EXAMPLE}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise EngineError(f"{_shown(url)}: {expected}: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise EngineError(f"{parts.scheme}://…@{host}: {expected}, without user and password")
    if not url.isprintable() or " " in url or parts.scheme not in ("http", "https") or not host:
        raise EngineError(f"{_shown(url)}: {expected}")
    if parts.query or parts.fragment:
        raise EngineError(f"{_shown(url)}: {expected}, without ? and #")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_here(url: str) -> bool:
    """Whether it is this very machine: then no proxy leads there."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def proxy_variable(url: str) -> str | None:
    """The environment variable that names the proxy on the way there; None if there is none."""
    parts = urlsplit(url)
    if is_here(url) or proxy_bypass(parts.hostname or ""):
        return None
    names = (name for key in (f"{parts.scheme}_proxy", "all_proxy") for name in (key, key.upper()))
    return next((name for name in names if os.environ.get(name)), None)


def proxy_variables() -> list[str]:
    """Those that name any proxy."""
    names = (name for key in ("http_proxy", "https_proxy", "all_proxy") for name in (key, key.upper()))
    return [name for name in names if os.environ.get(name)]


def certificates(url: str) -> ssl.SSLContext | None:
    """What the server's certificate is checked against, where the environment says so; None: the client's own."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file and not folder:
        return None
    if file:
        try:
            return ssl.create_default_context(cafile=file, capath=folder or None)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            said = getattr(error, "strerror", None) or str(error)
            raise EngineError(f"{url}: SSL_CERT_FILE={file}: cannot be read as certificates: {said}") from None
    assert folder is not None
    if not os.path.isdir(folder):
        raise EngineError(f"{url}: SSL_CERT_DIR={folder}: expected a folder of certificates, there is none")
    return ssl.create_default_context(capath=folder)


def key_from(variable: str) -> str | None:
    """A key that a header can carry; None if the variable is not set. Its value is in no message."""
    key = os.environ.get(variable)
    return None if not key else sound_key(key, variable)


def sound_key(key: str, place: str) -> str:
    if SHORTEST_KEY <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key:
        return key
    raise EngineError(
        f"{place}: expected a key of {SHORTEST_KEY} to {LONGEST_KEY} ASCII letters, digits and signs, without blanks"
    )


def _shown(url: str) -> str:
    return repr(url if len(url) <= 100 else f"{url[:97]}...")
