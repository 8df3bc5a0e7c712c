"""How a benchmark ends that was called wrongly, was given a wrong file, or was interrupted: as `tokencake` does.

That is one line on stderr, and exit code 2 for what its user can mend, 1 for a run that failed, 130 for an interrupt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tokencake.traces.errors import RunError, TokencakeError
from tokencake.traces.files.escaping import one_line


def exit_code(main: Callable[[], object]) -> int:
    """Runs a benchmark, and returns its exit code: what `main` returns, if that is one."""
    try:
        code = main()
        sys.stdout.flush()
    except TokencakeError as error:
        refused(str(error))
        return 1 if isinstance(error, RunError) else 2
    except BrokenPipeError:  # who read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def refused(why: str) -> int:
    """Says what is wrong, and returns the exit code for that."""
    print(f"error: {one_line(why)}", file=sys.stderr)
    return 2
