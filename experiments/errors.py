"""What a user is told, in one line and without a traceback, when a run cannot start or go on."""

from sacred.utils import SacredError, SacredInterrupt


class Refused(SacredError):
    """The run cannot be made as asked: exit code 1. The message names what was found, expected, and the fix."""

    def __init__(self, message):
        super().__init__(message, print_traceback=False)

    code = 1


class BadData(Refused, SacredInterrupt):
    """A file of the dataset is unusable: recorded as INTERRUPTED, for the same command goes on after the fix."""

    STATUS = "INTERRUPTED"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster or container sends it: INTERRUPTED, exit code 143, the same command continues.

    As a KeyboardInterrupt it gets past every `except Exception`, such as those around a library's optional imports.
    """

    STATUS = "INTERRUPTED"
    code = 143
