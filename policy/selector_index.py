"""First match among many selector pairs, by tuple space search.

Pairs are grouped by shape: family, how many leading bits their source and destination prefixes fix, and whether
they name a protocol. Within a shape one hash look-up finds the pairs that can match, so a look-up costs a step for
each shape in use, and real policies have few shapes, instead of one for each pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from policy.selectors import AddressRange, Flow, SelectorPair

#: (version, bits shifted off the source, bits shifted off the destination, whether the protocol is named)
_Shape: TypeAlias = tuple[int, int, int, bool]
_Bucket: TypeAlias = list[tuple[int, SelectorPair]]


class SelectorIndex:
    """Selector pairs with their rank, read as packets that leave: the local side is the source."""

    def __init__(self, pairs: Iterable[tuple[int, SelectorPair]]) -> None:
        """Index *pairs*, given in rising order of rank."""
        shapes: dict[_Shape, dict[tuple[int, int, int], _Bucket]] = {}
        for rank, pair in pairs:
            source, destination = _loose_bits(pair.local.addresses), _loose_bits(pair.remote.addresses)
            shape = (pair.version, source, destination, pair.protocol != 0)
            key = (pair.local.addresses.start >> source, pair.remote.addresses.start >> destination, pair.protocol)
            shapes.setdefault(shape, {}).setdefault(key, []).append((rank, pair))
        # In rising order of the best rank in each shape: a look-up ends at the first shape that cannot win.
        self._shapes = sorted(
            ((next(iter(buckets.values()))[0][0], shape, buckets) for shape, buckets in shapes.items()),
            key=lambda item: item[0],
        )

    def first(self, flow: Flow) -> int | None:
        """Return the lowest rank whose pair matches a packet of *flow*, or None."""
        best: int | None = None
        for least, (version, source, destination, named), buckets in self._shapes:
            if best is not None and least > best:
                break
            if version != flow.version:
                continue
            key = (flow.source >> source, flow.destination >> destination, flow.protocol if named else 0)
            for rank, pair in buckets.get(key, ()):
                if best is not None and rank > best:
                    break
                if pair.matches_outbound(flow):
                    best = rank
                    break
        return best


def _loose_bits(addresses: AddressRange) -> int:
    """Return how many low bits differ inside the smallest prefix around *addresses*."""
    return (addresses.start ^ addresses.end).bit_length()
