"""The three labels and their order. Knows nothing else; every logit, probability and folder follows it."""

from typing import Final, Literal

LABELS: Final[tuple[Literal["approved"], Literal["not_suitable"], Literal["risked"]]] = (
    "approved",
    "not_suitable",
    "risked",
)
"""Logit order: the sorted class folders of the data set."""

RISKED: Final[int] = 2
"""Index of `risked` in LABELS."""
