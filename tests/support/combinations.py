"""Who talks with whom, and how: the three default policies at both ends, and hosts that know no IPsec.

From the published descriptions of Windows Server 2003's default policies: Client (Respond Only) never asks for
security, Server (Request Security) asks and settles for clear with those who do not answer, Secure Server (Require
Security) never sends in clear but accepts what comes in clear, so that a client that only responds can begin.
"""

from __future__ import annotations

from collections.abc import Mapping

RESPOND, REQUEST, REQUIRE, NONE = "respond", "request", "require", "none"
KINDS = (RESPOND, REQUEST, REQUIRE, NONE)
#: The built-in policies by these short names.
POLICIES = {
    RESPOND: "Client (Respond Only)",
    REQUEST: "Server (Request Security)",
    REQUIRE: "Secure Server (Require Security)",
}
CLEAR, PROTECTED, NOTHING = "clear", "protected", "nothing"

#: How two hosts talk once they have tried for a while, by the policies of the one that begins and of the other.
EXPECTED: Mapping[tuple[str, str], str] = {
    (RESPOND, RESPOND): CLEAR,
    (RESPOND, REQUEST): PROTECTED,
    (RESPOND, REQUIRE): PROTECTED,
    (RESPOND, NONE): CLEAR,
    (REQUEST, RESPOND): PROTECTED,
    (REQUEST, REQUEST): PROTECTED,
    (REQUEST, REQUIRE): PROTECTED,
    (REQUEST, NONE): CLEAR,
    (REQUIRE, RESPOND): PROTECTED,
    (REQUIRE, REQUEST): PROTECTED,
    (REQUIRE, REQUIRE): PROTECTED,
    (REQUIRE, NONE): NOTHING,
    (NONE, RESPOND): CLEAR,
    (NONE, REQUEST): CLEAR,
    (NONE, REQUIRE): NOTHING,
    (NONE, NONE): CLEAR,
}


def table(seen: Mapping[tuple[str, str], str]) -> str:
    """Return who talks how as a table: rows begin, columns answer."""
    head = f"{'begins':<10}" + "".join(f"{kind:<12}" for kind in KINDS)
    rows = [
        f"{one:<10}" + "".join(f"{seen.get((one, other), '-'):<12}" for other in KINDS).rstrip() for one in KINDS
    ]
    return "\n".join([head.rstrip(), *rows])
