"""Every command against an agent of paper: text, JSON, exit status, and each sentence about what is wrong."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.policies import SITE_TO_SITE, changed
from tunnel.cli.main import main
from tunnel.cli.render import columns, duration, octets
from tunnel.host.addresses import HostAddresses
from tunnel.host.system import HostError

CHILD = {
    "child": 3, "rule": "LAN to LAN", "suite": "ESP AES-GCM-16-256", "encapsulation": "udp", "mode": "tunnel",
    "spi_in": "000000aa", "spi_out": "000000bb", "packets_in": 5, "bytes_in": 420, "packets_out": 7,
    "bytes_out": 5 * 1024 * 1024, "rekey_in_s": 3700,
}  # fmt: skip
STATUS: dict[str, Any] = {
    "policy": "P", "generation": 4, "uptime_s": 90061,
    "rules": [
        {"rule": "LAN to LAN", "entries": [
            {"local": "10.1.0.0/24", "remote": "10.2.0.0/24", "disposition": "protect", "state": "up",
             "reason": None},
            {"local": "10.1.0.0/24", "remote": "10.3.0.0/24", "disposition": "protect", "state": "failed",
             "reason": "no answer"},
        ]},
        {"rule": "telnet", "entries": [
            {"local": "any", "remote": "any", "disposition": "discard", "state": "n/a", "reason": None}]},
    ],
    "peers": [
        {"peer": "gw-b", "address": "10.9.0.2", "state": "up", "reason": None, "ike_sas": [
            {"spi_i": "01", "spi_r": "02", "state": "established", "role": "initiator", "nat": "local",
             "path": "p", "suite": "s", "remote_id": "gw-b", "age_s": 5, "rekey_in_s": 60}]},
        {"peer": "gw-c", "address": None, "state": "down", "reason": "no answer", "ike_sas": []},
    ],
    "children": [CHILD], "drops": {"integrity": 2}, "held": 1, "tun_mtu": 1400,
    "ike": {"cookie demanded": 7},
    "guard": {"clear_out": 3, "clear_in": 0}, "errors": {"send": 1, "receive": 0},
}  # fmt: skip
EXPLAINED = {
    "flow": "tcp a -> b", "direction": "outbound", "verdict": "protect", "why": "because", "rule": "R",
    "filter_list": "L", "filter": "1", "filter_action": "A", "where": "f:1:2", "state": "up",
    "sa": {"spi_in": "aa", "spi_out": "bb", "suite": "S", "path": "P"},
    "considered": [{"entry": "e", "rule": "Other", "why_not": "port"}],
}  # fmt: skip


class FakeAgent:
    """Answers on a control socket, in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.raw: bytes | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as stream:
                request = json.loads(stream.readline())
                self.requests.append(request)
                answer = self.answers.get(request["command"], {"policy": "P", "rekeying": [3], "terminated": []})
                refused = isinstance(answer, str)
                said = {"ok": False, "error": answer} if refused else {"ok": True, "result": answer}
                stream.write(json.dumps(said).encode() + b"\n" if self.raw is None else self.raw)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path / "control.sock")
    made.answers = {"status": STATUS, "explain": EXPLAINED}
    yield made
    made.close()


def cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        status = main(words)
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_status(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = cli(capsys, "status", "--control", str(agent.path))
    assert (status, err) == (0, "")
    for words in (
        "Policy  P  (generation 4, up 1d 1h)", "failed: no answer", "block", "gw-b at 10.9.0.2: up",
        "gw-c at any address: down (no answer)", "NAT local", "tunnel in UDP", "5 (420 B)", "7 (5.0 MiB)", "1h 1m",
        "Held    1 packets", "integrity 2", "clear_out 3", "send 1",
    ):  # fmt: skip
        assert words in out
    assert "clear_in" not in out
    status, out, _ = cli(capsys, "status", "--json", "--control", str(agent.path))
    assert json.loads(out) == STATUS


def test_status_without_a_policy(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    bare: dict[str, Any] = {
        "policy": None,
        "generation": 1,
        "rules": [],
        "peers": [],
        "children": [],
        "drops": {},
        "held": 0,
    }
    agent.answers["status"] = {**bare, "tun_mtu": 1400}
    status, out, _ = cli(capsys, "status", "--control", str(agent.path))
    assert status == 0
    assert "none assigned" in out
    assert "Drops   none" in out


@pytest.mark.parametrize(
    ("words", "request_", "text"),
    [
        (
            ("explain", "tcp", "10.1.0.5:4000", "10.2.0.9:443"),
            {
                "command": "explain", "protocol": 6, "source": "10.1.0.5", "destination": "10.2.0.9",
                "source_port": 4000, "destination_port": 443,
            },
            "verdict   protect",
        ),
        (
            ("initiate", "R", "--timeout", "5"),
            {"command": "initiate", "rule": "R", "host": None, "timeout": 5.0}, '"R" is up',
        ),
        (
            ("initiate", "R", "192.0.2.7"),
            {"command": "initiate", "rule": "R", "host": "192.0.2.7", "timeout": 30.0}, '"R" is up with 192.0.2.7',
        ),
        (("rekey",), {"command": "rekey", "target": None, "ike": False}, "rekeying Child SAs 3"),
        (("rekey", "R", "--ike"), {"command": "rekey", "target": "R", "ike": True}, "rekeying IKE SAs of 3"),
        (("terminate", "R"), {"command": "terminate", "target": "R"}, "deleted Child SAs (none was up)"),
        (("reload",), {"command": "reload"}, 'policy "P" is in force'),
        (("assign", "P"), {"command": "assign", "name": "P"}, 'policy "P" is in force'),
        (("unassign",), {"command": "unassign"}, "in force"),
    ],
)  # fmt: skip
def test_commands(
    agent: FakeAgent,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    request_: dict[str, object],
    text: str,
) -> None:
    status, out, err = cli(capsys, *words, "--control", str(agent.path))
    assert (status, err) == (0, "")
    assert text in out
    assert agent.requests == [request_]
    status, out, _ = cli(capsys, *words, "--control", str(agent.path), "--json")
    assert status == 0
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize(
    "words", [("status",), ("initiate", "R"), ("rekey", "R"), ("terminate",), ("reload",), ("assign", "P")]
)
def test_a_refusal_is_one_sentence(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    agent.answers[words[0]] = "that is not possible"
    status, out, err = cli(capsys, *words, "--control", str(agent.path))
    assert (status, out, err) == (1, "", "mirrorgate: that is not possible\n")


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"", "closed the connection without an answer"), (b"{nonsense\n", "answer"), (b"[]\n", "answer")],
)
def test_an_agent_that_answers_nonsense(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], raw: bytes, words: str
) -> None:
    agent.raw = raw
    status, out, err = cli(capsys, "status", "--control", str(agent.path))
    assert (status, out) == (1, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_no_agent_and_a_crashed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "control.sock"
    status, out, err = cli(capsys, "status", "--control", str(path))
    assert (status, out) == (1, "")
    assert err.startswith(f"mirrorgate: no agent is running (there is no {path}); start one with:")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    status, _, err = cli(capsys, "reload", "--control", str(path))
    assert status == 1
    assert "it was killed or crashed. The guard still blocks" in err
    status, _, err = cli(capsys, "status", "--control", "/" + "x" * 200)
    assert status == 1
    assert "cannot be reached: AF_UNIX path too long" in err


def test_a_socket_of_root(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: socket.socket, where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refused)
    status, _, err = cli(capsys, "status", "--control", str(agent.path))
    assert (status, err) == (1, f"mirrorgate: {agent.path} is root's: run this command as root\n")


# Without an agent


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tunnel.host.addresses.current", lambda tun: HostAddresses())
    path = tmp_path / "a.toml"
    path.write_text(SITE_TO_SITE)
    path.chmod(0o600)
    return path


def test_check(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = cli(capsys, "check", str(config))
    assert status == 0
    assert f"{config}: OK" in out
    assert "filters in the order in which they match" in out
    assert "10.1.0.0/24" in out
    assert "negotiate" in out
    status, out, _ = cli(capsys, "check", str(config), "--json")
    (report,) = json.loads(out)
    assert report["ok"] is True
    assert report["assigned"] == "Site A to site B"
    assert report["policies"]["Site A to site B"][0]["rule"] == "LAN to LAN"


def test_check_shows_the_mistakes_of_every_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = config.with_name("bad.toml")
    bad.write_text(changed(SITE_TO_SITE, ('action = "negotiate"', 'action = "negociate"')))
    status, out, err = cli(capsys, "check", str(bad), str(config), str(config.with_name("gone.toml")))
    assert status == 2
    assert f"{config}: OK" in out
    assert [line.split(":", maxsplit=1)[0] for line in err.splitlines()] == [
        str(bad),
        str(config.with_name("gone.toml")),
    ]
    status, out, _ = cli(capsys, "check", "--json", str(bad), str(config))
    assert status == 2
    assert [report["ok"] for report in json.loads(out)] == [False, True]


def test_an_unknown_policy_tells_the_nearest(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(changed(SITE_TO_SITE, ('assigned = "Site A to site B"', 'assigned = "Site A to site Z"')))
    for command in ("check", "run"):
        status, _, err = cli(capsys, command, str(config))
        assert status == 2
        assert '"Site A to site B"' in err


def test_explain_asks_the_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = cli(capsys, "explain", "tcp", "10.1.0.5:1", "10.2.0.5:2", "--config", str(config))
    assert status == 0
    assert "verdict   protect" in out
    assert "LAN to LAN" in out
    status, out, _ = cli(capsys, "explain", "tcp", "10.1.0.5:1", "192.0.2.1:2", "--config", str(config), "--json")
    assert json.loads(out)["verdict"] != "protect"


@pytest.mark.parametrize(
    "words",
    [
        ("tpc", "10.1.0.5:1", "10.2.0.5:2"),
        ("tcp", "10.1.0.555", "10.2.0.5"),
        ("tcp", "10.1.0.5:99999", "10.2.0.5"),
    ],
)
def test_a_flow_that_is_none(config: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    status, out, err = cli(capsys, "explain", *words, "--config", str(config))
    assert (status, out) == (2, "")
    assert err.startswith("mirrorgate: ")
    assert len(err.splitlines()) == 1


def test_a_host_without_ip_is_a_sentence(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(tun: str) -> HostAddresses:
        raise HostError("the program 'ip' is missing")

    monkeypatch.setattr("tunnel.host.addresses.current", missing)
    status, _, err = cli(capsys, "check", str(config))
    assert (status, err) == (1, "mirrorgate: the program 'ip' is missing\n")


def test_usage_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(capsys)[0] == 2
    assert cli(capsys, "frobnicate")[0] == 2
    status, out, _ = cli(capsys, "--help")
    assert status == 0
    assert "examples:" in out
    for command in ("run", "check", "status", "explain", "initiate", "rekey", "terminate", "reload", "assign"):
        assert command in out
        assert cli(capsys, command, "--help")[0] == 0
    assert cli(capsys, "version")[1].startswith("mirrorgate ")
    assert "version" in json.loads(cli(capsys, "version", "--json")[1])


def test_a_closed_pipe_is_no_traceback(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    assert main(["status", "--control", str(agent.path)]) == 1


def test_units() -> None:
    assert [duration(n) for n in (None, 0, 59.9, 3600, 90061, -5)] == ["-", "0s", "59s", "1h", "1d 1h", "0s"]
    assert [octets(n) for n in (0, 1023, 1024, 1536, 2**30, 2**41)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB", "2.0 TiB",
    ]  # fmt: skip
    assert columns(["A", "Bee"], [["long", "x"]]) == ["A     Bee", "long  x"]


def test_the_environment_is_left_alone() -> None:
    assert "MIRRORGATE_CONTROL" not in os.environ
