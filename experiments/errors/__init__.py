"""What a user is told, in one line and without a traceback, when a run cannot start or go on."""

import re
from difflib import get_close_matches

from sacred.utils import SacredError, SacredInterrupt


class Refused(SacredError):
    """The run cannot be made as asked: exit code 1. The message names what was found, expected, and the fix."""

    def __init__(self, message):
        super().__init__(message, print_traceback=False)

    code = 1


class BadData(Refused, SacredInterrupt):
    """A file of the dataset is unusable: recorded as INTERRUPTED, for the same command goes on after the fix."""

    STATUS = "INTERRUPTED"


class AwaitingLabels(Refused, SacredInterrupt):
    """The run has asked people for masks and goes on, with the same command, once they are there: exit code 0."""

    STATUS = "AWAITING_LABELS"
    code = 0


class Paused(Refused, SacredInterrupt):
    """The one step that was asked for is done, the run is not finished: the message says what is next, exit code 0."""

    STATUS = "INTERRUPTED"
    code = 0


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster or container sends it: INTERRUPTED, exit code 143, the same command continues.

    As a KeyboardInterrupt it gets past every `except Exception`, such as those around a library's optional imports.
    """

    STATUS = "INTERRUPTED"
    code = 143


def hint(wrong, known):
    """ " Did you mean bald?" where one of the known words is near the wrong one, else nothing."""
    close = get_close_matches(str(wrong), [str(word) for word in known], n=1)
    return f" Did you mean {close[0]}?" if close else ""


def listed(words, most=12):
    """The words with commas between, no more of them than can be read at once."""
    words = [str(word) for word in words]
    more = f" and {len(words) - most} more (`python -m experiments.catalogue`)" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def shown(value, most=80):
    """A value as a message of one line shows it: cut where it is long, and of an address nothing but its kind."""
    text = repr(value)
    if re.search("://|:.*@", text):
        return "an address"
    return text if len(text) <= most else f"{text[:most]}..."
