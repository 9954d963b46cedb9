"""A whole Linux kernel with XFRM as one process: Debian's user-mode-linux, inside a test's namespace.

The guest's root is this machine's file system over hostfs, read-only; its shell reads commands from a pipe. It
serves as the oracle for packets and as the kernel under other IKE daemons: the kernel of the machine itself may
have no XFRM at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_MODULES = (
    "drbg jitterentropy_rng hmac md5 sha512_generic chacha_generic poly1305_generic ghash-generic ctr cbc gcm ccm "
    "authenc authencesn chacha20poly1305 seqiv echainiv cmac xcbc esp4 esp6 ah4 ah6 xfrm_user tunnel4 "
    "xfrm4_tunnel dummy"
)
_INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
mkdir -p /run/m/lib/modules; mount --bind /usr/lib/uml/modules /run/m/lib/modules
modprobe -a -d /run/m {_MODULES}
ip link set lo up; ip link set vec0 up
echo guest-$((40 + 2))-ready
export PS1= PS2=; exec /bin/sh
"""
_READY = "guest-42-ready"


class UmlError(RuntimeError):
    """The guest did not boot, died, or did not answer in time."""


class UmlGuest:
    """A guest whose ``vec0`` is the tap device *tap* of the network namespace *netns*.

    ``run`` executes a shell line in the guest and returns its output. Use as a context manager: it boots on
    entry (about five seconds) and is killed on exit.
    """

    def __init__(self, netns: str, tap: str) -> None:
        self._netns = netns
        self._tap = tap
        self._directory = Path(tempfile.mkdtemp(prefix="mirrorgate-uml-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self._directory / "console"
        self._read = 0
        self._commands = 0

    @property
    def directory(self) -> Path:
        """Files for the guest, which sees them under the same path. What it saw once may stay in its cache."""
        return self._directory

    @staticmethod
    def missing() -> str | None:
        """Return what this machine lacks to run a guest, or None."""
        for program, package in (("linux.uml", "user-mode-linux"), ("modprobe", "kmod")):
            if shutil.which(program) is None:
                return f"{program} is missing: apt-get install {package}"
        return None

    def __enter__(self) -> UmlGuest:
        init = self._directory / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        console = self._log.open("wb")
        self._process = subprocess.Popen(
            [
                "ip", "netns", "exec", self._netns,
                "linux.uml", "mem=256M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet",
                f"init={init}", "con=null", "con0=fd:0,fd:1", f"uml_dir={self._directory}", "umid=guest",
                f"vec0:transport=tap,ifname={self._tap},depth=128,gro=1",
            ],
            stdin=subprocess.PIPE, stdout=console, stderr=console, start_new_session=True,
        )  # fmt: skip
        console.close()
        try:
            self._wait(_READY, 60)
        except UmlError:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the guest and remove its files."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # a command that the guest never read
                    process.stdin.close()
            _kill_session(process.pid)
        shutil.rmtree(self._directory, ignore_errors=True)

    def run(self, line: str, timeout: float = 30) -> str:
        """Return the output of a shell line. UmlError when it does not end in *timeout* seconds."""
        process = self._process
        if process is None or process.stdin is None:
            raise UmlError("the guest is not running")
        self._commands += 1
        # The console echoes what it is sent; the arithmetic keeps the echo from looking like the marker.
        process.stdin.write(f"{line}\necho done-$((1000000 + {self._commands}))-$?\n".encode())
        process.stdin.flush()
        marker = f"done-{1000000 + self._commands}-"
        output = self._wait(marker, timeout)
        return output.split("-$?", 1)[-1].lstrip("\r\n")

    def _wait(self, marker: str, timeout: float) -> str:
        """Return what the console says up to *marker*, and read on after its line the next time."""
        deadline = time.monotonic() + timeout
        while True:
            with self._log.open("rb") as console:
                console.seek(self._read)
                octets = console.read()
            position = octets.find(marker.encode())
            end = octets.find(b"\n", position) + 1 if position >= 0 else 0
            if end:
                self._read += end
                return octets[:position].decode(errors="replace").replace("\r\n", "\n")
            if self._process is None or self._process.poll() is not None:
                raise UmlError(f"the guest ended: {octets[-2000:].decode(errors='replace')}")
            if time.monotonic() > deadline:
                raise UmlError(
                    f"no {marker!r} from the guest in {timeout} s: {octets[-2000:].decode(errors='replace')}"
                )
            time.sleep(0.02)


def _kill_session(session: int) -> None:
    """Kill what is left of the guest: its processes are processes of this machine, all in the session it began."""
    for _ in range(50):
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # pid (name) state parent group session ...; the name may hold anything.
                state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(its_session) == session and state not in "ZX":
                    left.append(int(stat.parent.name))
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def receive(sock: socket.socket, kick: socket.socket, guest: str) -> bytes:
    """Return the next packet on *sock*. Now and then a guest sleeps over a packet until another comes.

    Such a one is a NAT keepalive, which nobody answers. TimeoutError when it sleeps for good.
    """
    sock.settimeout(2)
    for _ in range(5):
        try:
            return sock.recv(65536)
        except TimeoutError:
            kick.sendto(b"\xff", (guest, 4500))
    return sock.recv(65536)


def forget(socks: Iterable[socket.socket]) -> None:
    """Drop what is queued."""
    for sock in socks:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.recv(65536)
