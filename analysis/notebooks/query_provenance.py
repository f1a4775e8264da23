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
# # Query provenance
#
# What one run asked for, when, and why: each query with its picture, its rank under the other scores, and how much
# the images of a query repeat each other.

# %%
# %matplotlib inline
import os
import sys

sys.path.append("../..")  # the project, seen from this folder

from IPython.display import Image, display

from analysis import provenance
from analysis.features import features
from experiments.components import ROOT
from experiments.errors import Refused

RESULTS = ROOT / os.environ.get("ASKMASK_RESULTS", "results")
RUN = os.environ.get("ASKMASK_RUN", "")  # such as bald_3; empty takes the first that scored its pool by a model
DATA = os.environ.get("ASKMASK_DATA", "")  # where the images lie; empty is the dataset's default

# %%
folder = RESULTS / RUN if RUN else provenance.choose(RESULTS)
pool = provenance.pools(folder)
scored = provenance.noted(pool)
print(f"{folder.name}: {pool['cycle'].nunique()} queries; scores kept of each image: {', '.join(scored) or 'none'}.")
if not scored:
    print("This run did not look at predictions, as random does: `score`, if any, is no model's uncertainty.")

# %% [markdown]
# **What was asked for when.** `rank by score` is the rank under the run's own score, 1 the most wanted of the `of`
# images in the pool; the others are ranks under scores that the same passes gave. Read how far another score would
# have agreed. Do not conclude that agreeing scores lead to equal curves, or that one that ranks a pick low is wrong.

# %%
print("The run began with", ", ".join(provenance.first_images(folder)))
provenance.picks(pool)

# %% [markdown]
# **Pictures.** Each image asked for (at most eight a query), over the map that made it wanted: bright pixels are
# uncertain, on one scale within a query. Read where the uncertainty lies: along outlines, or over whole regions that
# the model has not understood. Do not compare brightness across queries, and expect no map from random choice.

# %%
for cycle in sorted(pool["cycle"].unique()):
    print(f"cycle {cycle}")
    picture = folder / "queries" / f"cycle_{cycle:03d}.png"
    display(Image(filename=picture)) if picture.exists() else print("No picture was kept.")

# %% [markdown]
# **Scores of the pool.** A box holds the middle half of the pool, the whiskers 5 to 95 %; marks are what was asked
# for. Read whether marks stand clear of the box: if not, the score hardly chose. A falling box means a more certain
# model, not a better one. Do not compare heights between heuristics.

# %%
if pool["score"].notna().any():
    display(provenance.score_figure(pool))
else:
    print("This heuristic chooses without scores.")

# %% [markdown]
# **Redundancy.** How alike the images of a query are, beside random batches of the same size from the same pool. Above:
# the mean cosine over all pairs of their features, each centred and scaled over all images. The features are those of
# the run's *last* model, not of the one that chose: read it as a description, not as a cause. Below: how many images
# of the query are near-copies of another one of it, by 16 x 16 grey thumbnails that no model has seen; the grey line
# is what random batches hold. Copies that were turned or mirrored are not found.

# %%
try:
    ids, vectors, thumbnails = features(folder, root=DATA)
except Refused as reason:
    vectors = None
    print(reason)
if vectors is not None:
    redundancy = provenance.redundancy(pool, ids, vectors, thumbnails)
    display(provenance.redundancy_figure(redundancy) if len(redundancy) else "Queries of one image have no pairs.")

# %% [markdown]
# **Where in the pool.** All training images by the first two principal components of the ranks of those features; a
# number is the cycle in which an image was asked for, `s` marks the start. Read whether queries spread or crowd into a
# corner. Two components are a shadow of all of them (the axes say how much they keep): near here need not be alike.
# Size shows too: images of one size may form a group of their own.

# %%
if vectors is not None:
    display(provenance.map_figure(ids, vectors, provenance.first_images(folder), pool))
else:
    print("No features, no map.")
