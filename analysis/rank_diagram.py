"""Critical-difference diagram: mean ranks over datasets, a bar joining methods that Nemenyi's test cannot tell apart.

Demsar 2006, https://jmlr.org/papers/v7/demsar06a.html, figure 1. Here a row is a method, so that it is read on a phone.
"""

from matplotlib.figure import Figure

WIDTH, ROW = 4.4, 0.27  # inches; a phone shows this width at about its own size
CHARACTERS, CHARACTER = 14, 0.085  # of a name that there is room for, and how many inches each more takes


def groups(ranks, distance):
    """[(first, last)] of ascending mean ranks: the largest sets of two or more that differ by less than `distance`."""
    found = []
    for first, rank in enumerate(ranks):
        last = max(k for k, other in enumerate(ranks) if other - rank < distance)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def draw(ranks, distance):
    """The Figure of a Series of mean ranks by method, 1 the best, and their critical difference."""
    ranks = ranks.sort_values(kind="stable")
    joined, methods, worst = groups(ranks.tolist(), distance), len(ranks), max(len(ranks), 1 + distance)
    top = 2.2 + 0.45 * len(joined)  # rows above the methods
    names = [str(label).replace("$", r"\$").replace(",", ",\n") for label in ranks.index]  # no formula
    longest = max(len(line) for name in names for line in name.split("\n"))
    width = WIDTH + CHARACTER * max(0, longest - CHARACTERS)
    figure = Figure(figsize=(width, ROW * (methods + top + 1.6)), layout="constrained")
    axis = figure.add_subplot()
    axis.set(xlim=(0.9, worst + 0.1), ylim=(methods - 0.5, -top), yticks=[], xticks=range(1, int(worst) + 1))
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("mean rank, 1 the best")
    axis.spines[["left", "right", "bottom"]].set_visible(False)
    axis.plot([1, 1 + distance], [0.75 - top] * 2, color="black", marker="|", markersize=9)
    axis.text(1, 1.45 - top, f"critical difference {distance:.2f}", va="center")
    for number, (first, last) in enumerate(joined):
        height = -0.45 * (len(joined) - number)
        axis.plot(
            [ranks.iloc[first], ranks.iloc[last]], [height] * 2, color="black", linewidth=4, solid_capstyle="butt"
        )
    for row, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        axis.plot([rank, rank], [-0.45, row], color="0.6", linewidth=0.8, zorder=1)
        axis.plot(rank, row, "o", color="black", markersize=5)
        place = {"textcoords": "offset points", "ha": "right", "va": "center"}  # on the left no line of another passes
        size = 10 if "\n" not in name else 8  # so that two lines stand in a row
        axis.annotate(f"{name}  {rank:.2f}", (rank, row), (-7, 0), fontsize=size, **place)
    return figure
