"""Speed against the floors, the authors' way and the rivals: one run, one page.

    python -m tests.benchmarks                             # everybody on every model
    python -m tests.benchmarks --models tiny --rounds 1 --samples 4

The page and its numbers lie in results/benchmarks/speed. Rivals sit in an environment of their own, which
`make results/benchmarks/rivals-venv/ready` makes; without it they stand in the tables as missing.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from tests.benchmarks.contest import hold, seats
from tests.benchmarks.contestants import entered
from tests.benchmarks.page import publish
from tests.benchmarks.work import MODELS, ROOT, one_thread, smaller


def main() -> None:
    asked = _asked()
    one_thread()
    start, found = time.monotonic(), {}
    for name in asked.models:
        model = smaller(MODELS[name], asked.samples) if asked.samples else MODELS[name]
        with seats(asked.out / "logs" / name) as seat:
            found[name] = hold(seat, model, entered(name), asked.rounds)
        publish(asked.out, found, shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]))
        failed = [one.contestant.name for one in found[name] if one.failed]
        print(f"{name}: {len(found[name])} contestants, failed: {failed or 'none'}; {time.monotonic() - start:.0f} s")
    print(asked.out / "speed.md")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of everybody")
    parser.add_argument("--samples", type=int, default=0, help="samples of every task, 0 for each model's own")
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks/speed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
