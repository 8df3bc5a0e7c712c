"""What both ends of a server's control routes have to agree on."""

from __future__ import annotations

import secrets

RUN_HEADER = "Tokencake-Run"  # has the name of the run that a question is about
SHORTEST_NAME, LONGEST_NAME = 32, 200  # characters of a run's name: who knows it may read and end the run
BUSY = 423  # the status of what may go well a little later
API_KEY, CONTROL_TOKEN = "OPENAI_API_KEY", "TOKENCAKE_CONTROL_TOKEN"  # environment variables of clients


def new_name() -> str:
    """A run's name, which nobody guesses."""
    return secrets.token_hex(SHORTEST_NAME // 2)
