"""One step at a time: `python active.py train with ...` and `query with ...` in turn do what `active.py with` does."""

from experiments import annotate
from experiments.errors import AwaitingLabels, Paused, Refused
from experiments.records.ledger import is_finished, reached, read
from experiments.steps import loop, repeat

EVENTS = {"train": "evaluated", "query": "queried"}


def check(folder, cycles, stop_at, step):
    """Raise Refused, saying what is next, unless it is the turn of `step` in the run of this folder."""
    events = read(folder)
    done = {name: number(name, events) for name in EVENTS}
    turn = "train" if done["train"] == done["query"] else "query"
    if is_finished(events, cycles, stop_at):
        more = f"cycles={cycles + 1} goes on"
        if done["train"] <= cycles:
            more = f"it reached stop_at={stop_at:g}" if reached(events, stop_at) else "its pool is empty"
        raise Refused(f"{folder} is finished: there is nothing left to {step}; {more}.")
    if step != turn:
        what = "has not begun" if not done["train"] else f"is {'trained' if turn == 'query' else 'asked'} already"
        raise Refused(f"{folder} {what}: next is {typed(turn)}.")


def number(step, events):
    """How often a run has made this step: the cycle of the next one."""
    return sum(event["event"] == EVENTS[step] for event in events)


def typed(step):
    return f"`python active.py {step} with ...`"


def after_training(state, cycle):
    """What a run ends with that was to train once: a Paused."""
    return Paused(f"{state.ledger.folder}: cycle {cycle} is trained and tested; next is {typed('query')}.")


def after_query(state, queries, cycle):
    """What a run ends with that was to ask once: an AwaitingLabels, or a Paused where every mask is there.

    The folder for people is written either way.
    """
    repeats = repeat.queries(state, cycle)
    place = annotate.write_request(state, [*queries, *repeats], cycle + 1, lambda: loop.can_show(state, cycle))
    shown = f"{place / 'index.html'} shows what is asked for and why, {place.with_suffix('.csv')} ranks the pool"
    missing = annotate.missing(state, queries, repeats)
    if missing:
        masks = f"{len(missing)} of {len(queries) + len(repeats)} masks are awaited in {place / 'labels'}"
        return AwaitingLabels(f"{shown}; {masks}, then {typed('train')}.")
    return Paused(f"{shown}; the dataset has the masks, next is {typed('train')}.")
