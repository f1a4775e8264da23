"""Measure AskMask beside its peers: `python -m experiments.benchmark {score,train,items,select,cycle,scale}`.

Ratios are what counts: all variants run in turn, in rounds of shuffled order, in one process on the same work, after a
check that they compute the same. Give the machine nothing else to do.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from experiments.benchmark import report
from experiments.errors import Refused
from experiments.errors.process import one_line_errors
from experiments.training import trainer

COMMANDS = {
    "score": "BALD of a pool by MC dropout, beside baal and the published baselines",
    "train": "a training step, beside the bare step and the published baselines",
    "items": "reading images that are decoded once, beside decoding them again",
    "select": "k-centre and stochastic groups, beside their plain forms",
    "cycle": "a whole cycle of train, score and test, beside the published baselines",
    "scale": "memory and images a second of large pools",
}


def main(words):
    """Run one command, print its rows and notes; returns the exit code."""
    options = parse(words)
    try:
        device = trainer.prepare(device=options.device, threads=options.threads, deterministic=False)
        if device.type not in ("cpu", "cuda"):
            raise Refused(f"The peers run on cpu and cuda, not on {device.type}: use --device cpu.")
        machine = report.machine(device)
        rows, notes = import_module(f"experiments.benchmark.{options.command}").run(options, device)
        if options.plot:
            report.plot(rows, machine, options.plot)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report.plain(options, machine, rows, notes), indent=1))
    else:
        print(machine, report.table(rows), *notes, sep="\n\n")
    return 0


def parse(words):
    about = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in COMMANDS.items():
        own = commands.add_parser(command, help=what, description=what)
        own.add_argument("--json", action="store_true", help="for machines")
        own.add_argument("--plot", type=Path, help="draw the ratios into this PNG")
        own.add_argument("--device", default="auto", help="cpu, cuda:N or auto")
        own.add_argument("--threads", type=int, default=0, help="of the CPU, 0 leaves it to torch")
        for name, (default, help) in import_module(f"experiments.benchmark.{command}").OPTIONS.items():
            if default is False:
                own.add_argument(f"--{name}", action="store_true", help=help)
            else:
                own.add_argument(f"--{name}", type=type(default), default=default, help=f"{help} ({default})")
    return parser.parse_args(words)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
