"""``mirrorgate capture`` on real tunnels, read by tshark: what was sealed is open to who has the keys."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_process import COMMAND, ROOT, Agent, Directory
from tests.support.host_net import hosts
from tests.support.netns import Sites, sites, wait_for

pytestmark = pytest.mark.e2e

TSHARK = shutil.which("tshark")
RULE = "LAN to LAN"
GCM = ("esp:aes256gcm16", "aes256gcm16-prfsha384-x25519")
CBC = ("esp:aes128-sha256", "aes128-sha256-prfsha256-x25519")


@pytest.fixture(scope="module")
def two() -> Iterator[Sites]:
    if TSHARK is None:
        pytest.skip("tshark is not installed (apt-get install tshark)")
    with sites() as built:
        yield built


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


@contextlib.contextmanager
def agents(built: Sites, directory: Directory, suites: tuple[str, str] = GCM) -> Iterator[tuple[Agent, Agent]]:
    changes = (
        ('"esp:aes256gcm16", "esp:aes128-sha256"', f'"{suites[0]}"'),
        ("aes256gcm16-prfsha384-x25519", suites[1]),
    )
    one, other = (directory.config(name, *changes) for name in ("site-a.toml", "site-b.toml"))
    with Agent(built.gateway_a, one) as first, Agent(built.gateway_b, other) as second:
        yield first, second


def capturing(agent: Agent, file: Path, *words: str) -> subprocess.Popen[str]:
    """Start a capture and wait until it is under way."""
    process = subprocess.Popen(
        [*COMMAND, "capture", str(file), "--control", str(agent.control), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    wait_for(lambda: file.exists() and file.stat().st_size > 0, "the capture began")
    return process


def shown(file: Path, expression: str, *fields: str) -> list[str]:
    """Return the packets that tshark shows for a display filter, opened with the keys beside *file*."""
    words = [word for name in fields for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-r", str(file), "-Y", expression, "-T", "fields", "-E", "separator= ", *words],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "WIRESHARK_CONFIG_DIR": f"{file}.keys"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("suites", [GCM, CBC], ids=["gcm", "cbc"])
def test_tshark_opens_what_was_captured(two: Sites, directory: Directory, suites: tuple[str, str]) -> None:
    file = directory.path / "tunnel.pcapng"
    with agents(two, directory, suites) as (first, _):
        process = capturing(first, file, "--seconds", "3", "--rule", RULE)
        assert two.lan_a.ping("10.2.0.5", count=3).returncode == 0
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "keys of" in first.log()
    inner = shown(file, 'frame.interface_name == "inner" && icmp', "ip.src", "ip.dst")
    assert "10.1.0.5 10.2.0.5" in inner
    assert "10.2.0.5 10.1.0.5" in inner
    opened = shown(file, 'frame.interface_name == "outer" && esp && icmp', "ip.src", "icmp.seq")
    assert len(opened) == len(inner)
    assert any("10.9.0.1,10.1.0.5" in line for line in opened)
    assert any("10.9.0.2,10.2.0.5" in line for line in opened)
    identities = shown(file, "isakmp.exchangetype == 35 && isakmp.id.data.fqdn", "isakmp.id.data.fqdn")
    assert any("gw-a.example" in line for line in identities)
    assert any("gw-b.example" in line for line in identities)
    assert "WIRESHARK_CONFIG_DIR" in said
    for path in (file, *Path(f"{file}.keys").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{file}.keys").stat().st_mode) == 0o700


def test_tshark_opens_raw_esp_before_and_after_rekeys(two: Sites, directory: Directory) -> None:
    file = directory.path / "raw.pcapng"
    raw = ('pfs = "x25519"', 'pfs = "x25519"\nencapsulation = "none"')
    one, other = (directory.config(name, raw) for name in ("site-a.toml", "site-b.toml"))
    with Agent(two.gateway_a, one) as first, Agent(two.gateway_b, other) as second:
        process = capturing(first, file, "--count", "1000", "--seconds", "30")
        for agent, words in ((first, ("rekey",)), (second, ("rekey", "--ike", RULE)), (second, ("rekey",))):
            assert two.lan_a.ping("10.2.0.5").returncode == 0
            before = first.status()
            agent.run(*words)
            wait_for(lambda: _sas(first.status()).isdisjoint(_sas(before)), "keys are new", 10, every=0.3)  # noqa: B023
        assert two.lan_a.ping("10.2.0.5").returncode == 0
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0, said
        first.wait_log(f"are written to {file} (uid 0, pid {process.pid}")
        first.wait_log(f"were written to {file} (uid 0, pid {process.pid}")
    assert len(shown(file, 'frame.interface_name == "outer" && ip.proto == 50 && icmp', "ip.src")) == 8
    # What IKE said in confidence: the identities, and the traffic selectors of each rekey.
    assert len(shown(file, "isakmp.ts.start_ipv4 == 10.1.0.0", "isakmp.messageid")) >= 6
    assert shown(file, "isakmp.exchangetype == 37 && isakmp.typepayload == 42", "isakmp.messageid")


def _sas(status: dict[str, Any]) -> set[object]:
    """Return what a rekey changes: of the IKE SA or of the Child SA, whichever was rekeyed last is enough."""
    ike = [sa["spi_i"] for peer in status["peers"] for sa in peer["ike_sas"]]
    return {(*ike, *(child["child"] for child in status["children"]))}


def test_tshark_opens_transport_mode_over_ipv6(directory: Directory) -> None:
    file = directory.path / "six.pcapng"
    names = ("ipv6-transport-a.toml", "ipv6-transport-b.toml")
    with hosts("one", "other") as pair:
        one, other = (directory.config(name) for name in names)
        with Agent(pair["one"], one) as first, Agent(pair["other"], other):
            process = capturing(first, file, "--seconds", "3")
            assert pair["one"].ping("fd00:9::2", count=2).returncode == 0
            process.communicate(timeout=30)
    opened = shown(file, 'frame.interface_name == "outer" && esp && icmpv6', "ipv6.src")
    assert sorted(set(opened)) == ["fd00:9::1", "fd00:9::2"]
    assert len(opened) == len(shown(file, 'frame.interface_name == "inner" && icmpv6', "ipv6.src")) == 4


def test_a_full_disk_ends_the_capture_with_a_sentence(two: Sites, directory: Directory) -> None:
    file = directory.path / "full.pcapng"
    with agents(two, directory) as (first, _):
        words = ["prlimit", "--fsize=20000", *COMMAND, "capture", str(file), "--control", str(first.control)]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        wait_for(lambda: file.exists() and file.stat().st_size > 0, "the capture began")
        assert two.lan_a.ping("10.2.0.5", "-s", "1000", count=12).returncode == 0
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "mirrorgate: cannot write: File too large; the capture ends" in said
        assert "Traceback" not in said
        first.wait_log("the client went away")


def test_no_key_reaches_the_log_and_the_agent_forgets_the_capture(two: Sites, directory: Directory) -> None:
    file = directory.path / "gone.pcapng"
    with agents(two, directory) as (first, _):
        process = capturing(first, file)
        assert two.lan_a.ping("10.2.0.5", count=2).returncode == 0
        refused = first.run("capture", str(directory.path / "second.pcapng"), check=False)
        assert refused.returncode == 1
        assert "under way already" in refused.stderr
        assert not (directory.path / "second.pcapng").exists()
        time.sleep(0.5)
        process.kill()
        process.communicate(timeout=10)
        first.wait_log("the client went away")
        rows = [row for name in ("esp_sa", "ikev2_decryption_table") for row in
                (Path(f"{file}.keys") / name).read_text().splitlines()]  # fmt: skip
        assert len(rows) == 3
        keys = [word.strip('"').removeprefix("0x") for row in rows for word in row.split(",")]
        long = [key for key in keys if len(key) >= 32]
        assert long
        assert not any(key in first.log() for key in long)
        assert not any(key in first.run("status", "--json").stdout for key in long)
        done = first.run("capture", str(directory.path / "third.pcapng"), "--seconds", "0.5")
        assert "packets in" in done.stdout


def test_files_are_made_and_never_followed(two: Sites, directory: Directory) -> None:
    with agents(two, directory) as (first, _):
        target, link = directory.path / "target", directory.path / "link.pcapng"
        link.symlink_to(target)
        for path in (link, first.config):
            done = first.run("capture", str(path), "--seconds", "1", check=False)
            assert done.returncode == 1
            assert "cannot be made" in done.stderr
            assert not Path(f"{path}.keys").exists(), "what cannot be captured leaves nothing"
        keys = directory.path / "kept.pcapng.keys"
        keys.mkdir()
        assert (
            "kept.pcapng.keys cannot be made: File exists"
            in first.run("capture", str(directory.path / "kept.pcapng"), check=False).stderr
        )
        assert not (directory.path / "kept.pcapng").exists()
        assert not target.exists()
        done = first.run("capture", str(directory.path / "x.pcapng"), "--rule", "LAN to LAM", check=False)
        assert (done.returncode, 'rule "LAN to LAM"' in done.stderr) == (1, True)
        done = first.run("capture", str(directory.path / "x.pcapng"), "--seconds", "1e9", check=False)
        assert (done.returncode, "seconds is not" in done.stderr) == (1, True)
        assert not (directory.path / "x.pcapng").exists()
