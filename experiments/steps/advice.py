"""What the next query can be expected to bring, told from the run's own validation values; never from test images.

A learning curve falls as a power of the number n of labelled images, 1 - Dice = a n^b (Cortes et al. 1993,
https://proceedings.neurips.cc/paper/1993/hash/1aa48fc4880bb0c9b8a3bf979d3b917e-Abstract.html; Viering & Loog 2022,
https://arxiv.org/abs/2103.10948): a line in logarithms, by least squares through the last evaluations. The interval is
Student's of its slope: of the trend, not of one noisy value.
"""

import numpy as np

from experiments.records.ledger import validation_headline

LEAST, LAST = 3, 5  # evaluations that a line takes at least and at most: curves bend, the early ones say less
LEVEL = 0.95


def after(events, cycle, query):
    """What the ledger's `events` up to a cycle say of a next query of so many images.

    {"gain", "low", "high"} of the validation headline, with annotators' seconds known "hours" and "per_hour" as well;
    {} where fewer than LEAST evaluations have a validation value.
    """
    name = validation_headline(events)
    tested = [event for event in events if event["event"] == "evaluated" and event["cycle"] <= cycle]
    points = [(event["images"], event["metrics"].get(name)) for event in tested]
    points = [(images, value) for images, value in points if images and value is not None][-LAST:]
    if len(points) < LEAST:
        return {}
    found = dict(zip(("gain", "low", "high"), expected_gain(*zip(*points, strict=True), query), strict=True))
    seconds = seconds_of_masks(events)
    if seconds:
        hours = float(np.mean(seconds)) * query / 3600
        found |= {"hours": hours, "per_hour": found["gain"] / hours}
    return found


def expected_gain(images, values, more):
    """(gain, lowest, highest) of a value in [0, 1] from `more` images beyond the last of `images`, by the power law."""
    from scipy import stats  # takes a second

    error = 1 - np.clip(values, None, 1 - 1e-6)
    line = stats.linregress(np.log(images), np.log(error))
    half = stats.t.ppf((1 + LEVEL) / 2, len(images) - 2) * np.nan_to_num(line.stderr)  # no number of equal values
    now = min(1.0, np.exp(line.intercept + line.slope * np.log(images[-1])))
    grown = np.log(1 + more / images[-1])
    slopes = np.array([line.slope, line.slope + half, line.slope - half])
    then = np.exp(np.minimum(np.log(now) + slopes * grown, 0))  # no value is below 0
    return tuple((now - then).tolist())


def seconds_of_masks(events):
    """The seconds that people took for masks, as far as they told."""
    answered = (versions for e in events if e["event"] == "answered" for versions in e["masks"].values())
    found = []
    for version in (version for versions in answered for version in versions):
        try:
            found.append(float(version.get("seconds", "")))
        except ValueError:
            continue
    return [seconds for seconds in found if 0 < seconds < np.inf]


def line(found, word, query):
    """What a person is told of this."""
    asks = f"the next query of {query}"
    if not found:
        return f"What {asks} will bring cannot be told before {LEAST} evaluations with validation images."
    hourly = f", {found['per_hour']:+.4f} an hour of drawing" if "per_hour" in found else ""
    sure = f"({found['low']:+.4f} to {found['high']:+.4f}, {100 * LEVEL:.0f} % interval)"
    return f"Expected of {asks}: {found['gain']:+.4f} validation {word} {sure}{hourly}."
