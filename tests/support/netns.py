"""Network namespaces for tests: hosts and gateways on one machine, made and removed by the test.

Names are ``mg<pid>-<number>-<role>``; ``sweep`` removes those whose process is gone, with all that runs in them
(``python -m tests.support.netns sweep``).
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "ping": "iputils-ping",
    "tcpdump": "tcpdump",
    "iperf3": "iperf3",
}
_NAME = re.compile(r"mg(\d+)-(\d+)-([a-z0-9-]+)")
_numbers = itertools.count(1)


def missing() -> str | None:
    """Return what this machine lacks to make namespaces and tunnels, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces, a TUN device and nftables"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is missing: apt-get install {package}"
    return None


class Namespace:
    """A network namespace. ``run`` executes a program in it and waits; ``start`` does not wait."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(
        self, *command: str, check: bool = True, timeout: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program. AssertionError with its output when *check* and it fails."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            capture_output=True, text=True, timeout=timeout, check=False,
            **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(
        self, *command: str, log: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program; its output is appended to *log*."""
        output = log.open("ab") if log is not None else subprocess.DEVNULL
        try:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **environment} if environment else None, start_new_session=True,
            )  # fmt: skip
        finally:
            if log is not None:
                output.close()  # type: ignore[union-attr]

    def ip(self, *words: str, check: bool = True) -> str:
        """Run ``ip`` on this namespace and return what it prints."""
        return self.run("ip", *words, check=check).stdout

    def batch(self, lines: Sequence[str]) -> None:
        """Run many ``ip`` commands at once."""
        self.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    def sysctl(self, **values: int | str) -> None:
        """Set kernel settings; a name's ``__`` stands for a dot."""
        self.run("sysctl", "-qw", *(f"{name.replace('__', '.')}={value}" for name, value in values.items()))

    def ping(
        self, target: str, *options: str, count: int = 1, wait: float = 5, interval: float = 0.2
    ) -> subprocess.CompletedProcess[str]:
        """Ping *target*; the return code is 0 when an answer came."""
        return self.run(
            "ping", "-n", "-c", str(count), "-W", str(wait), "-i", str(interval), *options, target,
            check=False, timeout=count * interval + wait + 30,
        )  # fmt: skip

    def pids(self) -> list[int]:
        """Return the processes in this namespace."""
        return _pids(self.name)


