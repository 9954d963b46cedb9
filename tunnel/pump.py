"""The one place that knows the gateway's law: one mutation, then all outputs, then the deadline."""

from __future__ import annotations

from collections.abc import Callable

from policy.clock import Nanos
from tunnel.gateway import Gateway
from tunnel.outputs import Output


def drain(gateway: Gateway, sink: Callable[[Output], None]) -> Nanos | None:
    """Give every output of the last mutation to *sink*; return when ``handle_timeout`` is wanted, or None.

    When *sink* raises, the outputs after the one that it failed on are still there for the next call.
    """
    while (output := gateway.poll()) is not None:
        sink(output)
    return gateway.deadline()
