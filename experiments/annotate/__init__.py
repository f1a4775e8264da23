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


def settle(state, queries, chosen, cycle, trained):
    """Give the training Store the masks that people drew, and return the positions of those drawn anew since.

    Nothing is looked for in a cycle that is tested already. Raises AwaitingLabels, the request being there to be
    answered, while one of the `chosen` positions has no mask. `trained()` brings the weights into the model that asked,
    and says whether it could.
    """
    train, folder = state.train, state.ledger.folder
    position = {id: index for index, id in enumerate(train.ids)}
    if all(item.mask is not None for item in train.split.items):
        return []
    if not state.ledger.find("evaluated", cycle):
        answers.collect(state)
    counted = answers.in_force(state.ledger.events, cycle)
    again = []
    for id, digest in counted.items():
        index = position[id]
        train.drawn[index] = partial(answers.read, folder, digest, train.sizes[index])
        if index not in chosen and train.mask_digests.get(index) not in (None, answers.digest_of(train.drawn[index]())):
            again.append(index)
    awaited = missing(train, chosen)
    if awaited:
        place = write_request(state, queries, chosen, cycle, trained)
        ask = f"{len(awaited)} of {len(chosen)} masks are awaited"
        raise AwaitingLabels(
            f"{ask}: {place / 'index.html'} shows of what and why. Put them into {place / 'labels'} under the images' "
            "names, and type the same command again."
        )
    return again


def missing(train, chosen):
    """Those of the `chosen` positions in a Store that have no mask, of the dataset's or of people's."""
    return [index for index in chosen if train.split.items[index].mask is None and index not in train.drawn]
