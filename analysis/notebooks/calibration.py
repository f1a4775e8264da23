# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Calibration
#
# Is a pixel that the model calls gland with probability .9 a gland nine times in ten? Uncertainty heuristics assume
# something like it.

# %%
# %matplotlib inline
import os
import sys

sys.path.append("../..")  # the project, seen from this folder

from IPython.display import display

from analysis import calibration, plots
from experiments.components import ROOT

RESULTS = ROOT / os.environ.get("ASKMASK_RESULTS", "results")

# %%
bins = calibration.load(RESULTS)

# %% [markdown]
# **Reliability after the last query.** Points below the dotted diagonal are overconfident, points above are
# underconfident; the larger a mark, the more pixels have this confidence. Read the large marks: the expected
# calibration error (ECE) weighs them so. Averaging over dropout passes should bring points nearer to the diagonal. Do
# not read bins of few pixels, and do not conclude that a calibrated model segments well.

# %%
for dataset, one in bins.groupby("dataset"):
    print(dataset)
    display(calibration.reliability(one))

# %% [markdown]
# **ECE over cycles**, of the single pass without dropout and of the average over passes; lower is better. Read
# whether averaging helps throughout. ECE moves with the Dice and with the number of epochs: do not credit a
# heuristic with a lower one without looking at the learning curves.

# %%
errors = calibration.ece(bins)
errors["label"] = errors["label"] + ", " + errors["kind"]
for dataset, one in errors[~errors["label"].str.startswith("full,")].groupby("dataset"):
    print(dataset)
    display(plots.curves(one, costs=["images"], metric="ece"))

# %%
errors.groupby(["dataset", "label", "images"])["ece"].mean().unstack("images").round(4)
