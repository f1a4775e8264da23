"""How fast AskMask is beside its peers on this machine: `python -m experiments.benchmark score`."""
