"""Keys of SAs that are gone: no object holds them any more; what freed memory may still hold is counted."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from policy.secret import Secret
from tests.support.sim.scenes import Sites, sites
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.outputs import Terminate

_ROOT = Path(__file__).parents[1]
#: Octets from which on a key is not found by accident.
_LONG = 16


def masked_keys(made: Sites) -> dict[bytes, str]:
    """Return the keys of both gateways by what they are, each octet inverted: looking must not make copies."""
    found: dict[str, Secret] = {}
    for host in (made.a, made.b):
        assert host.gateway is not None
        for ike in host.gateway.ike.export_keys():
            found |= {"SK_ei": ike.sk_ei, "SK_er": ike.sk_er, "SK_ai": ike.sk_ai, "SK_ar": ike.sk_ar}
        assert isinstance(host.gateway.dataplane, ReferenceDataPlane)
        for sa in host.gateway.dataplane.sas():
            found[f"ESP {sa.spi:08x}"] = sa.encryption_key
    return {bytes(o ^ 255 for o in s._octets): name for name, s in found.items() if len(s) >= _LONG}


def holders(masked: dict[bytes, str]) -> dict[str, int]:
    """Return how many octet strings that a live object refers to contain each key."""
    found = dict.fromkeys(masked.values(), 0)
    for each in gc.get_objects():
        for referent in gc.get_referents(each):
            if isinstance(referent, bytes | bytearray) and len(referent) >= _LONG:
                inverted = referent.translate(_INVERTED)
                for key, name in masked.items():
                    found[name] += key in inverted
    return found


_INVERTED = bytes(255 - octet for octet in range(256))


def ciphers() -> list[str]:
    """Return the objects that hold keys where Python cannot overwrite them."""
    return sorted(type(each).__name__ for each in gc.get_objects() if type(each).__name__ in ("Aead", "_Aead"))


def established() -> Sites:
    made = sites(7)
    made.establish()
    return made


def test_nothing_holds_the_keys_of_sas_that_were_terminated() -> None:
    gc.collect()
    others = ciphers()
    made = established()
    masked = masked_keys(made)
    assert len(masked) >= 4
    assert all(count > 0 for count in holders(masked).values()), "the search finds them while they are in use"
    assert len(ciphers()) >= len(others) + 8
    made.a.command(Terminate(None))
    made.world.run(1)  # the IKE SA still lingers, to repeat its last response
    gc.collect()
    ike = {name: count for name, count in holders(masked).items() if name.startswith("SK")}
    assert set(ike.values()) == {0}, ike
    assert [name for name in ciphers() if name == "_Aead"] == [name for name in others if name == "_Aead"]
    made.world.run(60)
    gc.collect()
    assert set(holders(masked).values()) == {0}, holders(masked)
    assert ciphers() == others


_CHILD = """
import gc, sys
from tests.test_forgotten_keys import established, masked_keys
from tunnel.outputs import Terminate
made = established()
print(",".join(key.hex() for key in masked_keys(made)), flush=True)
sys.stdin.readline()
made.a.command(Terminate(None))
made.world.run(60)
gc.collect()
print("forgotten", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read the memory of another process")
def test_what_freed_memory_still_holds() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        keys = [bytes.fromhex(word).translate(_INVERTED) for word in child.stdout.readline().strip().split(",")]
        before = _copies(child.pid, keys)
        print("\n", file=child.stdin, flush=True)
        assert child.stdout.readline() == "forgotten\n"
        after = _copies(child.pid, keys)
        child.kill()
    assert len(keys) >= 4
    assert all(count > 0 for count in before)
    # Octet strings and OpenSSL's key schedules are freed, not overwritten: now and then one stays until its
    # memory is used again. Most must be gone.
    assert sum(after) * 3 <= sum(before), f"{before} copies of the keys before, {after} after"


def _copies(pid: int, keys: list[bytes]) -> list[int]:
    found = [0] * len(keys)
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if area is None or "[v" in line:
                continue
            start, end = int(area[1], 16), int(area[2], 16)
            memory.seek(start)
            data = memory.read(end - start)
            found = [count + data.count(key) for count, key in zip(found, keys, strict=True)]
    return found
