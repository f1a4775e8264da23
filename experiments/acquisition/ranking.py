"""The order of a pool by its scores, with its rule for ties."""

import numpy as np


def ranking(scores, ids):
    """All positions, best first; equal scores in the order of their ids, whatever the order of the files."""
    return np.lexsort((np.asarray(ids), -np.asarray(scores, dtype=np.float64))).tolist()
