"""A few hosts on one network: what host-to-host securing is tried on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.netns import Namespace, Network, wait_for

#: Answers every connection with one line, and every datagram with itself.
SERVER_CODE = """
import socket, sys, threading
def opened(family, kind):
    s = socket.socket(family, kind)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return s
def tcp(family, address, port):
    s = opened(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen(64)
    while True:
        c, _ = s.accept()
        def one(c=c):
            with c:
                try:
                    wanted = int(c.makefile("rb").readline() or 0)
                    c.sendall(b"x" * wanted)
                except (OSError, ValueError):
                    pass
        threading.Thread(target=one, daemon=True).start()
def udp(family, address, port):
    s = opened(family, socket.SOCK_DGRAM)
    s.bind((address, port))
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(data, peer)
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for port in map(int, sys.argv[1:]):
        for work in (tcp, udp):
            def run(work=work, family=family, address=address, port=port):
                work(family, address, port)
            threading.Thread(target=run, daemon=True).start()
threading.Event().wait()
"""
#: Asks for octets over TCP, or sends a datagram and waits for it to come back; prints how many octets came.
CLIENT_CODE = """
import socket, sys
kind, address = sys.argv[1:3]
port, octets, wait = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(wait)
got = 0
if kind == "tcp":
    s.connect((address, port)); s.sendall(b"%d\\n" % octets)
    while chunk := s.recv(65536):
        got += len(chunk)
else:
    s.sendto(b"y" * octets, (address, port)); got = len(s.recv(65536))
print(got)
"""


@dataclass(slots=True)
class Hosts:
    """Hosts 10.9.0.N and fd00:9::N on one bridge, in the namespace ``link``, whose ports are ``to-NAME``."""

    network: Network
    link: Namespace
    hosts: dict[str, Namespace] = field(default_factory=dict)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Namespace:
        return self.hosts[name]

    def serve(self, name: str, *ports: int) -> None:
        """Let *name* answer TCP connections and UDP datagrams on *ports*."""
        host = self.hosts[name]
        self.servers.append(host.start(sys.executable, "-c", SERVER_CODE, *map(str, ports)))
        wait_for(lambda: len(host.run("ss", "-Hltnu").stdout.splitlines()) >= 4 * len(ports), f"{name} listens")


def ask(
    host: Namespace, address: str, port: int, *, octets: int = 1000, kind: str = "tcp", wait: float = 5
) -> bool:
    """Whether *host* gets *octets* from the server at *address* and *port* within *wait* seconds of silence."""
    words = (sys.executable, "-c", CLIENT_CODE, kind, address, str(port), str(octets), str(wait))
    done = host.run(*words, check=False, timeout=wait * 4 + 20)
    return done.returncode == 0 and done.stdout.strip() == str(octets)


@contextlib.contextmanager
def hosts(*names: str, mtu: int = 1500) -> Iterator[Hosts]:
    """Hosts *names*, numbered from 1, for the length of a block."""
    network = Network()
    built: Hosts | None = None
    try:
        link = network.namespace("link")
        link.batch(["link add wan type bridge", "link set wan up"])
        built = Hosts(network, link)
        for number, name in enumerate(names, 1):
            host = built.hosts[name] = network.namespace(name)
            network.link((host, "eth0"), (link, f"to-{name}"))
            link.batch([f"link set to-{name} mtu {mtu} master wan"])
            host.batch(
                [
                    f"link set eth0 mtu {mtu}",
                    f"addr add 10.9.0.{number}/24 dev eth0",
                    f"addr add fd00:9::{number}/64 dev eth0 nodad",
                ]
            )
        yield built
    finally:
        network.close()
        for server in built.servers if built is not None else ():
            server.wait(10)


@contextlib.contextmanager
def narrow_path(mtu: int) -> Iterator[Hosts]:
    """A client 10.9.1.1 and a server 10.9.2.1, two routers between them, and a narrow link between the routers."""
    network = Network()
    built: Hosts | None = None
    try:
        routers = [network.namespace(f"router-{number}", forward=True) for number in (1, 2)]
        built = Hosts(network, routers[0])
        network.link((routers[0], "far"), (routers[1], "far"))
        for number, (name, router) in enumerate(zip(("client", "server"), routers, strict=True), 1):
            other = 3 - number
            host = built.hosts[name] = network.namespace(name)
            network.link((host, "eth0"), (router, f"to-{name}"))
            router.batch(
                [
                    f"link set far mtu {mtu}",
                    f"addr add 10.9.{number}.254/24 dev to-{name}",
                    f"addr add fd00:9:{number}::fe/64 dev to-{name} nodad",
                    f"addr add 10.9.9.{number}/24 dev far",
                    f"addr add fd00:9:9::{number}/64 dev far nodad",
                    f"route add 10.9.{other}.0/24 via 10.9.9.{other}",
                    f"route add fd00:9:{other}::/64 via fd00:9:9::{other}",
                ]
            )
            host.batch(
                [
                    f"addr add 10.9.{number}.1/24 dev eth0",
                    f"addr add fd00:9:{number}::1/64 dev eth0 nodad",
                    f"route add default via 10.9.{number}.254",
                    f"route add default via fd00:9:{number}::fe",
                ]
            )
        yield built
    finally:
        network.close()
        for server in built.servers if built is not None else ():
            server.wait(10)
