"""The steps of a run in the order in which active.py takes them: it begins, cycles and shows its results."""
