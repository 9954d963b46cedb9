"""Settings of the IKE endpoint that no policy names, with the reasons for their values."""

from __future__ import annotations

from dataclasses import dataclass

from policy.clock import MILLISECOND, SECOND, Nanos


@dataclass(frozen=True, slots=True)
class Backoff:
    """When a request is sent again: after *first*, then twice as long up to *cap*; it fails at *total*."""

    first: Nanos
    cap: Nanos
    total: Nanos

    def delay(self, sent: int) -> Nanos:
        """Return how long to wait after the request went out *sent* times."""
        return min(self.first << min(sent - 1, 16), self.cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSettings:
    """Bounds and times of the endpoint."""

    #: Requests that set an IKE SA up: seldom enough not to flood, often enough that a peer which restarts is
    #: reached within two seconds, and that at 30 % loss a tunnel is up within 15 s.
    dial: Backoff = Backoff(500 * MILLISECOND, 2 * SECOND, 30 * SECOND)
    #: All other requests (RFC 7296 section 2.1): 0.5, 1, 2, 4, 8 ... s.
    request: Backoff = Backoff(500 * MILLISECOND, 8 * SECOND, 30 * SECOND)
    #: Requests that take leave: the SA is gone for us already, so there is little to wait for.
    farewell: Backoff = Backoff(500 * MILLISECOND, 4 * SECOND, 8 * SECOND)
    #: IKE_SA_INIT requests a second, repetitions among them, and how many may go at once; with each peer that
    #: answers at once so many more a second, up to a limit that a core can hardly reach.
    dial_rate: int = 50
    dial_burst: int = 16
    dial_speed_up: int = 4
    dial_rate_limit: int = 1000
    #: Deadlines that are dealt with, and peers that are dialled, before packets have their turn again: about 5 ms.
    work_a_turn: int = 16
    #: An error answer to IKE_SA_INIT is not authenticated, so it ends an attempt only after this long without
    #: a proper answer.
    refusal_grace: Nanos = 2 * SECOND
    #: A peer that has not answered at all by then speaks no IKE, as far as ``fallback_clear`` cares.
    fallback_after: Nanos = 3 * SECOND
    #: A responder waits this long for IKE_AUTH.
    half_open_time: Nanos = 30 * SECOND
    #: Cookies are demanded from this many half-open IKE SAs (section 2.6).
    cookie_threshold: int = 20
    #: And from so many IKE_SA_INIT requests a second, whatever came of them: each costs up to a millisecond.
    cookie_rate: int = 200
    #: And for this long after there were so many: longer than a request is on its way, or waits in a queue.
    cookie_linger: Nanos = 30 * SECOND
    #: Half-open IKE SAs in all, and of one /24 or /48; beyond, IKE_SA_INIT is dropped.
    half_open_limit: int = 2000
    half_open_per_prefix: int = 64
    #: Key exchanges a second for strangers, a third of a core's time; half of them for one prefix. Addresses that
    #: policy names, or where a peer was authenticated, have twice as many for themselves.
    handshake_rate: int = 400
    #: The secret of cookies changes this often; the one before it stays valid as long.
    cookie_lifetime: Nanos = 60 * SECOND
    #: Hosts that are dialled at once because packets to them came by, not because policy names them: who forges
    #: source addresses makes us answer, and so dial, whom they please.
    hosts_dialled_limit: int = 256
    #: Failures in a row that are remembered, by entry.
    failures_limit: int = 4096
    #: IKE SAs of all kinds, and Child SAs of one IKE SA (NO_ADDITIONAL_SAS beyond).
    sa_limit: int = 20_000
    children_limit: int = 256
    #: Tasks that wait on one IKE SA.
    queue_limit: int = 512
    #: Inbound half of a Child SA that the peer deleted: packets in flight still arrive this long.
    drain: Nanos = 5 * SECOND
    #: The same of one that we replaced: until the peer gets our Delete it still sends there.
    rekey_drain: Nanos = 30 * SECOND
    #: A closed IKE SA repeats its last response this long.
    linger: Nanos = 10 * SECOND
    #: NAT keepalives (RFC 3948 section 4).
    keepalive: Nanos = 20 * SECOND
    #: Retry after TEMPORARY_FAILURE (section 2.25): first wait and number of tries; each wait is twice as long.
    temporary_wait: Nanos = 1 * SECOND
    temporary_tries: int = 6
    #: AcquireFailed.retry_after: first, and largest when the peer refuses again and again; by chance up to a
    #: quarter more, lest all who failed at once come again at once.
    retry_first: Nanos = 1 * SECOND
    retry_cap: Nanos = 60 * SECOND
    #: Hints that nobody authenticated (unknown SPI, INVALID_SPI) lead to at most one probe or dial in this time.
    hint_interval: Nanos = 5 * SECOND
    #: Identical events are told once in this time.
    event_interval: Nanos = 10 * SECOND
    #: Errors to strangers a second, and messages of strangers that are parsed though no IKE SA can come of them.
    stranger_replies: int = 50
    #: When both ends dialled at once, the redundant IKE SA goes after this long.
    redundant_after: Nanos = 5 * SECOND
