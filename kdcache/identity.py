"""Compare the recorded identity of a file or store with the required one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return "KEY is WANTED, found FOUND" for every wanted key that differs; "" if none does.

    Args:
        found: the recorded values; a missing key counts as None.
        wanted: the required values.
    """
    return "; ".join(
        f"{key} is {value!r}, found {found.get(key)!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    )
