"""What escapes while a message is taken: octets that are no IKE are the peer's, all else is a bug of ours."""

from __future__ import annotations

import pytest

from ike.errors import IkeError, NoProposalChosen, WireError
from ike.v2.strangers import Strangers
from tests.support.ike_pair import Pair


@pytest.mark.parametrize(
    ("error", "bugs"), [(WireError("?"), 0), (NoProposalChosen("?"), 1), (IkeError("?"), 1), (KeyError("?"), 1)]
)
def test_only_what_is_no_ike_is_the_peers(monkeypatch: pytest.MonkeyPatch, error: Exception, bugs: int) -> None:
    def broken(*_: object) -> None:
        raise error

    pair = Pair(check=False)
    monkeypatch.setattr(Strangers, "receive", broken)
    pair.acquire(pair.a)
    pair.run()
    assert len(pair.b.named("internal_error")) == bugs
    counters = pair.b.endpoint.counters()
    assert counters.get("internal error", 0) == bugs
    assert counters.get("malformed", 0) == 1 - bugs
