"""Masks that are probably wrong: those that models which never saw them confidently disagree with."""
