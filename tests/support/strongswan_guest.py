"""strongSwan on a Linux kernel with XFRM: charon with kernel-netlink in a user-mode-linux guest.

The guest is the host 10.9.0.2 and fd00:9::2 on a bridge, where other namespaces can be hosts too. ESP and AH are
the guest's kernel's, in both modes, raw or in UDP.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.guest_net import GUEST, dropped, linux_host
from tests.support.host_net import Hosts
from tests.support.uml import UmlGuest

_URI = "unix:///run/vici"
_DAEMON = """\
charon-systemd {
  load = random nonce aes sha1 sha2 hmac kdf mgf1 openssl curve25519 chapoly gcm xcbc cmac pem pkcs1 x509 pubkey \
kernel-netlink socket-default updown vici
  install_virtual_ip = no
  retransmit_timeout = 1.0
  retransmit_base = 1.3
  plugins { vici { socket = unix:///run/vici } }
  filelog {
    log {
      path = /run/charon.log
      default = 1
      ike = 2
      cfg = 2
      knl = 1
      flush_line = yes
    }
  }
  journal { default = -1 }
  syslog { daemon { default = -1 } }
}
swanctl { load = random nonce pem pkcs1 x509 pubkey openssl }
"""


@dataclass(frozen=True, slots=True)
class Child:
    """A child of the connection: selectors, algorithms, and what else swanctl.conf says of it."""

    name: str
    local_ts: str
    remote_ts: str
    mode: str = "transport"
    esp: str = ""
    ah: str = ""
    extra: str = ""


def connection(
    secret: str, *children: Child, remote: str = "10.9.0.1", local: str = GUEST, extra: str = ""
) -> str:
    """Return a swanctl.conf with the connection ``host`` between two addresses, which are the identities too."""
    rows = []
    for child in children:
        kind = f"esp_proposals = {child.esp}" if child.esp else f"ah_proposals = {child.ah}"
        rows.append(
            f"{child.name} {{ mode = {child.mode}\n local_ts = {child.local_ts}\n remote_ts = {child.remote_ts}\n"
            f" {kind}\n {child.extra}\n }}"
        )
    return f"""\
connections {{
  host {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes256gcm16-prfsha384-x25519
    local {{ auth = psk
      id = {local} }}
    remote {{ auth = psk
      id = {remote} }}
    children {{
      {" ".join(rows)}
    }}
  }}
}}
secrets {{ ike-host {{ id-1 = {local}
  id-2 = {remote}
  secret = "{secret}" }} }}
"""


class StrongSwanGuest:
    """A charon in *guest*. ``load`` replaces its configuration; nothing of the one before is left."""

    def __init__(self, guest: UmlGuest) -> None:
        self.guest = guest
        self._directory = Path(tempfile.mkdtemp(prefix="mirrorgate-guest-"))
        self._directory.chmod(0o755)
        (self._directory / "strongswan.conf").write_text(_DAEMON)
        self._environment = f"STRONGSWAN_CONF={self._directory}/strongswan.conf SWANCTL_DIR={self._directory}"

    def start(self) -> None:
        """Start charon and wait until it listens."""
        self.guest.run(f"{self._environment} charon-systemd >/run/charon.out 2>&1 &")
        self.guest.run("for i in $(seq 100); do [ -S /run/vici ] && break; sleep 0.1; done", timeout=20)

    def close(self) -> None:
        """Remove its files."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def load(self, conf: str) -> None:
        """Replace the configuration; SAs of the one before go without a word."""
        self.swanctl("--terminate --ike host --force --timeout 1", check=False)
        # A child that is in both is not touched: its trap would be gone with the policies.
        (self._directory / "swanctl.conf").write_text("")
        self.swanctl("--load-conns")
        self.guest.run("ip xfrm state flush; ip xfrm policy flush; : > /run/charon.log")
        (self._directory / "swanctl.conf").write_text(conf)
        said = self.swanctl("--load-all --noprompt")
        if "successfully loaded 1 connections" not in said:
            raise AssertionError(said)

    def swanctl(self, words: str, *, check: bool = True, timeout: float = 30) -> str:
        """Run swanctl in the guest and return what it prints."""
        said = self.guest.run(f"{self._environment} swanctl {words} --uri {_URI} 2>&1; echo code-$?", timeout)
        if check and "code-0" not in said:
            raise AssertionError(f"swanctl {words}: {said}\n{self.log()[-3000:]}")
        return said

    def initiate(self, child: str) -> str:
        """Negotiate *child*."""
        return self.swanctl(f"--initiate --child {child} --timeout 15")

    def child_sas(self) -> int:
        """Return how many Child SAs are installed."""
        return len(re.findall(r": #\d+, reqid \d+, INSTALLED", self.swanctl("--list-sas")))

    def log(self) -> str:
        """Return charon's log."""
        return self.guest.run("cat /run/charon.log")

    def dropped(self) -> dict[str, int]:
        """Return what the guest's kernel dropped, by its own names, zeros left out."""
        return dropped(self.guest)


@contextlib.contextmanager
def guest_host(*names: str) -> Iterator[tuple[Hosts, StrongSwanGuest]]:
    """Hosts *names* (the first is 10.9.0.1, the others from 10.9.0.3 on) and the guest 10.9.0.2 on one bridge."""
    with linux_host(*names) as (built, guest):
        peer = StrongSwanGuest(guest)
        try:
            peer.start()
            yield built, peer
        finally:
            peer.close()
