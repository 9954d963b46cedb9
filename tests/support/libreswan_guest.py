"""Libreswan on a Linux kernel with XFRM: pluto in a user-mode-linux guest.

Debian's packages of Libreswan and strongSwan exclude each other, so that Libreswan is only unpacked, into a
cache of this user (``python -m tests.support.libreswan_guest`` does it ahead of time), and runs from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.guest_net import dropped, linux_host
from tests.support.host_net import Hosts
from tests.support.netns import wait_for
from tests.support.uml import UmlGuest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirrorgate" / "libreswan"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_CONTROL = "--ctlsocket /run/pluto/pluto.ctl"


def unpack() -> Path:
    """Return where Libreswan is unpacked, doing so when it is not. RuntimeError says why it cannot be."""
    if not _CACHE.is_dir():
        for program in ("apt-get", "apt-cache", "dpkg", "dpkg-query"):
            if shutil.which(program) is None:
                raise RuntimeError(f"{program} is missing: Libreswan is unpacked from Debian's package")
        _CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE.parent) as directory:
            here = Path(directory)
            try:
                _download(here)
            except RuntimeError:
                _run(["apt-get", "update"], here)
                _download(here)
            for package in here.glob("*.deb"):
                _run(["dpkg", "-x", str(package), "tree"], here)
            with contextlib.suppress(FileExistsError):  # another run was quicker
                (here / "tree").rename(_CACHE)
    pluto = _CACHE / "usr/libexec/ipsec/pluto"
    done = subprocess.run(
        ["ldd", str(pluto)], capture_output=True, text=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(_CACHE / _LIBRARIES)},
    )  # fmt: skip
    lacking = re.findall(r"(\S+) => not found", done.stdout)
    if done.returncode != 0 or lacking:
        raise RuntimeError(f"Libreswan cannot run here: {', '.join(lacking) or done.stderr.strip()}")
    return _CACHE


def _download(directory: Path) -> None:
    """Fetch the package, and what it depends on directly of libraries and their tools that are not installed."""
    listed = _run(["apt-cache", "depends", "--important", "libreswan"], directory)
    wanted = re.findall(r"Depends: (lib\S+)", listed)
    states = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *wanted],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    installed = {line.split()[0] for line in states.splitlines() if line.split()[1:2] == ["ii"]}
    _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "libreswan",
          *(name for name in wanted if name not in installed)], directory)  # fmt: skip


def _run(command: Sequence[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def connection(name: str, **words: str) -> str:
    """Return a conn of ipsec.conf; an underscore of a word stands for a dash."""
    rows = "\n".join(f"  {word.replace('_', '-')}={value}" for word, value in words.items())
    return f"conn {name}\n{rows}\n"


class LibreswanGuest:
    """A pluto in *guest*. ``load`` replaces its connections; nothing of the ones before is left."""

    def __init__(self, guest: UmlGuest) -> None:
        self.guest = guest
        tree = unpack()
        self._directory = guest.directory
        programs = f"{tree}/usr/libexec/ipsec:{tree}/usr/sbin:{tree}/usr/bin"
        self._tree = tree
        self._environment = f"LD_LIBRARY_PATH={tree}/{_LIBRARIES} PATH={programs}:$PATH"
        self._names: list[str] = []

    def start(self) -> None:
        """Start pluto and wait until it listens."""
        (self._directory / "ipsec.conf").write_text("config setup\n")
        (self._directory / "ipsec.secrets").write_text("")
        self.guest.run(
            f"export {self._environment}; mkdir -p /run/pluto /run/nss;"
            # pluto looks for its own programs there; mounting is what the guest's read-only root allows.
            f"mount --bind {self._tree}/usr/libexec /usr/libexec;"
            "certutil -N -d sql:/run/nss --empty-password;"
            f"pluto --config {self._directory}/ipsec.conf --secretsfile {self._directory}/ipsec.secrets "
            "--nssdir /run/nss --ipsecdir /run/ipsec.d --rundir /run/pluto --stderrlog --nofork --use-xfrm "
            "--no-dnssec >>/run/pluto.log 2>&1 &"
        )
        wait_for(lambda: "interface: " in self.whack("--status", check=False), "pluto listens", 20, every=0.2)

    def load(self, secret: str, **connections: str) -> None:
        """Replace the connections (see ``connection``) by these, and the one secret for all."""
        for name in self._names:
            self.whack(f"--delete --name {name}", check=False)
        self.guest.run("ip xfrm state flush; ip xfrm policy flush; : > /run/pluto.log")
        (self._directory / "ipsec.secrets").write_text(f': PSK "{secret}"\n')
        self.whack("--rereadsecrets")
        conf = self._directory / "connections.conf"
        conf.write_text("config setup\n" + "".join(connections.values()))
        self._names = list(connections)
        for name in self._names:
            said = self._call(f"addconn --config {conf} {_CONTROL} {name}")
            if "added IKEv2 connection" not in said:
                raise AssertionError(said)
            if "auto=route" in connections[name]:
                self.whack(f"--route --name {name}")

    def whack(self, words: str, *, check: bool = True, timeout: float = 40) -> str:
        """Tell pluto something and return what it says."""
        said = self._call(f"whack {_CONTROL} {words}", timeout)
        if check and "code-0" not in said:
            raise AssertionError(f"whack {words}: {said}\n{self.log()[-3000:]}")
        return said

    def initiate(self, name: str) -> str:
        """Negotiate connection *name*."""
        return self.whack(f"--initiate --name {name}")

    def child_sas(self) -> int:
        """Return how many Child SAs are established."""
        return len(re.findall(r"^\d+ #\d+: ", self.whack("--trafficstatus"), re.MULTILINE))

    def log(self) -> str:
        """Return pluto's log."""
        return self.guest.run("cat /run/pluto.log")

    def dropped(self) -> dict[str, int]:
        """Return what the guest's kernel dropped, by its own names, zeros left out."""
        return dropped(self.guest)

    def _call(self, words: str, timeout: float = 30) -> str:
        return self.guest.run(f"env {self._environment} {words} 2>&1; echo code-$?", timeout)


@contextlib.contextmanager
def guest_host(*names: str) -> Iterator[tuple[Hosts, LibreswanGuest]]:
    """Hosts *names* (the first is 10.9.0.1, the others from 10.9.0.3 on) and the guest 10.9.0.2 on one bridge."""
    unpack()
    with linux_host(*names) as (built, guest):
        peer = LibreswanGuest(guest)
        peer.start()
        yield built, peer


if __name__ == "__main__":
    print(f"Libreswan is in {unpack()}", file=sys.stderr)
