"""The contenders: Mirrorgate in each of its ways, no VPN at all, and other tunnels of user space."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench_measure import Ends

from tests.support import strongswan
from tests.support.agent_process import Agent, Directory
from tests.support.host_net import hosts
from tests.support.netns import Sites, sites, wait_for

LAN_B = "10.2.0.5"


@dataclass(frozen=True, slots=True)
class Contender:
    """A tunnel by name; ``up`` has it ready for the length of a block."""

    name: str
    up: Callable[[], AbstractContextManager[Ends]]
    programs: tuple[str, ...] = ()
    #: Says what is missing beside programs.
    lacking: Callable[[], str | None] = lambda: None

    def missing(self) -> str | None:
        """Return what this machine lacks for it, or None."""
        for program in self.programs:
            if shutil.which(program) is None:
                return f"{program} is not installed"
        return self.lacking()


def _ends(built: Sites) -> Ends:
    return Ends(built.lan_a, built.lan_b, LAN_B)


@contextlib.contextmanager
def _clear() -> Iterator[Ends]:
    with sites() as built:
        yield _ends(built)


@contextlib.contextmanager
def _clear_hosts() -> Iterator[Ends]:
    with hosts("client", "server") as built:
        yield Ends(built["client"], built["server"], "10.9.0.2")


@contextlib.contextmanager
def _gateways(encapsulation: str) -> Iterator[Ends]:
    with sites() as built, Directory() as directory:
        change = ('action = "negotiate"', f'action = "negotiate"\nencapsulation = "{encapsulation}"')
        configs = [directory.config(name, change) for name in ("site-a.toml", "site-b.toml")]
        with Agent(built.gateway_a, configs[0]), Agent(built.gateway_b, configs[1]):
            yield _ends(built)


@contextlib.contextmanager
def _hosts(method: str) -> Iterator[Ends]:
    with hosts("client", "server") as built, Directory() as directory:
        configs = [
            directory.config(f"{name}.toml", text=_HOST.format(peer=peer, method=method))
            for name, peer in (("client", "10.9.0.2"), ("server", "10.9.0.1"))
        ]
        with Agent(built["client"], configs[0]), Agent(built["server"], configs[1]):
            yield Ends(built["client"], built["server"], "10.9.0.2")


_HOST = """
[agent]
assigned = "P"
[[policy]]
name = "P"
[[policy.rule]]
name = "R"
filter_list = "L"
filter_action = "A"
authentication = [{{ method = "psk", secret_file = "bench.psk" }}]
[[filter_list]]
name = "L"
filter = [{{ source = "me", destination = "{peer}" }}]
[[filter_action]]
name = "A"
action = "negotiate"
methods = ["{method}"]
encapsulation = "none"
"""


@contextlib.contextmanager
def _strongswan() -> Iterator[Ends]:
    secret = secrets.token_hex(16)
    with sites() as built, contextlib.ExitStack() as stack:
        daemons = []
        for gateway, here, there, mine, theirs in (
            (built.gateway_a, "10.9.0.1", "10.9.0.2", "10.1.0.0/24", "10.2.0.0/24"),
            (built.gateway_b, "10.9.0.2", "10.9.0.1", "10.2.0.0/24", "10.1.0.0/24"),
        ):
            conf = strongswan.connection(
                local=here, remote=there, local_id=here, remote_id=there, local_ts=mine, remote_ts=theirs,
                secret=secret,
            )  # fmt: skip
            daemons.append(stack.enter_context(strongswan.StrongSwan(gateway, conf)))
        daemons[0].initiate()
        yield _ends(built)


@contextlib.contextmanager
def _wireguard() -> Iterator[Ends]:
    with sites() as built, contextlib.ExitStack() as stack:
        private = [_said("wg", "genkey"), _said("wg", "genkey")]
        public = [_said("wg", "pubkey", stdin=key) for key in private]
        for index, (gateway, far, lan) in enumerate(
            ((built.gateway_a, "10.9.0.2", "10.2.0.0/24"), (built.gateway_b, "10.9.0.1", "10.1.0.0/24"))
        ):
            name = f"{gateway.name[2:].split('-')[0]}wg{index}"[-15:]
            process = gateway.start(
                "wireguard-go", "-f", name, environment={"WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            wait_for(lambda name=name: Path(f"/var/run/wireguard/{name}.sock").exists(), "wireguard-go is up")
            with tempfile.NamedTemporaryFile("w") as key:
                key.write(private[index])
                key.flush()
                gateway.run(
                    "wg", "set", name, "listen-port", "51820", "private-key", key.name, "peer", public[1 - index],
                    "allowed-ips", lan, "endpoint", f"{far}:51820",
                )  # fmt: skip
            gateway.batch([f"link set {name} mtu 1420 up", f"route replace {lan} dev {name}"])
        yield _ends(built)


@contextlib.contextmanager
def _openvpn() -> Iterator[Ends]:
    with sites() as built, tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        prints = [_certificate(Path(directory), name) for name in ("a", "b")]
        for index, (gateway, name, far, lan) in enumerate(
            ((built.gateway_a, "a", "10.9.0.2", "10.2.0.0"), (built.gateway_b, "b", "10.9.0.1", "10.1.0.0"))
        ):
            process = gateway.start(
                "openvpn", "--dev", "tun", "--proto", "udp", "--remote", far, "1194", "--lport", "1194",
                "--ifconfig", f"10.8.0.{1 + index}", f"10.8.0.{2 - index}", "--route", lan, "255.255.255.0",
                "--tls-server" if index == 0 else "--tls-client", *(["--dh", "none"] if index == 0 else []),
                "--cert", f"{directory}/{name}.crt", "--key", f"{directory}/{name}.key",
                "--peer-fingerprint", prints[1 - index], "--data-ciphers", "AES-256-GCM", "--disable-dco",
                "--sndbuf", "2000000", "--rcvbuf", "2000000", "--txqueuelen", "1000",
                log=Path(directory) / f"{name}.log",
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
        for name in ("a", "b"):
            log = Path(directory) / f"{name}.log"
            wait_for(
                lambda log=log: "Initialization Sequence Completed" in log.read_text(),
                f"OpenVPN is up\n{log.read_text()[-500:]}", 20,
            )  # fmt: skip
        yield _ends(built)


def _certificate(directory: Path, name: str) -> str:
    """Make a certificate of its own, and return its fingerprint."""
    _said(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", "2", "-subj", f"/CN={name}",
        "-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.crt",
    )  # fmt: skip
    said = _said("openssl", "x509", "-in", f"{directory}/{name}.crt", "-noout", "-fingerprint", "-sha256")
    return said.partition("=")[2]


def _said(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout.strip()


CONTENDERS = (
    Contender("no VPN", _clear),
    Contender("Mirrorgate, UDP", lambda: _gateways("udp")),
    Contender("Mirrorgate, raw ESP", lambda: _gateways("none")),
    Contender("strongSwan kernel-libipsec", _strongswan, lacking=strongswan.missing),
    Contender("wireguard-go", _wireguard, ("wireguard-go", "wg")),
    Contender("OpenVPN", _openvpn, ("openvpn", "openssl")),
    Contender("no VPN, host to host", _clear_hosts),
    Contender("Mirrorgate, transport ESP", lambda: _hosts("esp:aes256gcm16")),
    Contender("Mirrorgate, transport AH", lambda: _hosts("ah:sha256")),
)
