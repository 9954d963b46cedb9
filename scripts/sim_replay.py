#!/usr/bin/env python3
"""Replay one seed of the simulated network and print its trace, stamped in virtual time.

    python scripts/sim_replay.py SEED [--steps N] [--pcap FILE] [--quiet]

The same seed gives the same trace, octet for octet. The exit status is 1 if an invariant does not hold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.sim.walk import STEPS, Walk
from tests.support.sim.world import Violation


def main() -> int:
    """Run one walk; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of the walk (default {STEPS})")
    parser.add_argument("--pcap", type=Path, help="write what crossed the links as a capture of raw IP packets")
    parser.add_argument("--quiet", action="store_true", help="print only what does not hold")
    options = parser.parse_args()
    walk = Walk.of_seed(options.seed, keep_packets=options.pcap is not None)
    problem = ""
    try:
        walk.run(options.steps)
    except Violation as violation:
        problem = str(violation).splitlines()[0]
    if not options.quiet:
        print("\n".join(walk.world.trace))
    if options.pcap is not None:
        options.pcap.write_bytes(walk.world.pcap())
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
