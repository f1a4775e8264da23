"""People as the oracle: a folder that says what is asked for and why, and the masks that come back.

A query whose images have no mask becomes a folder, results/<label>_<run>/queries/cycle_000/ (request.py), and the run
ends as AWAITING_LABELS. Masks put into its labels/ are checked when the same command is typed again (answers.py); those
taken are kept in results/<label>_<run>/masks/ under their hash, and the ledger says which mask counted when.

`python -m experiments.annotate` hands such a folder to an annotation tool (handoff.py, formats/) and takes its answer
(returned.py).
"""

from functools import partial

from experiments.annotate import answers
from experiments.annotate.request import write_request
from experiments.errors import AwaitingLabels
from experiments.records.ledger import is_finished
from experiments.records.progress import say


def settle(state, queries, repeats, cycle, trained):
    """Give the training Store the masks that people drew, and return the positions of those drawn anew since.

    What comes when a cycle is tested already counts from the next one on. Raises AwaitingLabels, the request being
    there to be answered, while one of the `queries` has no mask, or of the `repeats`, which stand beside them.
    `trained()` brings the weights into the model that asked, and says whether it could.
    """
    train, ledger = state.train, state.ledger
    position = {id: index for index, id in enumerate(train.ids)}
    if not ledger.find("queried", cycle) and answers.collect(state):
        if is_finished(ledger.events, state.config["cycles"], state.config["stop_at"]):
            say("This run is finished: they count once it goes on, as by a larger cycles= or stop_at=.")
    again, chosen = [], {position[query["id"]] for query in queries}
    for id, digest in answers.in_force(ledger.events, cycle).items():
        index = position[id]
        train.drawn[index] = partial(answers.read, ledger.folder, digest, train.sizes[index])
        if index not in chosen and train.mask_digests.get(index) not in (None, answers.digest_of(train.drawn[index]())):
            again.append(index)
    awaited = missing(state, queries, repeats)
    if awaited:
        place = write_request(state, [*queries, *repeats], cycle, trained)
        ask = f"{len(awaited)} of {len(queries) + len(repeats)} masks are awaited"
        raise AwaitingLabels(
            f"{ask}: {place / 'index.html'} shows of what and why. Put them into {place / 'labels'} under the images' "
            "names, and type the same command again."
        )
    return again


def missing(state, queries, repeats):
    """Ids of the `queries` without a mask, of the dataset's or of people's, and of `repeats` not drawn once more."""
    counted, again = answers.in_force(state.ledger.events), answers.repeats(state.ledger.events)
    bare = {item.id for item in state.train.split.items if item.mask is None}
    ids = [query["id"] for query in queries if query["id"] not in counted]
    ids += [query["id"] for query in repeats if query["id"] not in again]
    return [id for id in ids if id in bare]
