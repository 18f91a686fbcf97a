"""A process for each contestant, forked from one that has already loaded what everybody needs.

`python -m tests.benchmarks.forks` reads addresses from its standard input, one a line; for each it forks a process that
calls back there and sits down. One runs in every environment.
"""

import os
import signal
import sys
from importlib import import_module
from multiprocessing.connection import Client

from tests.benchmarks.seat import serve
from tests.benchmarks.work import one_thread


def main() -> None:
    one_thread()
    os.dup2(2, 1)  # what libraries print belongs to the log
    import_module("concept_trak.models.text_to_image")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who leave
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection = Client(line.strip())
            connection.send(os.getpid())
            serve(connection)
            os._exit(0)


if __name__ == "__main__":
    main()
