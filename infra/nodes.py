"""Wait until a Ray cluster has all its nodes: `python infra/nodes.py ADDRESS NODES SECONDS`."""

import logging
import sys
import time

import ray


def living(address: str) -> int:
    """How many nodes the cluster has now; 0 while none answers."""
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError):
        return 0
    try:
        return sum(node["Alive"] for node in ray.nodes())
    finally:
        ray.shutdown()


def main(address: str, nodes: int, seconds: float) -> None:
    """Return once all have joined; exit with 4, as for machines that failed, if they do not in time."""
    end, joined = time.monotonic() + seconds, 0
    while (joined := living(address)) < nodes:
        if time.monotonic() > end:
            print(f"{joined} of {nodes} nodes joined {address} in {seconds:.0f} s; see the output of srun", flush=True)
            raise SystemExit(4)
        time.sleep(1)
    print(f"ray        {joined} nodes at {address}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
