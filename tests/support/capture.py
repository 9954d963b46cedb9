"""What crossed a link: tcpdump in a namespace, read back by scapy."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapReader

from tests.support.netns import Namespace, wait_for

LANS = tuple(ip_network(net) for net in ("10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64", "fd00:2::/64"))
ESP = 50


@dataclass(slots=True)
class Crossed:
    """How many packets of which kind crossed. ``clear`` describes those that carried a LAN's address in clear."""

    ike: int = 0
    esp: int = 0
    keepalive: int = 0
    other: int = 0
    clear: tuple[str, ...] = ()


class Capture:
    """Records *interface* of *namespace* for the length of a ``with`` block; read it after, or with ``stop``.

    *expression* says which packets, in tcpdump's words.
    """

    def __init__(self, namespace: Namespace, interface: str = "to-a", expression: str = "") -> None:
        self._namespace = namespace
        self._interface = interface
        self._expression = expression
        self._directory = tempfile.TemporaryDirectory(prefix="mirrorgate-capture-")
        self._file = Path(self._directory.name) / "link.pcap"
        self._log = Path(self._directory.name) / "tcpdump.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._recorded = b""

    def __enter__(self) -> Capture:
        self._process = self._namespace.start(
            "tcpdump", "-i", self._interface, "-n", "-U", "--immediate-mode", "-B", "16384", "-Z", "root",
            "-w", str(self._file), *([self._expression] if self._expression else []),
            log=self._log,
        )  # fmt: skip
        wait_for(lambda: b"listening on" in self._log.read_bytes(), "tcpdump listens")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop recording. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            process.wait(10)
            self._recorded = self._file.read_bytes()
            self._directory.cleanup()

    def packets(self) -> list[Any]:
        """Return the packets, as scapy dissects them."""
        self.stop()
        with PcapReader(io.BytesIO(self._recorded)) as reader:
            return list(reader)

    def crossed(self) -> Crossed:
        """Return what crossed, by kind."""
        found = Crossed()
        clear = []
        for packet in self.packets():
            address = _addresses(packet)
            if address is None or _is_of_the_link(*address):
                continue
            if any(ip_address(end) in net for end in address for net in LANS):
                clear.append(packet.summary())
                continue
            match _kind(packet):
                case "ike":
                    found.ike += 1
                case "esp":
                    found.esp += 1
                case "keepalive":
                    found.keepalive += 1
                case _:
                    found.other += 1
        found.clear = tuple(clear)
        return found


def _addresses(packet: Any) -> tuple[str, str] | None:
    for layer in (IP, IPv6):
        if packet.haslayer(layer):
            return str(packet[layer].src), str(packet[layer].dst)
    return None


def _is_of_the_link(source: str, destination: str) -> bool:
    """Tell whether a packet is the link's own: neighbour and multicast listener discovery of IPv6."""
    return ip_address(source).is_link_local or ip_address(destination).is_multicast


def _kind(packet: Any) -> str:
    network = packet[IP] if packet.haslayer(IP) else packet[IPv6]
    if ESP in (getattr(network, "proto", None), getattr(network, "nh", None)):
        return "esp"
    if not packet.haslayer(UDP):
        return "other"
    udp = packet[UDP]
    ports = {int(udp.sport), int(udp.dport)}
    payload = bytes(udp.payload.original)
    if 500 in ports:
        return "ike"
    if 4500 not in ports:
        return "other"
    if payload == b"\xff":
        return "keepalive"
    return "ike" if payload[:4] == bytes(4) else "esp"
