"""The states of an IKE SA and what is legal in each: tables, which the code interprets (RFC 7296 section 1)."""

from __future__ import annotations

from enum import Enum

from ike.constants import ExchangeType


class State(Enum):
    """Where an IKE SA is in its life."""

    INITIATING = "initiating"  # we sent IKE_SA_INIT
    AUTHENTICATING = "authenticating"  # we sent IKE_AUTH
    HALF_OPEN = "half open"  # we answered IKE_SA_INIT and wait for IKE_AUTH
    ESTABLISHED = "established"  # both ends are authenticated
    REKEYED = "rekeyed"  # a successor took the Child SAs over; only a Delete is to come (section 2.18)
    DELETING = "deleting"  # we sent a Delete for the IKE SA, or AUTHENTICATION_FAILED
    CLOSED = "closed"  # nothing is left but the last response, to be repeated


class Direction(Enum):
    """What arrives: a request of the peer, or the response to ours."""

    REQUEST = "request"
    RESPONSE = "response"


_X = ExchangeType

#: Anything that is not here is illegal, and changes nothing.
_LEGAL: frozenset[tuple[State, ExchangeType, Direction]] = frozenset(
    {
        (State.INITIATING, _X.IKE_SA_INIT, Direction.RESPONSE),
        (State.AUTHENTICATING, _X.IKE_AUTH, Direction.RESPONSE),
        (State.HALF_OPEN, _X.IKE_AUTH, Direction.REQUEST),
        (State.ESTABLISHED, _X.CREATE_CHILD_SA, Direction.REQUEST),
        (State.ESTABLISHED, _X.CREATE_CHILD_SA, Direction.RESPONSE),
        (State.ESTABLISHED, _X.INFORMATIONAL, Direction.REQUEST),
        (State.ESTABLISHED, _X.INFORMATIONAL, Direction.RESPONSE),
        # TEMPORARY_FAILURE is the answer to a request that comes too late (section 2.25.2).
        (State.REKEYED, _X.CREATE_CHILD_SA, Direction.REQUEST),
        (State.REKEYED, _X.CREATE_CHILD_SA, Direction.RESPONSE),
        (State.REKEYED, _X.INFORMATIONAL, Direction.REQUEST),
        (State.REKEYED, _X.INFORMATIONAL, Direction.RESPONSE),
        (State.DELETING, _X.CREATE_CHILD_SA, Direction.REQUEST),
        (State.DELETING, _X.INFORMATIONAL, Direction.REQUEST),
        (State.DELETING, _X.INFORMATIONAL, Direction.RESPONSE),
    }
)

#: States in which Child SAs may be there: both ends have verified AUTH.
AUTHENTICATED = (State.ESTABLISHED, State.REKEYED, State.DELETING)

_NEXT: dict[State, tuple[State, ...]] = {
    State.INITIATING: (State.AUTHENTICATING, State.CLOSED),
    State.AUTHENTICATING: (State.ESTABLISHED, State.DELETING, State.CLOSED),
    State.HALF_OPEN: (State.ESTABLISHED, State.CLOSED),
    State.ESTABLISHED: (State.REKEYED, State.DELETING, State.CLOSED),
    State.REKEYED: (State.DELETING, State.CLOSED),
    State.DELETING: (State.CLOSED,),
    State.CLOSED: (),
}


def legal(state: State, exchange: int, direction: Direction) -> bool:
    """Whether a message of *exchange* may be looked at in *state*."""
    return (state, exchange, direction) in _LEGAL


def may_become(state: State, successor: State) -> bool:
    """Whether an IKE SA may go from *state* to *successor*."""
    return successor in _NEXT[state]