class Pinging:
    """A ping that runs for the length of a ``with`` block; ``lost`` is known after."""

    def __init__(self, namespace: Namespace, target: str, *, interval: float = 0.05) -> None:
        self._namespace = namespace
        self._command = ("ping", "-n", "-O", "-i", str(interval), target)
        self._directory = tempfile.TemporaryDirectory(prefix="mirrorgate-ping-")
        self._log = Path(self._directory.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""
        self.sent = 0

    def __enter__(self) -> Pinging:
        self._process = self._namespace.start(*self._command, log=self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(15)
        self._said = self._log.read_text()
        self._directory.cleanup()
        match = re.search(r"(\d+) packets transmitted", self._said)
        if match is None:
            raise AssertionError(f"ping said nothing of its packets: {self._said[-500:]}")
        self.sent = int(match[1])

    @property
    def answered(self) -> set[int]:
        """The numbers of the packets that were answered so far."""
        said = self._said or self._log.read_text()
        return {int(number) for number in re.findall(r"bytes from .*icmp_seq=(\d+)", said)}

    @property
    def lost(self) -> list[int]:
        """The numbers of the packets without an answer, the last aside: it may have been on its way at the end."""
        answered = self.answered
        return [number for number in range(1, self.sent) if number not in answered]


class Network:
    """A set of namespaces that ``close`` removes with everything that runs in them."""

    def __init__(self) -> None:
        self._prefix = f"mg{os.getpid()}-{next(_numbers)}-"
        self._names: list[str] = []
        atexit.register(self.close)

    def namespace(self, role: str, *, forward: bool = False) -> Namespace:
        """Make a namespace whose loopback is up; *forward* makes it a router."""
        name = self._prefix + role
        _ip("netns", "add", name)
        self._names.append(name)
        made = Namespace(name)
        made.ip("link", "set", "lo", "up")
        made.sysctl(
            net__ipv4__ip_forward=int(forward),
            net__ipv6__conf__all__forwarding=int(forward),
            net__ipv4__conf__all__rp_filter=0,
            net__ipv4__conf__default__rp_filter=0,
            net__ipv4__conf__all__send_redirects=0,
            net__ipv4__conf__default__send_redirects=0,
            net__ipv6__conf__default__accept_dad=0,
            net__ipv6__conf__default__accept_ra=0,
        )
        return made

    def link(self, one: tuple[Namespace, str], other: tuple[Namespace, str]) -> None:
        """Join two namespaces by a pair of interfaces with these names, and set them up."""
        (namespace, name), (far, far_name) = one, other
        _ip("link", "add", name, "netns", namespace.name, "type", "veth", "peer", far_name, "netns", far.name)
        namespace.ip("link", "set", name, "up")
        far.ip("link", "set", far_name, "up")

    def close(self) -> None:
        """Remove all. May be called again."""
        atexit.unregister(self.close)
        names, self._names = self._names, []
        for name in names:
            _remove(name)


def sweep() -> list[str]:
    """Remove the namespaces of processes that are gone; return their names."""
    swept = []
    for name in _existing():
        match = _NAME.fullmatch(name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(name)
            swept.append(name)
    return swept


@dataclass(slots=True)
class Sites:
    """Two sites: LAN host, gateway, the internet (one link and a router), gateway, LAN host.

    LANs 10.1.0.0/24 and 10.2.0.0/24, fd00:1::/64 and fd00:2::/64; hosts are .5, gateways .1. The internet is
    10.9.0.0/24 and fd00:9::/64, gateway A .1, B .2, the router .254. The router knows both LANs, so that a packet
    that leaves a gateway in clear does arrive: no leak is hidden by a missing route. Behind a NAT, gateway B has
    192.168.77.2, and the NAT has 10.9.0.2.
    """

    network: Network
    lan_a: Namespace
    gateway_a: Namespace
    internet: Namespace
    gateway_b: Namespace
    lan_b: Namespace
    nat: Namespace | None = None

    def lossy(self, percent: int) -> None:
        """Lose *percent* of the packets on the internet, each way, until ``lossless``."""
        # Not netem: kernels without that module have nftables' random numbers.
        self.lossless()
        chains = "\n".join(
            f"chain {name} {{ type filter hook ingress device {port} priority 0; "
            f"meta protocol {{ ip, ip6 }} numgen random mod 100 < {percent} counter drop; }}"
            for name, port in (("a", "to-a"), ("b", "to-b"))
        )
        self.internet.run("nft", "-f", "-", stdin=f"table netdev loss {{\n{chains}\n}}\n")

    def lossless(self) -> None:
        """Lose no more packets."""
        self.internet.run("nft", "delete", "table", "netdev", "loss", check=False)

    def close(self) -> None:
        """Remove all."""
        self.network.close()


def build_sites(*, nat: bool = False) -> Sites:
    """Make the two sites; with *nat* gateway B stands behind a NAT that masquerades it."""
    network = Network()
    try:
        return _build_sites(network, nat)
    except BaseException:
        network.close()
        raise


@contextlib.contextmanager
def sites(*, nat: bool = False) -> Iterator[Sites]:
    """The two sites for the length of a block."""
    built = build_sites(nat=nat)
    try:
        yield built
    finally:
        built.close()


def wait_for(condition: object, what: str, timeout: float = 10, every: float = 0.05) -> None:
    """Wait until ``condition()`` is true. AssertionError naming *what* when it is not in *timeout* seconds."""
    if not callable(condition):
        raise TypeError("condition must be callable")
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {timeout} s: {what}")
        time.sleep(every)


def _build_sites(network: Network, nat: bool) -> Sites:
    lan_a, lan_b = network.namespace("lan-a"), network.namespace("lan-b")
    gateway_a, gateway_b = network.namespace("gw-a", forward=True), network.namespace("gw-b", forward=True)
    internet = network.namespace("internet", forward=True)
    translator = network.namespace("nat", forward=True) if nat else None
    internet.batch(["link add wan type bridge", "link set wan up"])
    network.link((lan_a, "eth0"), (gateway_a, "lan"))
    network.link((lan_b, "eth0"), (gateway_b, "lan"))
    network.link((gateway_a, "wan"), (internet, "to-a"))
    network.link((translator or gateway_b, "wan"), (internet, "to-b"))
    internet.batch(
        [
            "link set to-a master wan",
            "link set to-b master wan",
            "addr add 10.9.0.254/24 dev wan",
            "addr add fd00:9::fe/64 dev wan nodad",
            "route add 10.1.0.0/24 via 10.9.0.1",
            "route add 10.2.0.0/24 via 10.9.0.2",
            "route add fd00:1::/64 via fd00:9::1",
            "route add fd00:2::/64 via fd00:9::2",
        ]
    )
    _host(lan_a, 1)
    _host(lan_b, 2)
    _gateway(gateway_a, 1, "10.9.0.1/24", "10.9.0.254")
    if translator is None:
        _gateway(gateway_b, 2, "10.9.0.2/24", "10.9.0.254")
    else:
        network.link((gateway_b, "wan"), (translator, "inside"))
        _gateway(gateway_b, 2, "192.168.77.2/24", "192.168.77.1", ipv6=False)
        _translate(translator)
    return Sites(network, lan_a, gateway_a, internet, gateway_b, lan_b, translator)


def _host(host: Namespace, site: int) -> None:
    host.batch(
        [
            f"addr add 10.{site}.0.5/24 dev eth0",
            f"addr add fd00:{site}::5/64 dev eth0 nodad",
            f"route add default via 10.{site}.0.1",
            f"route add default via fd00:{site}::1",
        ]
    )


def _gateway(gateway: Namespace, site: int, address: str, router: str, *, ipv6: bool = True) -> None:
    lines = [
        f"addr add 10.{site}.0.1/24 dev lan",
        f"addr add fd00:{site}::1/64 dev lan nodad",
        f"addr add {address} dev wan",
        f"route add default via {router}",
    ]
    if ipv6:
        lines += [f"addr add fd00:9::{site}/64 dev wan nodad", "route add default via fd00:9::fe"]
    gateway.batch(lines)


def _translate(translator: Namespace) -> None:
    translator.batch(
        [
            "addr add 192.168.77.1/24 dev inside",
            "addr add 10.9.0.2/24 dev wan",
            "route add default via 10.9.0.254",
            "route add 10.2.0.0/24 via 192.168.77.2",
        ]
    )
    translator.run(
        "nft", "-f", "-",
        stdin="table ip nat {\n chain post {\n type nat hook postrouting priority 100;\n"
        ' oifname "wan" masquerade\n }\n}\n',
    )  # fmt: skip


def _existing() -> list[str]:
    directory = Path("/run/netns")
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def _pids(name: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def _remove(name: str) -> None:
    for _ in range(20):
        pids = _pids(name)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr}")


if __name__ == "__main__":
    if sys.argv[1:] == ["sweep"]:
        for swept_name in sweep():
            print(f"removed {swept_name}, left behind by a process that is gone", file=sys.stderr)
    else:
        sys.exit("usage: python -m tests.support.netns sweep")
