"""The agent as the shipped systemd unit runs it, without systemd: ``python -m tests.support.sandbox run CONFIG``.

A user of its own, the unit's capabilities, its system calls (by seccomp), address families, and no memory that is
writable and executable. What is imported before need not be readable after.
"""

from __future__ import annotations

import ctypes
import encodings.ascii
import encodings.idna
import encodings.unicode_escape
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import tunnel.agent.agent
import tunnel.cli.main
from tunnel.host import privileges

UNIT = Path(__file__).parents[2] / "configs" / "mirrorgate.service"
SOMEBODY = 65534
_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _EAFNOSUPPORT = 1, 97
_KEEP_CAPABILITIES, _SECCOMP, _NO_NEW_PRIVILEGES, _MDWE = 8, 22, 38, 65


def missing() -> str | None:
    """Return what this machine lacks to run the unit's restrictions, or None."""
    if platform.machine() != "x86_64":
        return "the numbers of system calls are those of x86_64"
    if shutil.which("systemd-analyze") is None:
        return "systemd-analyze is missing: apt-get install systemd"
    return None if _HEADER.exists() else f"{_HEADER} is missing: apt-get install linux-libc-dev"


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    """Return the words of each setting of a unit, a list for each time that it is set joined."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def allowed_calls(unit: Path = UNIT) -> set[str]:
    """Return the system calls that the unit allows, by name."""
    allowed: set[str] = set()
    for line in settings(unit)["SystemCallFilter"]:
        names = {name for word in line.lstrip("~").split() for name in _calls(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    said = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True
    ).stdout
    listed = [line.strip() for line in said.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {name for each in listed for name in _calls(each)}


def filter_program(unit: Path = UNIT) -> bytes:
    """Return the seccomp program of the unit."""
    numbers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", _HEADER.read_text())}
    # systemd allows these whatever the filter says: a process could not be started nor end without them.
    names = allowed_calls(unit) | {"execve", "exit", "exit_group", "rt_sigreturn", "brk", "mmap", "munmap"}
    families = [getattr(socket, word) for word in settings(unit)["RestrictAddressFamilies"][0].split()]
    code = [
        _step(_LOAD, 4),
        _step(_EQUAL, _AUDIT_ARCH_X86_64, 1, 0),
        _step(_RETURN, _ERRNO | _EPERM),
        _step(_LOAD, 0),
    ]
    code += [_step(_EQUAL, numbers["socket"], 0, len(families) * 2 + 2), _step(_LOAD, 16)]
    for family in families:
        code += [_step(_EQUAL, family, 0, 1), _step(_RETURN, _ALLOW)]
    code += [_step(_RETURN, _ERRNO | _EAFNOSUPPORT)]
    for name in sorted(names & numbers.keys()):
        code += [_step(_EQUAL, numbers[name], 0, 1), _step(_RETURN, _ALLOW)]
    return b"".join([*code, _step(_RETURN, _ERRNO | _EPERM)])


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def enter() -> None:
    """Become what the unit says."""
    program = filter_program()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
    os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
    privileges.drop(privileges.NEEDED)
    os.umask(0o077)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.prctl(_MDWE, 1, 0, 0, 0)  # kernels before 6.3 have no such thing
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(_SECCOMP, 2, ctypes.c_char_p(head), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    enter()
    _IMPORTED = (encodings.ascii, encodings.idna, encodings.unicode_escape, tunnel.agent.agent)
    sys.exit(tunnel.cli.main.main(sys.argv[1:]))
