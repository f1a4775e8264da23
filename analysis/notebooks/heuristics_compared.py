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
# # Heuristics compared
#
# Is a strategy better than random choice, or did it have a lucky run? Runs of one number share their first images
# and weights, so they are compared in pairs, by the area under the learning curve (AUBC).

# %%
# %matplotlib inline
import os
import sys

sys.path.append("../..")  # the project, seen from this folder

from IPython.display import display

from analysis import plots, runs, statistics
from experiments.components import ROOT
from experiments.errors import Refused

RESULTS = ROOT / os.environ.get("ASKMASK_RESULTS", "results")
BASELINE = "random"
MARGIN = 0.01  # the largest difference in Dice that does not matter to you; choose it before you look

# %%
frame = runs.load(RESULTS)

# %% [markdown]
# **AUBC of every run**: the mean height of its curve over the budget. Read along a row: a pair shares its luck. Do
# not rank strategies by a single column of runs.

# %%
ends = statistics.endpoints(frame, runs.headline(frame))
ends.pivot(index=["dataset", "run"], columns="label", values="aubc")

# %% [markdown]
# **Verdicts.** Read `verdict` and the interval `95 % low` to `high` of the difference. *undecided* does not mean equal:
# it means that these runs cannot tell, and `more runs` says how many a new study would need; fewer than three pairs
# tell nothing. Do not add runs until p falls below .05; that finds a difference sooner or later where there is none.

# %%
tables = {}
for dataset, one in frame.groupby("dataset"):
    try:
        tables[dataset] = statistics.compare(one, baseline=BASELINE, margin=MARGIN, metric=runs.headline(one))
        for part in statistics.readable(tables[dataset]):
            display(part.T)
    except Refused as reason:
        print(f"{dataset}: {reason}")

# %% [markdown]
# **Paired differences.** A dot is one run, with its number: right of the line the strategy was better than the
# baseline in that run. The diamond is their mean, the bar its 95 % interval; the verdict stands only if the bar
# leaves the line, and with several strategies Holm's correction asks for more. Do not count dots: how far they
# are matters too.

# %%
for dataset, table in tables.items():
    print(dataset)
    display(plots.differences(ends[ends["dataset"] == dataset], table, BASELINE))
if not tables:
    print("No pairs of runs, no differences to show.")

# %% [markdown]
# **Penalty matrix.** The share of budgets at which the row beat the column (paired t test at each budget, p < .05),
# summed over datasets; a low column mean says that a strategy was seldom beaten. The start counts too, where paired
# runs are equal. Do not build on a single cell: the tests are uncorrected, and budgets of one run depend on each other.

# %%
if tables:
    display(plots.matrix(statistics.penalty_matrix(frame, runs.headline(frame)), most=frame["dataset"].nunique()))
else:
    print("No pairs of runs, nothing to test.")
