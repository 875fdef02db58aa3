"""Everything that can go wrong, named by who must act. Knows nothing else of the project.

ModerationError
├── ContentError        this picture: it becomes an undecided verdict, `reason` says which
├── UnavailableError    a service is away: try again
│   ├── IntakeFullError the intake has no room: try again when some of it is judged
│   └── WaitedError     not every verdict came in time; those that did are in `found`
├── WeightsError        a version or the store cannot be trusted: refused, what is in service stays
└── UsageError          the caller: a wrong argument, ID, or setting

Every message is one sentence that says what to do. Foreign exceptions are translated into these where
they enter: Redis in `bus`, Pillow in `model.reading`, fsspec in `content`, files in `model.files`.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

UndecidedReason = Literal[
    "not_found",
    "fetch_failed",
    "too_large",
    "unsupported_format",
    "unreadable",
    "decode_timeout",
    "decoder_crashed",
    "model_failed",
]
UNDECIDED_REASONS: Final[tuple[str, ...]] = get_args(UndecidedReason)


class ModerationError(Exception):
    """Base of all errors that this project raises on purpose."""


class ContentError(ModerationError):
    """This one picture cannot be judged; `reason` is what its undecided verdict will name."""

    def __init__(self, reason: UndecidedReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: UndecidedReason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ContentError"], tuple[UndecidedReason, str]]:
        # Crosses the decoder's process boundary; the default would rebuild it from the message alone.
        return (type(self), (self.reason, self.detail))


class UnavailableError(ModerationError):
    """A service this depends on is away or too slow; the same call may succeed later."""


class IntakeFullError(UnavailableError):
    """Too many content IDs wait already; `enqueued` of those submitted were taken before it was full."""

    def __init__(self, message: str, enqueued: int) -> None:
        super().__init__(message)
        self.enqueued = enqueued


class WaitedError(UnavailableError):
    """Some content IDs have no verdict yet; `found` has the others' by ID."""

    def __init__(self, message: str, found: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.found = found


class WeightsError(ModerationError):
    """A weights version, or the store itself, is missing, damaged, or not what it says it is."""


class UsageError(ModerationError):
    """The caller asked for something that cannot be done; the message says what to ask instead."""
