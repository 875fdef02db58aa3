"""What two versions would do in service, side by side: manifests in, rows for a report and sentences out.

What is expected a day was worked out when each version was calibrated, on its own held-out pictures (`operating`) and
for the shares of uploads it was fitted for; where those are not the same, each row says so. Rules only: reads no file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from worker.model.manifest import ManifestDraft

ROWS: Final[Sequence[tuple[str, tuple[str, ...], int, bool]]] = (
    ("bans a day", ("bans_per_day", "all"), 0, True),
    ("false bans a day", ("bans_per_day", "not_risked"), 0, True),
    ("reviews a day", ("reviews_per_day", "all"), 0, True),
    ("precision of bans in service", ("ban_precision", "value"), 3, True),
    ("risked banned or seen", ("recall_of_bans_and_reviews", "value"), 3, False),
)
"""What it is called, where it stands in `metrics.operating`, the decimals shown of it, and whether it depends on which
shares of uploads it is reckoned for."""


def comparison(now: ManifestDraft, before: ManifestDraft) -> list[dict[str, Any]]:
    """Rows of (name, before, now, digits): thresholds, then what is expected of them, as far as either has it."""
    rows: list[dict[str, Any]] = [
        {"name": "ban threshold", "before": before.ban_threshold, "now": now.ban_threshold, "digits": 3},
        {"name": "review threshold", "before": before.review_threshold, "now": now.review_threshold, "digits": 3},
    ]
    after, standing = (draft.metrics.get("operating", {}) for draft in (now, before))
    mark = _mark(after, standing)
    for name, path, digits, reckoned in ROWS:
        told = name + mark * reckoned
        rows.append({"name": told, "before": at(standing, path), "now": at(after, path), "digits": digits})
    return [row for row in rows if (row["before"], row["now"]) != (None, None)]


def sentence(row: Mapping[str, Any]) -> str:
    """A row in words."""
    before, now = ("none" if row[k] is None else f"{row[k]:,.{row['digits']}f}" for k in ("before", "now"))
    return f"{row['name']}: {now}, the champion {before}"


def at(document: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number that stands at `path`; None where there is none."""
    found: Any = document
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def _mark(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    told = []
    for path, what in ((("uploads_per_day",), "uploads"), (("prevalence", "risked"), "risked")):
        pair = at(before, path), at(now, path)
        if None not in pair and f"{pair[0]:.4g}" != f"{pair[1]:.4g}":
            told.append(f"{pair[0]:,.4g} and {pair[1]:,.4g} {what}")
    return f" ({', '.join(told)})" if told else ""
