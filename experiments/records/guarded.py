"""Sacred's observers as something that never ends a run: what goes wrong in one is said once."""

import sys
from functools import wraps

from tqdm import tqdm

from experiments.errors.process import reason_and_advice


def guarded(event):
    """A method of an observer that says in one line what went wrong, where Sacred would end the run or the observer.

    The observer has a lock `turn`, for heartbeats come from a thread of their own; `place`, what it writes; `said`,
    whether it has spoken; and `begun`, which the event that starts it makes true.
    """

    @wraps(event)
    def tolerant(self, **what):
        if not self.begun and event.__name__ != "started_event":
            return None
        try:
            with self.turn:
                return event(self, **what)
        except Exception as error:
            if not self.said:
                say(f"{self.place} cannot be written ({_reason(error)}. The run goes on without it.")
            self.said = True

    return tolerant


def _reason(error):
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):
        return f"{type(error).__name__})"
    reason, advice = reason_and_advice(cause)
    return f"{reason}): {advice}"


def say(line):
    """Print a line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()
