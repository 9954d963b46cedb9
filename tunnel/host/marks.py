"""Names and numbers that the host shares with the kernel; nothing else on the machine should use them."""

from __future__ import annotations

#: SO_MARK of the agent's own sockets: their packets pass steering and guard.
OWN_MARK = 0x4D67_0001
#: Mark of packets that policy routing leads into the TUN.
STEER_MARK = 0x4D67_0002
#: Mark of packets that came out of the TUN: the reverse-path filter looks up with it, and finds the TUN.
OPENED_MARK = 0x4D67_0003
#: nftables table, family inet.
TABLE = "mirrorgate"
#: The table that guards alone and that nobody else can change, while the agent lives; family inet.
HELD_TABLE = "mirrorgate_guard"
#: Route table whose default route is the TUN, and the rules (by preference) that lead to it.
ROUTE_TABLE = 19815
MARK_RULE = 19815
SELECTOR_RULE = 19816
#: Route table that lets unbound local sockets choose a source inside the local selector, and its rule.
SOURCE_TABLE = 19816
SOURCE_RULE = 19817
#: Own packets never take the rules above.
OWN_RULE = 19814
#: Where opened packets are routed on: the first rule behind ours.
PAST_RULE = 19818
