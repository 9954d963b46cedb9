"""Defence against strangers: handshakes are bounded in number and rate, cookies keep no state (RFC 7296 2.6).

What a source address proves grows with the message: nothing; that somebody answers there (a cookie); that a peer
was authenticated there. Only a proven address has a budget of its own, for a forged one would spend another's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter

from ike.v2.settings import IkeSettings
from policy.clock import SECOND, Entropy, Nanos
from policy.path import Endpoint, IpAddress

_SECRET = 32
_TAG = 16
#: Requests are counted in slots of this length.
_SLOT = SECOND // 10
#: Prefixes and addresses that are remembered.
_MAX_PREFIXES = 4096
_MAX_PROVEN = 16_384


class HalfOpenTable:
    """Which IKE SAs wait for IKE_AUTH, by the request that made them, counted in all and by source prefix."""

    __slots__ = (
        "_by_number", "_by_request", "_loaded_until", "_prefixes", "_settings", "_slot", "_slot_count",
    )  # fmt: skip

    def __init__(self, settings: IkeSettings) -> None:
        self._settings = settings
        self._by_request: dict[bytes, int] = {}
        self._by_number: dict[int, tuple[bytes, tuple[int, int]]] = {}
        self._prefixes: Counter[tuple[int, int]] = Counter()
        self._loaded_until: Nanos = 0
        self._slot: Nanos = 0
        self._slot_count = 0

    def __len__(self) -> int:
        return len(self._by_number)

    def asked(self, now: Nanos) -> None:
        """Count an IKE_SA_INIT request: many at once take time even if no IKE SA comes of them."""
        if now - self._slot >= _SLOT:
            self._slot, self._slot_count = now, 0
        self._slot_count += 1
        if self._slot_count > self._settings.cookie_rate // 10:
            self._loaded_until = now + self._settings.cookie_linger

    def loaded(self, now: Nanos) -> bool:
        """Whether newcomers must bring a cookie: while there are many, or come fast, and for a while after.

        Who was told to bring one may have repeated the request without it already. If that one made an IKE SA, the
        initiator would sign the request with the cookie (section 2.15), and its AUTH would not verify.
        """
        if len(self) >= self._settings.cookie_threshold:
            self._loaded_until = now + self._settings.cookie_linger
        return now < self._loaded_until

    def room(self, source: Endpoint, *, known: bool) -> bool:
        """Whether one more half-open IKE SA from *source* is within bounds.

        A quarter more room is reserved for addresses that policy names (*known*), so that strangers cannot take
        it all.
        """
        limit, per_prefix = self._settings.half_open_limit, self._settings.half_open_per_prefix
        if known:
            limit, per_prefix = limit + limit // 4, per_prefix + per_prefix // 4
        return len(self) < limit and self._prefixes[prefix_of(source.address)] < per_prefix

    def find(self, source: Endpoint, request: bytes) -> int | None:
        """Return the IKE SA that this very IKE_SA_INIT request made: the request was retransmitted."""
        return self._by_request.get(_request_key(source, request))

    def add(self, source: Endpoint, request: bytes, number: int) -> None:
        """Count an IKE SA in."""
        key, prefix = _request_key(source, request), prefix_of(source.address)
        self._by_request[key] = number
        self._by_number[number] = (key, prefix)
        self._prefixes[prefix] += 1

    def remove(self, number: int) -> None:
        """Count an IKE SA out: it is established or gone. It need not be there."""
        found = self._by_number.pop(number, None)
        if found is None:
            return
        key, prefix = found
        self._by_request.pop(key, None)
        self._prefixes[prefix] -= 1
        if not self._prefixes[prefix]:
            del self._prefixes[prefix]


class CookieJar:
    """Cookie = version of the secret | HMAC(secret, Ni | IPi | port | SPIi), as section 2.6 proposes.

    The secret changes with time; the one before stays valid, so that no retry fails at the change.
    """

    __slots__ = ("_entropy", "_lifetime", "_secrets", "_since", "_version")

    def __init__(self, entropy: Entropy, lifetime: Nanos) -> None:
        self._entropy = entropy
        self._lifetime = lifetime
        self._secrets: dict[int, bytes] = {}
        self._version = 0
        self._since: Nanos | None = None

    def bake(self, source: Endpoint, spi_i: bytes, nonce: bytes, now: Nanos) -> bytes:
        """Return the cookie to demand."""
        self._rotate(now)
        return self._cookie(self._version, source, spi_i, nonce)

    def accepts(self, cookie: bytes, source: Endpoint, spi_i: bytes, nonce: bytes, now: Nanos) -> bool:
        """Whether *cookie* is one of ours for this request; a wrong one is as good as none."""
        self._rotate(now)
        if len(cookie) != 1 + _TAG or cookie[0] not in self._secrets:
            return False
        return hmac.compare_digest(cookie, self._cookie(cookie[0], source, spi_i, nonce))

    def _rotate(self, now: Nanos) -> None:
        if self._since is not None and now - self._since < self._lifetime:
            return
        stale = self._since is None or now - self._since >= 2 * self._lifetime
        previous = {} if stale else {self._version: self._secrets[self._version]}
        self._version = (self._version + 1) % 256
        self._secrets = {**previous, self._version: self._entropy(_SECRET)}
        self._since = now

    def _cookie(self, version: int, source: Endpoint, spi_i: bytes, nonce: bytes) -> bytes:
        data = nonce + source.address.packed + source.port.to_bytes(2, "big") + spi_i
        return bytes([version]) + hmac.digest(self._secrets[version], data, hashlib.sha256)[:_TAG]


class Bucket:
    """A token bucket: *rate* a second, and a quarter of a second's worth at once."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: int, now: Nanos) -> None:
        self._rate = rate
        self._burst = max(rate // 4, 1) * SECOND
        #: Tokens times nanoseconds, so that no fraction is lost.
        self._left = self._burst
        self._at = now

    def take(self, now: Nanos) -> bool:
        """Whether there was one token more."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < SECOND:
            return False
        self._left -= SECOND
        return True


class Handshakes:
    """How many IKE_SA_INIT requests a second get as far as a key exchange, so that data has its time too.

    A prefix has at most half of the strangers' rate. Addresses that policy names, or that a peer was authenticated
    at, have a rate of their own, which no stranger can spend.
    """

    __slots__ = ("_known", "_prefixes", "_proven", "_rate", "_strangers")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._strangers, self._known = Bucket(rate, 0), Bucket(2 * rate, 0)
        self._prefixes: dict[tuple[int, int], Bucket] = {}
        self._proven: dict[IpAddress, None] = {}

    def prove(self, address: IpAddress) -> None:
        """Remember that a peer was authenticated at *address*."""
        self._proven.pop(address, None)
        while len(self._proven) >= _MAX_PROVEN:
            del self._proven[next(iter(self._proven))]
        self._proven[address] = None

    def proven(self, address: IpAddress) -> bool:
        """Whether a peer was authenticated at *address*."""
        return address in self._proven

    def take(self, address: IpAddress, now: Nanos, *, known: bool) -> bool:
        """Whether *address* may cause one more key exchange."""
        if known:
            return self._known.take(now) or self._strangers.take(now)
        prefix = prefix_of(address)
        bucket = self._prefixes.pop(prefix, None) or Bucket(self._rate // 2, now)
        while len(self._prefixes) >= _MAX_PREFIXES:
            del self._prefixes[next(iter(self._prefixes))]
        self._prefixes[prefix] = bucket
        return bucket.take(now) and self._strangers.take(now)


class ReplyBudget:
    """At most so many answers to strangers a second (section 2.21.4)."""

    __slots__ = ("_left", "_limit", "_since")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._since: Nanos = 0

    def take(self, now: Nanos) -> bool:
        """Whether one more answer may go out."""
        if now - self._since >= SECOND:
            self._since, self._left = now, self._limit
        if self._left == 0:
            return False
        self._left -= 1
        return True


def prefix_of(address: IpAddress) -> tuple[int, int]:
    """Return the family and the /24 or /48 that *address* lies in."""
    return (4, int(address) >> 8) if address.version == 4 else (6, int(address) >> 80)


def _request_key(source: Endpoint, request: bytes) -> bytes:
    return hashlib.sha256(source.address.packed + source.port.to_bytes(2, "big") + request).digest()
