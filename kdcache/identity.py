"""Comparing the recorded identity of a file or store with the one that is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return every wanted key whose value is another in `found`, with both values; "" for none."""
    return "; ".join(
        f"{key} is {value!r}, there {found.get(key)!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    )
