"""Names with their time to live: from a name server of the test's own on loopback, and from elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from tunnel.host import names
from tunnel.host.names import MAX_TTL, MIN_TTL, Resolution, hosts_file, resolve

ZONE = {
    ("both.example.", "A"): (120, ["192.0.2.1", "192.0.2.2"]),
    ("both.example.", "AAAA"): (90, ["2001:db8::1"]),
    ("short.example.", "A"): (1, ["192.0.2.3"]),
    ("long.example.", "A"): (999_999, ["192.0.2.4"]),
}


class Server:
    """A name server that knows ZONE and an alias of both.example; ``asked`` is what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, peer = self._socket.recvfrom(4096)
            if not data:
                return
            self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), peer)

    def _answer(self, question: Any) -> Any:
        answer = dns.message.make_response(question)
        name, kind = str(question.question[0].name), question.question[0].rdtype.name
        self.asked.append(name)
        if name == "alias.example.":
            answer.answer.append(dns.rrset.from_text(name, 45, "IN", "CNAME", "both.example."))
            name = "both.example."
        if name == "broken.example.":
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif not any(known == name for known, _ in ZONE):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if (name, kind) in ZONE:
            ttl, addresses = ZONE[name, kind]
            answer.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *addresses))
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], made.port, 2.0
    monkeypatch.setattr(names, "_resolver", lambda: resolver)
    monkeypatch.setattr(socket, "getaddrinfo", library)
    yield made
    made.close()


def library(name: str, *_: object, **__: object) -> list[Any]:
    if name == "mdns.local":
        return [(2, 2, 17, "", ("192.0.2.77", 0)), (10, 2, 17, "", ("fe80::7%eth0", 0, 0, 2))]
    raise socket.gaierror(-2, "Name or service not known")


def resolution(ttl: int, *addresses: str) -> Resolution:
    return Resolution(tuple(ip_address(address) for address in addresses), ttl)


def nobody(path: Path) -> Path:
    return path / "hosts"


def test_both_families_and_the_shorter_time(server: Server, tmp_path: Path) -> None:
    found = resolve(["both.example"], hosts=nobody(tmp_path))
    assert found == {"both.example": resolution(90, "192.0.2.1", "192.0.2.2", "2001:db8::1")}


def test_an_alias_lives_as_long_as_its_shortest_link(server: Server, tmp_path: Path) -> None:
    found = resolve(["alias.example"], hosts=nobody(tmp_path))["alias.example"]
    assert found == resolution(45, "192.0.2.1", "192.0.2.2", "2001:db8::1")


def test_times_are_kept_within_bounds(server: Server, tmp_path: Path) -> None:
    found = resolve(["short.example", "long.example"], hosts=nobody(tmp_path))
    assert found["short.example"] == resolution(MIN_TTL, "192.0.2.3")
    assert found["long.example"] == resolution(MAX_TTL, "192.0.2.4")


def test_the_hosts_file_comes_first(server: Server, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.99 Both.example other # comment\n")
    assert resolve(["both.example."], hosts=hosts)["both.example."].addresses == (ip_address("192.0.2.99"),)
    assert server.asked == []


def test_what_dns_does_not_know_the_library_may(server: Server, tmp_path: Path) -> None:
    found = resolve(["mdns.local", "nobody.example", "broken.example", "a" * 300, ""], hosts=nobody(tmp_path))
    assert found["mdns.local"] == resolution(60, "192.0.2.77", "fe80::7")
    for name in ("nobody.example", "broken.example", "a" * 300, ""):
        assert found[name] == Resolution((), MIN_TTL)


def test_without_a_name_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unconfigured() -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver, "Resolver", unconfigured)
    monkeypatch.setattr(socket, "getaddrinfo", library)
    assert resolve(["mdns.local"], hosts=nobody(tmp_path))["mdns.local"].ttl == 60


def test_hosts_file() -> None:
    text = "127.0.0.1 localhost\n::1\tlocalhost ip6\nnonsense x\n#192.0.2.1 y\n192.0.2.2\n192.0.2.3 A a b.\n"
    assert hosts_file(text) == {
        "localhost": [ip_address("127.0.0.1"), ip_address("::1")],
        "ip6": [ip_address("::1")],
        "a": [ip_address("192.0.2.3")],
        "b": [ip_address("192.0.2.3")],
    }
