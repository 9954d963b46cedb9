"""A Linux kernel with XFRM as one of the hosts on a bridge: a user-mode-linux guest beside namespaces."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from tests.support.host_net import SERVER_CODE, Hosts, hosts
from tests.support.netns import wait_for
from tests.support.uml import UmlGuest

GUEST, GUEST6 = "10.9.0.2", "fd00:9::2"


@contextlib.contextmanager
def linux_host(*names: str) -> Iterator[tuple[Hosts, UmlGuest]]:
    """Hosts *names* (the first is 10.9.0.1, the others from 10.9.0.3 on) and the guest 10.9.0.2 on one bridge.

    The guest answers on TCP and UDP ports 80 and 22.
    """
    with hosts(names[0], "absent", *names[1:]) as built:
        built["absent"].ip("link", "del", "eth0")
        built.link.batch(["tuntap add tap0 mode tap", "link set tap0 master wan", "link set tap0 up"])
        with UmlGuest(built.link.name, "tap0") as guest:
            guest.run(f"ip addr add {GUEST}/24 dev vec0; ip addr add {GUEST6}/64 dev vec0 nodad")
            guest.run(f"cat > /run/server.py <<'EOF'\n{SERVER_CODE}\nEOF")
            guest.run(f"{sys.executable} /run/server.py 80 22 >/run/server.out 2>&1 &")
            wait_for(lambda: int(guest.run("ss -Hltn | wc -l")) >= 4, "the guest listens", 20, every=0.1)
            yield built, guest


def dropped(guest: UmlGuest) -> dict[str, int]:
    """Return what XFRM in the guest's kernel dropped, by its own names, zeros left out."""
    rows = (line.split() for line in guest.run("cat /proc/net/xfrm_stat").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit() and int(row[1])}
