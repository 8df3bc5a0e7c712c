"""The errors of this package, and the exit codes of the commands that they end.

    Exception
    ├── TokencakeError      2   a user can mend it
    │   ├── TraceError      2
    │   ├── PolicyError     2
    │   │   ├── PolicyFault 2
    │   │   └── Unanswered  2   a replay has no answer
    │   ├── MachineError    2
    │   ├── EngineError     2
    │   └── RunError        1   nobody can: a run failed in the engine
    └── BugError            70  we can
        ├── WorkerBug       70
        ├── FactError       70
        └── CheckError      70

The message of a TokencakeError is one line that names the culprit. `assert` is for our own bugs, too. An error that a
single module raises lies beside what raises it.
"""


class TokencakeError(Exception):
    """Something a user can mend. The command line prints it as one line and exits with 2."""


class TraceError(TokencakeError):
    """A trace (or another input file) is wrong: names the file, the line, the field and what was expected."""


class PolicyError(TokencakeError):
    """A policy is unknown, was given a wrong option, or did something wrong (`PolicyFault`)."""


class PolicyFault(PolicyError):
    """What a policy's own code did: it raised, left the process, did not come back, or wanted what means nothing."""


class Unanswered(PolicyError):
    """A policy asked what nobody can answer: not its fault. A replay holds the answers that were recorded alone."""


class MachineError(TokencakeError):
    """A machine is unknown, or one of its settings is wrong."""


class EngineError(TokencakeError):
    """The engine cannot serve what it was asked to: names the call, its tokens and the limit."""


class RunError(TokencakeError):
    """A run failed in the engine, and nothing that the user asked for is to blame. The command line exits with 1."""


SUSPECT = "or a bug in policy "  # how the note begins on an error of ours that a policy may have caused


class BugError(Exception):
    """A bug of ours that something of ours has noticed."""


class WorkerBug(BugError):
    """A bug of ours in a process that works for this one. Its text is the traceback there."""


class FactError(BugError):
    """An engine reported a fact that may not come now: names the fact, whom it is about and where that one is."""


class CheckError(BugError):
    """What an engine keeps twice does not agree: names both."""
