"""The guard that nobody else can flush: an nftables table with an owner, for as long as this process lives.

The kernel (5.12) lets nobody but the netlink socket that made a table with the flag "owner" change it:
``flush ruleset`` of others passes it by. It goes with that socket. ``nft -i``, fed by a pipe, keeps one open; when
this process ends, however it ends, the pipe does, and so ``nft``, and the table.

What to do stands in a file in memory that ``nft`` includes: its line editor reads octet by octet, and remembers.
Whether it was done the kernel says, for the table's comment is a digest of its rules.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress

from tunnel.host.guardwatch import comment
from tunnel.host.marks import HELD_TABLE
from tunnel.host.ruleset import revision
from tunnel.host.system import HostError, require

#: As long as any other call of nft; and the pauses between two looks whether it is done.
_TIMEOUT_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 0.0005, 0.01
#: How long a predecessor's table may take to go: its nft notices that the pipe ended.
_PREDECESSOR_S = 2.0
_FAREWELL_S = 2.0
#: A complaint comes in several pieces.
_COMPLAINT_S = 0.02
#: No home: nft would write what it was told into a file there.
_ENVIRONMENT = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C", "HOME": "/dev/null", "TERM": "dumb"}


class HeldGuard:
    """The table and the ``nft`` that owns it. One thread at a time, except for ``lost``."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._script = -1
        self._revision = ""
        self._why: str | None = None
        self._worked = False
        #: Whether the kernel or nft cannot do it: then this is not tried again.
        self.is_useless = False

    def apply(self, script: str) -> None:
        """Make or replace the table, in one transaction. HostError if it is not done; then what was before stays.

        The same rules again change nothing. After a failure at the very first time the guard is useless.
        """
        wanted = revision(script)
        if wanted == self._revision and self._runs():
            return
        try:
            if not self._runs():
                self._start()
            self._do(script, wanted)
        except (HostError, OSError) as error:
            if not self._worked:
                self.is_useless = True
            if not self._revision:
                self._end(str(error))
            raise HostError(f"a table that others cannot flush is not to be had: {error}") from error
        self._worked, self._revision, self._why = True, wanted, None

    def lost(self) -> str | None:
        """Return why the table is not there though it should be, in a sentence; None if it is, or never was."""
        child = self._child
        if child is not None and child.poll() is not None:
            return f"the nft process that held it ended ({child.returncode})"
        return self._why

    def give_up(self, why: str) -> None:
        """Take the table away because it is out of date; ``lost`` says *why*."""
        self._end(why)

    def close(self) -> None:
        """Take the table away."""
        self._end(None)

    def _runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def _start(self) -> None:
        self._end(self._why)
        until = time.monotonic() + _PREDECESSOR_S
        while comment(HELD_TABLE) is not None:
            if time.monotonic() > until:
                raise HostError(
                    f"there is a table inet {HELD_TABLE} already that is not this agent's; "
                    f"look who made it: nft list table inet {HELD_TABLE}"
                )
            time.sleep(_LONGEST_PAUSE_S)
        self._script = os.memfd_create("mirrorgate-guard")
        self._child = subprocess.Popen(
            [require("nft"), "-i"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=(self._script,),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the agent
        )
        if self._child.stderr is not None:
            os.set_blocking(self._child.stderr.fileno(), False)

    def _do(self, script: str, wanted: str) -> None:
        child = self._child
        if child is None or child.stdin is None:
            raise HostError("nft -i does not run")
        os.ftruncate(self._script, 0)
        with open(os.dup(self._script), "wb") as file:
            file.seek(0)
            file.write(script.encode())
        _said(child)  # of an earlier time
        child.stdin.write(f'include "/proc/self/fd/{self._script}"\n'.encode())
        until, pause = time.monotonic() + _TIMEOUT_S, _FIRST_PAUSE_S
        while True:
            ended = child.poll() is not None
            said = _said(child)  # before the kernel is asked: nft complains after it tried
            if not ended and wanted in (comment(HELD_TABLE) or ""):
                return
            if said or ended:
                time.sleep(_COMPLAINT_S)
                text = " ".join((said + _said(child)).split())[:500]
                raise HostError(f"nft -i says: {text or f'nothing, and ended ({child.returncode})'}")
            if time.monotonic() > until:
                self._end(None)  # nobody knows what it will have done
                raise HostError(f"nft -i did not make the table within {_TIMEOUT_S:g} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _end(self, why: str | None) -> None:
        """End the process, and with it the table."""
        child, self._child, self._revision, self._why = self._child, None, "", why
        if self._script >= 0:
            os.close(self._script)
            self._script = -1
        if child is None:
            return
        for stream in (child.stdin, child.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            child.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _said(child: subprocess.Popen[bytes]) -> str:
    """Return what the process complained of since the last time."""
    found = b""
    while child.stderr is not None and (more := child.stderr.read(4096)):
        found += more
    return found.decode(errors="replace")
