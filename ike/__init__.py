"""Agreeing on keys: IKEv2 (RFC 7296) without I/O, clock or randomness of its own (pure)."""
