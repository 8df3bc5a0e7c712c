"""The exit code of a command, and the one line on stderr that says what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import click

from ..errors import RunError, TokencakeError
from ..files.escaping import one_line
from ..files.source_file import forget
from .bug_file import bug_message
from .command_group import ReaderGone
from .interrupts import exit_code
from .streams import to_nowhere
from .terminal import say

FAILED = 1  # other decisions, a regression, a run that failed
USER_ERROR = 2
BUG = 70  # as in sysexits.h


def exit_code_of(command: Callable[[], object], arguments: Sequence[str]) -> int:
    """Calls a command: its exit code, which is what it returns if that is a number.

    Whatever a user can mend is one line on stderr, never a traceback. 0 only if all that it printed has arrived.
    """
    return _flushed(_called(command, arguments))


def fail(message: str) -> int:
    """Prints an error on stderr. The exit code for it."""
    with suppress(OSError, ValueError):  # nobody hears it; the exit code says it, too
        say(f"error: {one_line(message)}", err=True)
    return USER_ERROR


def _flushed(code: int) -> int:
    """The exit code, once what was written to standard output has arrived there."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output has gone
        to_nowhere(sys.stdout)
        return code or FAILED
    except (OSError, ValueError) as error:
        to_nowhere(sys.stdout)
        fail(f"standard output: cannot be written: {getattr(error, 'strerror', None) or error}")
        return code or USER_ERROR
    return code


def _called(command: Callable[[], object], arguments: Sequence[str]) -> int:
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return fail(error.format_message())
    except (BrokenPipeError, ReaderGone):
        to_nowhere(sys.stdout)
        return FAILED
    except RunError as error:
        fail(str(error))
        return FAILED
    except TokencakeError as error:
        return fail(str(error))
    except UnicodeError as error:
        return fail(f"text that cannot be encoded or decoded: {error}")
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (KeyboardInterrupt, click.Abort) as interrupt:
        cause = interrupt if interrupt.__cause__ is None else interrupt.__cause__  # click makes something else of it
        say(": ".join(("interrupted", *getattr(cause, "__notes__", ()))), err=True)
        return exit_code(interrupt)
    except MemoryError:
        return fail("out of memory")
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            return FAILED  # Rich's word for a reader that has gone
        fail(bug_message(error, arguments))
        return BUG
    finally:
        forget()
