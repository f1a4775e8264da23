"""Vote entropy: the entropy of the shares of passes in which each class won, in nats.

Dagan & Engelson 1995, https://doi.org/10.1016/B978-1-55860-377-6.50027-X, the passes being the committee. SegAL's
`VoteSampling` means the mean entropy of a pass, which is `expected_entropy` here.
"""

from sacred import Ingredient

from experiments.acquisition.prediction import entropy

ingredient = Ingredient("vote")
UNIT = "nats"


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W) nats, 0 to log C."""
    return entropy(prediction.votes / prediction.count[:, None])
