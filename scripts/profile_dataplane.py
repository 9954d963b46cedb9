#!/usr/bin/env python3
"""Measure the packet path in memory: superpackets through outbound() of one data plane and inbound() of another.

Prints microseconds a segment and Gbit/s of inner TCP, for one core and no system calls.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from pathlib import Path as FilePath

sys.path.insert(0, str(FilePath(__file__).resolve().parent.parent))

from policy.proposals import Suite
from tests.support.packets import CBC_SHA256, CHACHA, GCM, Pair, drain, tcp4, tun, udp4
from tunnel.dataplane.contract import Transmit, TunFrame, WireDatagrams

_SUITES = {"aes256gcm16": GCM, "chacha20poly1305": CHACHA, "aes128-sha256": CBC_SHA256}


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=_SUITES, default="aes256gcm16")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--mss", type=int, help="octets of TCP payload a segment (default: what the suite carries)"
    )
    parser.add_argument("--segments", type=int, default=46)
    parser.add_argument("--burst", type=int, default=4, help="superpackets a call")
    parser.add_argument("--small", action="store_true", help="single packets of 64 octets instead")
    parser.add_argument("--profile", choices=("outbound", "inbound"))
    options = parser.parse_args()
    suite = _SUITES[options.suite]
    if options.profile:
        profiler = cProfile.Profile()
        _run(suite, options, profiler)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(14)
    else:
        _run(suite, options, None)


def _superpacket(sequence: int, options: argparse.Namespace) -> bytes:
    if options.small:
        return tun(udp4(b"x" * 64), flags=1, start=20, offset=6)  # as the kernel leaves it
    payload = bytes(range(256)) * (options.mss * options.segments // 256 + 1)
    packet = tcp4(payload[: options.mss * options.segments], seq=sequence, options=b"\x01\x01\x08\x0a12345678")
    return tun(packet, gso_type=1, gso_size=options.mss, flags=1, start=20, offset=16)


def _run(suite: Suite, options: argparse.Namespace, profiler: cProfile.Profile | None) -> None:
    pair = Pair(suite)
    options.mss = options.mss or pair.left.tun_mtu() - 52
    step = 12 if options.small else options.mss * options.segments
    count = options.burst * (options.segments if options.small else 1)
    frames = [_superpacket(1 + index * step, options) for index in range(count)]
    spent = {"outbound": 0.0, "inbound": 0.0}
    best = {"outbound": float("inf"), "inbound": float("inf")}
    segments = octets = written = 0
    while sum(spent.values()) < options.seconds:
        burst = [TunFrame(b"".join(frames), len(frames[0]))] if options.small else [TunFrame(f) for f in frames]
        start = time.perf_counter()
        if profiler and options.profile == "outbound":
            profiler.enable()
        pair.left.outbound(burst, 1)
        transmits = [output for output in drain(pair.left) if isinstance(output, Transmit)]
        if profiler:
            profiler.disable()
        middle = time.perf_counter()
        arrivals = [
            WireDatagrams(
                transmit.path,
                bytearray(b"".join(transmit.buffers)),
                transmit.segment_size or len(transmit.buffers[0]),
            )
            for transmit in transmits
        ]
        segments += sum(len(transmit.buffers) for transmit in transmits)
        begin = time.perf_counter()
        if profiler and options.profile == "inbound":
            profiler.enable()
        pair.right.inbound(arrivals, 1)
        outputs = drain(pair.right)
        if profiler:
            profiler.disable()
        end = time.perf_counter()
        for direction, seconds in (("outbound", middle - start), ("inbound", end - begin)):
            spent[direction] += seconds
            best[direction] = min(best[direction], seconds / sum(len(transmit.buffers) for transmit in transmits))
        octets += step * count
        written += sum(len(output.frames) for output in outputs if hasattr(output, "frames"))
    counters = pair.right.counters()
    if counters.inbound_out != segments:
        raise SystemExit(f"{segments} segments sent, {counters.inbound_out} delivered")
    for direction, seconds in spent.items():
        mean, least = seconds / segments, best[direction]
        rate = octets * 8 / segments / 1e9
        print(
            f"{direction:9} mean {mean * 1e6:6.2f} us/segment {rate / mean:5.2f} Gbit/s, "
            f"best burst {least * 1e6:6.2f} us/segment {rate / least:5.2f} Gbit/s"
        )
    print(f"{segments} segments, {segments / written:.1f} a frame written to the TUN")


if __name__ == "__main__":
    main()
