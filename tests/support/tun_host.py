"""The host's side of a policy without an agent: guard, TUN, routes and sockets of a snapshot, in a namespace.

As a program (``python -m tests.support.tun_host``) it reads a config text and own addresses as one JSON line, puts
them in force, and tells each packet that comes out of the TUN as a line; ``TunHost`` runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as FilePath
from types import TracebackType
from typing import Any

from policy.model import ConnectionType
from policy.path import IKE_PORT, Endpoint, Path
from policy.spd import Spd
from tests.support.netns import Namespace, wait_for
from tests.support.policies import compiled
from tunnel.dataplane.contract import Transmit
from tunnel.host.steering import Steering, forwarding_hints, tune
from tunnel.host.tun import Tun
from tunnel.host.wire import Wire

ROOT = FilePath(__file__).resolve().parents[2]
TUN = "mg0"
_PLAIN = bytes(10)


class TunHost:
    """Guard, TUN and routes of the policy *text* in *namespace*. A context manager; ``seen`` came from the TUN."""

    def __init__(self, namespace: Namespace, text: str, *addresses: str, interfaces: str = "all") -> None:
        self.namespace = namespace
        self._policy = {"text": text, "addresses": addresses, "interfaces": interfaces}
        self._process: subprocess.Popen[str] | None = None
        #: All that the program told.
        self.lines: list[dict[str, Any]] = []

    def __enter__(self) -> TunHost:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Put the policy in force, and wait until it is."""
        self.lines = []
        self._process = process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace.name, sys.executable, "-m", "tests.support.tun_host"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        threading.Thread(target=self._follow, args=(process, self.lines), daemon=True).start()
        self._say(self._policy)
        wait_for(lambda: self.lines or process.poll() is not None, "the policy is in force")
        if not self.lines:
            self.kill()
            raise AssertionError(f"the host ended with {process.poll()}")

    @property
    def hints(self) -> list[str]:
        """What the host says of forwarding."""
        return [str(hint) for hint in self.lines[0]["hints"]]

    @property
    def packets(self) -> list[bytes]:
        """The packets that came out of the TUN, superpackets whole; without the link's own multicast."""
        found = [bytes.fromhex(line["packet"]) for line in self.lines if "packet" in line]
        return [packet for packet in found if not ip_address(_ends(packet)[1]).is_multicast]

    @property
    def received(self) -> list[dict[str, Any]]:
        """The datagrams that came to the own sockets: local, remote, size, segment_size, tos, protocol, header."""
        return [line["datagram"] for line in self.lines if "datagram" in line]

    @property
    def seen(self) -> list[tuple[str, str]]:
        """Source and destination of each packet that came out of the TUN."""
        return [_ends(packet) for packet in self.packets]

    def expect(self, source: str, destination: str) -> None:
        """Wait until a packet between these comes out of the TUN."""
        wait_for(lambda: (source, destination) in self.seen, f"{source} -> {destination} comes out of the TUN", 5)

    def inject(self, packet: bytes) -> None:
        """Write a packet into the TUN, as if it had been decrypted."""
        self._say({"inject": packet.hex()})

    def transmit(
        self,
        local: str,
        remote: str,
        port: int,
        sizes: Sequence[int],
        *,
        segment: int = 0,
        tos: int = 0,
        df: bool = True,
    ) -> None:
        """Send datagrams of these sizes from the own socket of *port* (0: raw ESP)."""
        self._say({"send": [local, remote, port, list(sizes), segment, tos, df]})

    def transmit_whole(self, local: str, remote: str, *packets: bytes) -> None:
        """Send whole IP packets from the own sockets."""
        self._say({"whole": [local, remote, [packet.hex() for packet in packets]]})

    def soft(self, local: str, remote: str, seconds: int) -> None:
        """Let two hosts talk in clear for so long, where an entry may; 0 ends that."""
        self._done({"soft": [local, remote, seconds]})

    def stale(self) -> bool:
        """Return whether the table should be replaced, because interfaces came or went."""
        before = len(self.lines)
        self._say({"stale": True})
        wait_for(lambda: any("stale" in line for line in self.lines[before:]), "the host looked")
        return any(line.get("stale") is True for line in self.lines[before:])

    def guard(self) -> None:
        """Replace the table by the same policy's."""
        self._done({"guard": True})

    def _done(self, what: object) -> None:
        before = len(self.lines)
        self._say(what)
        wait_for(lambda: {"done": True} in self.lines[before:], f"{what} is done")

    @property
    def multicast(self) -> list[tuple[str, str]]:
        """Source and destination of the multicast packets that came out of the TUN."""
        found = [_ends(bytes.fromhex(line["packet"])) for line in self.lines if "packet" in line]
        return [ends for ends in found if ip_address(ends[1]).is_multicast]

    def stop(self) -> None:
        """Undo everything in an orderly way."""
        self._say({"stop": True})
        process = self._process
        if process is None or process.wait(15) != 0:
            raise AssertionError("the host did not undo everything")
        self._process = None
        _close(process)

    def kill(self) -> None:
        """Kill the program: guard, TUN and routes stay. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def _say(self, what: object) -> None:
        if self._process is None or self._process.stdin is None:
            raise AssertionError("the host does not run")
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    @staticmethod
    def _follow(process: subprocess.Popen[str], lines: list[dict[str, Any]]) -> None:
        if process.stdout is not None:
            with process.stdout as stream:
                lines.extend(json.loads(line) for line in stream)


def _close(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _ends(packet: bytes) -> tuple[str, str]:
    first, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    ends = [str(ip_address(packet[at : at + size])) for at in (first, first + size)]
    return ends[0], ends[1]


def _tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def _main() -> None:
    policy = json.loads(sys.stdin.readline())
    snapshot = compiled(policy["text"], *policy["addresses"])
    kind = ConnectionType(policy["interfaces"])
    if kind is not ConnectionType.ALL:
        entries = tuple(replace(entry, interfaces=kind) for entry in snapshot.spd.entries)
        snapshot = replace(snapshot, spd=Spd(entries))
    steering = Steering(TUN)
    steering.guard(snapshot)
    tun = Tun(TUN, refused=lambda left: _tell({"refused": str(left)}))
    tun.up(1400)
    warnings = tune(TUN)
    steering.route(snapshot)
    wire = Wire(offload=True, path_mtu=lambda remote, mtu: _tell({"path_mtu": [str(remote.address), mtu]}))
    _tell({"ready": True, "hints": forwarding_hints(snapshot), "warnings": warnings})
    sockets = {sock.fd: sock for sock in wire.sockets.values()}
    while True:
        ready, _, _ = select.select([tun.fd, 0, *sockets], [], [])
        if tun.fd in ready:
            for frame in tun.read(16):
                _tell({"packet": bytes(frame.data[10:]).hex()})
        for fd in ready:
            for item in sockets[fd].receive(16) if fd in sockets else ():
                _tell(
                    {
                        "datagram": {
                            "local": str(item.path.local.address), "remote": str(item.path.remote.address),
                            "port": item.path.local.port, "size": len(item.data),
                            "segment_size": item.segment_size, "tos": item.tos,
                            "protocol": item.protocol, "header": bytes(item.header).hex(),
                        }
                    }
                )  # fmt: skip
        for line in os.read(0, 1 << 20).splitlines() if 0 in ready else ():
            command = json.loads(line)
            if "inject" in command:
                tun.write([(_PLAIN, bytes.fromhex(command["inject"]))])
            if "send" in command:
                _send(wire, *command["send"])
            if "whole" in command:
                local, remote, packets = command["whole"]
                path = Path(Endpoint(ip_address(local), 0), Endpoint(ip_address(remote), 0))
                wire.send(Transmit(path, tuple(map(bytes.fromhex, packets)), whole=True))
            if "soft" in command:
                local, remote, seconds = command["soft"]
                steering.soft(ip_address(local), ip_address(remote), seconds)
                _tell({"done": True})
            if "guard" in command:
                steering.guard(snapshot)
                _tell({"done": True})
            if "stale" in command:
                _tell({"stale": steering.stale()})
            if "stop" in command:
                steering.remove()
                wire.close()
                tun.destroy()
                return


def _send(
    wire: Wire, local: str, remote: str, port: int, sizes: list[int], segment: int, tos: int, df: bool
) -> None:
    path = Path(Endpoint(ip_address(local), port), Endpoint(ip_address(remote), port))
    wire.send(Transmit(path, tuple(_datagram(port, size) for size in sizes), segment, tos, df))


def _datagram(port: int, size: int) -> bytes:
    """Return what the sockets' filters take for IKE on port 500 (RFC 7296 section 3.1), for ESP elsewhere."""
    if port != IKE_PORT:
        return b"\1" * size
    return struct.pack("!QQBBBBII", 1, 0, 33, 0x20, 34, 0x08, 0, size) + bytes(size - 28)


if __name__ == "__main__":
    _main()
