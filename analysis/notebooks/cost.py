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
# # Cost
#
# An image is not the unit that people are paid for. The same curves by four costs: images, pixels, the length of the
# outlines that had to be drawn, and minutes by a model.
#
# The model is `minutes = (SECONDS_PER_IMAGE * images + SECONDS_PER_EDGE * boundary) / 60`. That the time to trace a
# line grows linearly with its length is the steering law (Accot and Zhai 1997,
# https://doi.org/10.1145/258549.258760); **both constants are an assumption**. To judge them: polygons of COCO's
# everyday objects took 79.2 seconds each on average (Lin et al. 2014, https://arxiv.org/abs/1405.0312, as quoted by
# https://arxiv.org/abs/2104.06404), and a round object 36 pixels wide has an outline of about 144 pixel edges. Time
# your own annotators and put their numbers here.

# %%
# %matplotlib inline
import os
import sys

sys.path.append("../..")  # the project, seen from this folder

from IPython.display import display

from analysis import plots, runs
from experiments.components import ROOT

RESULTS = ROOT / os.environ.get("ASKMASK_RESULTS", "results")
SECONDS_PER_IMAGE = 15  # opening, looking, checking
SECONDS_PER_EDGE = 0.25  # drawing along one pixel's edge; halve it where images have twice the resolution

# %%
frame = runs.load(RESULTS)
frame["minutes"] = (SECONDS_PER_IMAGE * frame["images"] + SECONDS_PER_EDGE * frame["boundary"]) / 60
frame = frame.dropna(subset=["boundary"])
if frame.empty:
    print("These runs did not record outlines.")

# %% [markdown]
# **What each strategy has spent at the end**, the mean over its runs. Read the columns after `images`: strategies that
# asked for equally many images may have asked for very different amounts of work. Masks of validation images are
# labels too and are not counted here, being the same for all.

# %%
last = frame[frame["cycle"] == frame.groupby(["dataset", "label", "run"])["cycle"].transform("max")]
last.groupby(["dataset", "label"])[["images", "pixels", "boundary", "minutes", "test.dice"]].mean().round(3)

# %% [markdown]
# **Dice against each cost.** Read whether the order of the strategies survives the change of axis: one that leads by
# images and falls behind by outlines bought its lead with harder images. Where runs paid differently, the mean is
# read off between their points, over the costs that all of them reached. Do not conclude anything that turns round
# when you double `SECONDS_PER_EDGE`.

# %%
for dataset, one in frame.groupby("dataset"):
    print(dataset)
    display(plots.curves(one, costs=["images", "pixels", "boundary", "minutes"], metric=runs.headline(one)))
