"""The default response rule: what a peer that no ordinary rule names is granted (Windows Server 2003's model).

Only as a responder, only in transport mode, only between the addresses of the IKE SA: the protocol and the ports
that the peer asks for, as an SPD entry of its own that lives as long as its Child SAs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ike.v2.traffic import Narrowed, grant
from policy.selectors import AddressRange, SelectorPair, TrafficSelector
from policy.spd import SpdEntry

if TYPE_CHECKING:
    from ike.v2.sa import IkeSa

#: The rule of dynamic entries, as Windows shows it.
DYNAMIC = "<Dynamic>"


def by_default_response(
    sa: IkeSa, local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]
) -> Narrowed | None:
    """Return what the default response rule grants of the sides that the peer asks for, or None."""
    if sa.peer is None or not sa.peer.responds_only:
        return None
    entry = _between(sa)
    found = None if entry is None else grant([entry], local, remote, transport=True)
    if entry is None or found is None:
        return None
    pair = found.pairs[0]
    text = f"{DYNAMIC}/{sa.path.remote.address}/{pair.local.protocol}/{pair.local.ports}-{pair.remote.ports}"
    dynamic = replace(entry, id=text, selectors=pair, filter=str(pair))
    narrowed = found.narrowed or len(found.pairs) > 1
    return Narrowed(dynamic, (pair.local,), (pair.remote,), (pair,), narrowed)


def _between(sa: IkeSa) -> SpdEntry | None:
    """Return the response rule's entry between the two hosts of *sa*."""
    here, there = sa.path.local.address, sa.path.remote.address
    for entry in sa.core.snapshot.response:
        if entry.selectors.version == here.version and entry.protection is not None:
            pair = SelectorPair(
                TrafficSelector(0, AddressRange.of(here)), TrafficSelector(0, AddressRange.of(there))
            )
            protection = replace(entry.protection, peer=sa.peer_name)
            return replace(entry, selectors=pair, protection=protection, per_host=False)
    return None
