"""A process beside a worker of Ray that has imported the libraries once and forks each run that it is asked for.

A worker itself cannot fork: a child would keep its sockets open, and locks that its threads held would stay locked.
"""

import json
import os
import sys
from select import select
from signal import SIGTERM

from experiments.study.forked import POLL, Lifeline, fork, import_libraries


def serve(components, answers):
    """Do the runs that come in, a line each; another line meanwhile, or the end of the input, stops the run."""
    lifeline, asked = Lifeline(), os.fdopen(0, "rb", buffering=0, closefd=False)
    import_libraries(components)
    while line := asked.readline():
        folder, words, log, environment = json.loads(line)
        with open(log, "ab") as file:
            number = fork(lambda folder=folder, words=words: run(folder, words), lifeline, file, environment)
        ended, status, used = os.wait4(number, os.WNOHANG)
        while not ended:
            if select([asked], [], [], POLL)[0]:
                asked.readline()
                os.kill(number, SIGTERM)
                ended, status, used = os.wait4(number, 0)
            else:
                ended, status, used = os.wait4(number, os.WNOHANG)
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), file=answers, flush=True)


def run(folder, words):
    import active

    os.chdir(folder)
    active.ex.run_commandline(["active.py", "with", *words])


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    serve([tuple(part) for part in json.loads(sys.argv[1])], own)
