"""Published test vectors: JSON files in tests/vectors, octets as hex."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / "vectors"


def vectors(name: str) -> Any:
    """Return what tests/vectors/NAME.json holds."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
