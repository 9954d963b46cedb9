"""Programs that are run, the process itself, and the addresses of the host."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tunnel.host import addresses, process, system
from tunnel.host.steering import counters
from tunnel.host.system import HostError, ip_batch, require, run, run_json


@pytest.mark.parametrize(("program", "package"), [("nft", "nftables"), ("ip", "iproute2")])
def test_a_missing_program_is_one_sentence_with_its_package(
    monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(HostError) as caught:
        run([program, "list"])
    assert str(caught.value) == (
        f"the program {program!r} is missing; install the package {package} (Debian: apt-get install {package})"
    )


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(HostError, match=r"'ls /no/such/file' failed: .*No such file"):
        run(["ls", "/no/such/file"])
    with pytest.raises(HostError, match="'false' failed: exit status 1"):
        run(["false"])
    assert require("ls").endswith("/ls")


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_TIMEOUT_S", 0.05)
    with pytest.raises(HostError, match="did not end within"):
        run(["sleep", "5"])


def test_json() -> None:
    assert run_json(["echo", '{"a": 1}']) == {"a": 1}
    assert run_json(["true"]) == []
    with pytest.raises(HostError, match="did not print JSON"):
        run_json(["echo", "{"])


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, Any]] = []
    monkeypatch.setattr(system, "run", lambda arguments, stdin=None: ran.append((arguments, stdin)))
    ip_batch([], version=4)
    ip_batch(["route add a", "route add b"], version=6)
    ip_batch(["rule del x"], version=4, force=True)
    assert ran == [
        (["ip", "-6", "-batch", "-"], "route add a\nroute add b\n"),
        (["ip", "-4", "-force", "-batch", "-"], "rule del x\n"),
    ]

    def fails(*_: object, **__: object) -> None:
        raise HostError("no")

    monkeypatch.setattr(system, "run", fails)
    ip_batch(["rule del x"], version=4, force=True)
    with pytest.raises(HostError):
        ip_batch(["rule del x"], version=4)


def test_counters_without_a_table_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise HostError("no")

    monkeypatch.setattr("tunnel.host.steering.run_json", fails)
    assert counters() == {}


def _link(name: str, *infos: dict[str, Any]) -> dict[str, Any]:
    return {"ifname": name, "addr_info": list(infos)}


def _info(local: str, length: int, **more: object) -> dict[str, Any]:
    return {"local": local, "prefixlen": length, **more}


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [
        _link("lo", _info("127.0.0.1", 8), _info("::1", 128), _info("10.0.0.1", 32)),
        _link("eth0", _info("192.0.2.7", 24), _info("fe80::1", 64), _info("2001:db8::7", 64)),
        _link("eth1", _info("2001:db8:1::7", 64, tentative=True), _info("192.0.2.7", 24)),
        _link("mg0", _info("10.255.0.1", 32)),
        {},
    ]
    monkeypatch.setattr(addresses, "run_json", lambda _: json.loads(json.dumps(links)))
    found = addresses.current("mg0")
    assert found.addresses == tuple(map(ip_address, ("10.0.0.1", "192.0.2.7", "2001:db8::7")))
    assert [str(network) for network in found.networks] == ["10.0.0.1", "192.0.2.0/24", "2001:db8::/64"]


def test_the_watcher_drains_and_closes() -> None:
    watcher = addresses.Watcher()
    watcher.drain()
    watcher.close()
    watcher.drain()  # on a closed socket it ends too


def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(where))
        supervisor.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(where))
        process.notify("READY=1")
        assert supervisor.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        name = f"mirrorgate-test-{os.getpid()}"
        supervisor.bind("\0" + name)
        supervisor.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        process.notify("STOPPING=1")
        assert supervisor.recv(100) == b"STOPPING=1"
    for nowhere in ("", "relative", str(tmp_path / "gone")):
        monkeypatch.setenv("NOTIFY_SOCKET", nowhere)
        process.notify("READY=1")


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    for value, expected in (("", None), ("30000000", 15.0), ("0", None), ("abc", None), ("-5", None)):
        monkeypatch.setenv("WATCHDOG_USEC", value)
        assert process.watchdog_seconds() == expected
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert process.watchdog_seconds() is None


def test_the_process_keeps_its_secrets() -> None:
    program = (
        "import resource,ctypes\nfrom tunnel.host import process\nprocess.harden()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3,0,0,0,0), "
        "ctypes.CDLL(None).prctl(39,0,0,0,0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "(0, 0) 0 1"


def test_the_clock_goes_on() -> None:
    one = process.now()
    assert process.now() >= one > 0
    assert len(process.entropy(16)) == 16
