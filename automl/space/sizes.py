"""Amounts of memory as people write them."""

from __future__ import annotations

import re

GB = 10**9

_UNITS = {"": GB, "g": GB, "gb": GB, "gib": 2**30, "mb": 10**6, "mib": 2**20, "tb": 10**12}


def bytes_of(text: str) -> int:
    """Bytes of `80GB`, `24 GiB` or `40000MB`; a number alone is of GB.

    Raises ValueError, whose message follows the text, if it is no size or below 10 MB.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError("is no size; write 80GB, 24GiB, 40000MB")
    size = int(float(found[1]) * unit)
    if size < GB // 100:
        raise ValueError("is below 10 MB; write 80GB, 24GiB, 40000MB")
    return size


def gigabytes(number: float) -> str:
    """`13.5 GB`, or `35 MB` where it is less than a tenth; of 10^9 and 10^6 bytes."""
    return f"{number / GB:,.1f} GB" if number >= GB / 10 else f"{number / 1e6:,.0f} MB"
