"""``mirrorgate capture``: packets inside and outside the SAs into a pcapng file, and the keys beside it."""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path as FilePath
from typing import Any, BinaryIO

from tunnel import pcapng
from tunnel.agent.capture import INTERFACES
from tunnel.cli.client import AgentError, stream
from tunnel.disclosure import ESP_TABLE, IKE_TABLE

#: What Wireshark has to be told beside the tables.
_PREFERENCES = b"esp.enable_encryption_decode: TRUE\nesp.enable_null_encryption_decode_heuristic: TRUE\n"


def run(options: argparse.Namespace) -> int:
    """Capture until the agent says that it is done, or Ctrl-C."""
    file: FilePath = options.file
    keys = file.with_name(file.name + ".keys")
    request = {
        "rule": options.rule, "seconds": options.seconds, "count": options.count, "to": str(file.absolute()),
    }  # fmt: skip
    with ExitStack() as opened:
        answers = stream(options.control, "capture", request)
        first = next(answers)  # a refusal leaves no files behind
        try:
            keys.mkdir(mode=0o700)
        except OSError as error:
            raise _cannot(error) from error
        try:
            packets = opened.enter_context(_made(file))
        except OSError as error:
            keys.rmdir()  # a second capture to the same file fails above, and leaves the first one's keys alone
            raise _cannot(error) from error
        written, last = 0, first
        try:
            tables = {name: opened.enter_context(_made(keys / name)) for name in (IKE_TABLE, ESP_TABLE)}
            opened.enter_context(_made(keys / "preferences")).write(_PREFERENCES)
            _all(packets, pcapng.opening(INTERFACES))
            enough = _interrupts()
            while True:
                over = "done" in last or enough.is_set()  # after Ctrl-C what passed until then is fetched yet
                written += _write(last, packets, tables)
                if over:
                    break
                last = next(answers)
        except (OSError, AgentError) as error:
            why = f"cannot write: {error.strerror}" if isinstance(error, OSError) else str(error)
            kept = f"{written} packets are in {file}, keys in {keys}: delete both when done"
            raise AgentError(f"{why}; the capture ends, {kept}") from error
        finally:
            answers.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
    report = {
        "file": str(file), "keys": str(keys), "packets": written, "dropped": last.get("dropped", 0),
        "sas": last.get("sas"), "unknown": last.get("unknown", 0),
    }  # fmt: skip
    print(json.dumps(report, indent=2) if options.json else _text(report))
    return 0


def _interrupts() -> threading.Event:
    """Return what the first Ctrl-C sets; the second one interrupts."""
    seen = threading.Event()

    def note(_number: int, _frame: object) -> None:
        seen.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    return seen


def _write(part: dict[str, Any], packets: BinaryIO, tables: dict[str, BinaryIO]) -> int:
    for interface, at, outbound, octets in part["packets"]:
        _all(packets, pcapng.packet(interface, at, base64.b64decode(octets), outbound=outbound))
    for table, row in part["keys"]:
        _all(tables[table], row.encode() + b"\n")
    return len(part["packets"])


def _all(file: BinaryIO, octets: bytes) -> None:
    """Write all of *octets*; without a buffer, what is written once can be read at once."""
    while octets:
        octets = octets[file.write(octets) :]


def _cannot(error: OSError) -> AgentError:
    return AgentError(f"{error.filename} cannot be made: {error.strerror}")


def _made(path: FilePath) -> BinaryIO:
    """Make a file that is not there yet, for its owner alone; a link that somebody laid out is no file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def _text(report: dict[str, Any]) -> str:
    lines = [f"{report['packets']} packets in {report['file']}, keys in {report['keys']}: delete both when done"]
    if report["dropped"]:
        lines.append(f"{report['dropped']} more packets came faster than they could be written")
    if report["unknown"]:
        lines.append(f"{report['unknown']} SAs have algorithms that Wireshark cannot decrypt (or are AH)")
    return "\n".join([*lines, f"  WIRESHARK_CONFIG_DIR={report['keys']} tshark -r {report['file']}"])
