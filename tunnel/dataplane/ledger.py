"""What a data plane puts out and counts: outputs in order, every drop once, every packet accounted for."""

from __future__ import annotations

from collections import deque

from tunnel.dataplane.contract import (
    Counters,
    DataPlaneOutput,
    DropReason,
    InternalError,
)

#: Innermost places of a trace that are reported.
_TRACE_DEPTH = 8


class Ledger:
    """The outputs not yet polled and the counters, shared by both directions."""

    __slots__ = (
        "control_in", "drops", "errors_out", "esp_out", "inbound_drops", "inbound_in", "inbound_out",
        "outbound_drops", "outbound_in", "outbound_out", "outputs",
    )  # fmt: skip

    def __init__(self) -> None:
        self.outputs: deque[DataPlaneOutput] = deque()
        self.drops: dict[DropReason, int] = dict.fromkeys(DropReason, 0)
        self.outbound_in = self.outbound_out = self.outbound_drops = self.esp_out = self.errors_out = 0
        self.inbound_in = self.inbound_out = self.inbound_drops = self.control_in = 0

    def drop_outbound(self, reason: DropReason, count: int = 1) -> None:
        """Count packets from the TUN that went nowhere."""
        self.drops[reason] += count
        self.outbound_drops += count

    def drop_inbound(self, reason: DropReason, count: int = 1) -> None:
        """Count datagrams from the wire that went nowhere."""
        self.drops[reason] += count
        self.inbound_drops += count

    def internal_error(self, where: str, error: Exception) -> None:
        """Report a bug of ours: kind and places only, never the message, which may quote the packet."""
        places: list[str] = []
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            places.append(f"{code.co_name}:{trace.tb_lineno}")
            trace = trace.tb_next
        self.outputs.append(
            InternalError(where, f"{type(error).__name__} at {' > '.join(places[-_TRACE_DEPTH:])}")
        )

    def counters(self, held: int) -> Counters:
        """Return the packet counts."""
        return Counters(
            outbound_in=self.outbound_in,
            outbound_out=self.outbound_out,
            outbound_drops=self.outbound_drops,
            held=held,
            esp_out=self.esp_out,
            errors_out=self.errors_out,
            inbound_in=self.inbound_in,
            inbound_out=self.inbound_out,
            inbound_drops=self.inbound_drops,
            control_in=self.control_in,
        )
