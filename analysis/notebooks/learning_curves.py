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
# # Learning curves
#
# How good the model is after each query, for every strategy found in the results folder.

# %%
# %matplotlib inline
import os
import sys

sys.path.append("../..")  # the project, seen from this folder

from IPython.display import display

from analysis import plots, runs
from experiments.components import ROOT

RESULTS = ROOT / os.environ.get("ASKMASK_RESULTS", "results")

# %%
frame = runs.load(RESULTS)
frame.groupby(["dataset", "label"]).agg(runs=("run", "nunique"), first=("images", "min"), last=("images", "max"))

# %% [markdown]
# **By labelled images.** Read how many images a strategy needs to reach the height that another reaches later. From
# three runs on, a line is their mean and the band its 95 % t interval; with fewer, each line is one run. Dashed is
# training on all labels, dotted what calling everything foreground would score. Do
# not conclude that strategies differ because two lines do, or that they agree because bands overlap: the runs are
# paired, and only `heuristics_compared` looks at the pairs.

# %%
for dataset, one in frame.groupby("dataset"):
    print(dataset)
    display(
        plots.curves(one, costs=["images"], metric=runs.headline(one), constant=runs.constant_dice(RESULTS, dataset))
    )

# %% [markdown]
# **By labelled pixels.** Read whether a strategy that looked good above merely asked for large images: if so its line
# moves to the right here. Do not read ends against each other: runs stop after the same images, not the same pixels.

# %%
for dataset, one in frame.groupby("dataset"):
    print(dataset)
    if one["pixels"].isna().all():
        print("These runs did not record pixels.")
    else:
        display(
            plots.curves(
                one, costs=["pixels"], metric=runs.headline(one), constant=runs.constant_dice(RESULTS, dataset)
            )
        )
