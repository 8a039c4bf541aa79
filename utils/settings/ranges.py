"""The ranges that an argument, or an option of a method, may be declared with."""

import re
from collections.abc import Callable
from typing import NamedTuple


class Range(NamedTuple):
    """A test of one value, and what to say that it must be."""

    holds: Callable[[object], bool]
    words: str


ONE_OR_MORE = Range(lambda v: v >= 1, "1 or more")
NOT_NEGATIVE = Range(lambda v: v >= 0, "0 or more")
ABOVE_ZERO = Range(lambda v: v > 0, "above 0")
BELOW_ONE = Range(lambda v: 0 <= v < 1, "at least 0 and below 1")
SHARE = Range(lambda v: 0 <= v <= 1, "between 0 and 1")


def within(low: int, high: int) -> Range:
    return Range(lambda v: low <= v <= high, f"{low} to {high}")


def written(pattern: str, words: str) -> Range:
    """Of text: what matches a regular expression as a whole."""
    return Range(lambda v: re.fullmatch(pattern, v) is not None, words)
