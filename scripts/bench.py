"""Throughput, packet rate and delay of Mirrorgate and of others, in one run on one machine.

Every contender stands in the same place: between two gateways of two sites, or on two hosts. Rounds take turns, so
that a noisy moment of the machine meets all of them; each figure is the median of its rounds. Read the ratios: the
figures themselves are of this machine and of this hour.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from bench_inside import PARTS
from bench_measure import MEASURES, Figures, measure, median
from bench_report import bar_chart, inside_text, table
from bench_tunnels import CONTENDERS, Contender


def main() -> int:
    """Measure what the command line names; 0 when all of it could be measured."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    chosen = [contender for contender in CONTENDERS if not options.only or contender.name in options.only]
    rounds: dict[str, list[Figures]] = {contender.name: [] for contender in chosen}
    problems: dict[str, str] = {}
    if "tunnels" in options.parts:
        for number in range(1, options.rounds + 1):
            for contender in chosen:
                _one(contender, number, options, rounds, problems)
    figures = {name: median(found) for name, found in rounds.items() if found}
    inside = {name: part(_tell) for name, part in PARTS.items() if name in options.parts}
    result = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "measures": {name: MEASURES[name].what for name in options.measures},
        "tunnels": figures,
        "inside": inside,
        "problems": problems,
    }
    if figures:
        print("\n" + table(figures))
    if inside:
        print("\n" + inside_text(inside))
    for name, problem in problems.items():
        print(f"bench: {name} was left out: {problem}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    if options.svg and figures:
        Path(options.svg).write_text(bar_chart(figures))
    return 1 if any(name not in figures for name in problems if name.startswith("Mirrorgate")) else 0


def _one(
    contender: Contender,
    number: int,
    options: argparse.Namespace,
    rounds: dict[str, list[Figures]],
    problems: dict[str, str],
) -> None:
    missing = contender.missing()
    if missing:
        problems[contender.name] = missing
        return
    _tell(f"round {number}: {contender.name}")
    try:
        with contender.up() as ends:
            rounds[contender.name].append(measure(ends, options.seconds, options.measures))
    except (AssertionError, OSError) as error:
        problems[contender.name] = str(error).strip().splitlines()[0]


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    names = ", ".join(f'"{contender.name}"' for contender in CONTENDERS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"contenders: {names}\nparts: tunnels, {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=4, help="how long each measurement takes (4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everybody's turn comes (3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders alone")
    parser.add_argument(
        "--parts", nargs="+", choices=("tunnels", *PARTS), default=["tunnels", *PARTS], help="these parts alone"
    )
    parser.add_argument(
        "--measures", nargs="+", choices=tuple(MEASURES), default=list(MEASURES), help="these measures alone"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--svg", metavar="FILE", help="draw the bar chart there")
    options = parser.parse_args()
    unknown = set(options.only or ()) - {contender.name for contender in CONTENDERS}
    if unknown:
        parser.error(f"there is no contender {', '.join(sorted(unknown))}; there are {names}")
    if options.seconds < 1 or options.rounds < 1:
        parser.error("--seconds and --rounds take 1 and more")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
