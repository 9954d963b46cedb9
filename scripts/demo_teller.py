"""How the demo speaks."""

from __future__ import annotations


class Teller:
    """Numbers the steps and indents what programs say."""

    def __init__(self) -> None:
        self._step = 0

    def step(self, text: str) -> None:
        """Say what happens now."""
        self._step += 1
        print(f"{self._step}. {text}", flush=True)

    def detail(self, text: str) -> None:
        """Say what came of it."""
        for line in text.rstrip().splitlines():
            print(f"      {line}".rstrip(), flush=True)
