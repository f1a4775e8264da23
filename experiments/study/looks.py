"""Runs that are added until each method is decided: which ones, by the looks of the sequential design."""


def design(study):
    """The looks at which a study that goes on until it is decided is judged."""
    from analysis.sequential import Design  # pandas takes a second to import

    return Design(first=len(study.get("run", [0])), step=study.get("step", 1), most=study["most"])


def numbers(study):
    """The run numbers of a study, with those that may be added until it is decided."""
    runs = study.get("run", [0])
    more = study["most"] - len(runs) if "until" in study else 0
    return runs + list(range(max(runs) + 1, max(runs) + 1 + more))


def first_look(cells, study):
    """The cells of the first look of a study that goes on until it is decided."""
    return of_looks(cells, study, design(study).looks[0])


def of_looks(cells, study, n, methods=None):
    """The cells of the first n paired runs, of all methods or of these (folder, label)."""
    runs = numbers(study)[:n]
    return [cell for cell in cells if cell.run in runs and (methods is None or (cell.results, cell.label) in methods)]


def next_look(cells, progress, study, undecided):
    """The cells to add: of each comparison the undecided methods, and what they are compared with; [] at the end.

    `undecided(cells)` are the methods of one comparison that its runs so far do not decide.
    """
    baseline, looks, chosen = study.get("baseline", "random"), design(study).looks, []
    for folder in dict.fromkeys(cell.results for cell in cells):
        own = [cell for cell in progress.cells if cell.results == folder]
        made = sum(cell.label == baseline for cell in own)
        further = [n for n in looks if n > made]
        open_methods = undecided(own) if further else []
        if open_methods:
            methods = {(folder, label) for label in [baseline, *open_methods]}
            chosen += [cell for cell in of_looks(cells, study, further[0], methods) if cell not in progress.cells]
    return chosen
