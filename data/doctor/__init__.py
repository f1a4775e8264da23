"""The doctor: finds what is wrong with the files of a dataset before a run learns from it."""
