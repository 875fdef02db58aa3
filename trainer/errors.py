"""What can go wrong in training beyond the worker's own errors, named by who must act. Knows nothing else.

ModerationError (worker.errors)
├── DataError      whoever supplies the pictures: the folders cannot be trained or tested on (exit code 4)
├── CacheError     whoever runs the machine: the feature cache cannot be written or has no room (exit code 4)
├── RefusedError   whoever releases: a version is not shown to be as good as the one in service (exit code 3)
│   └── OvertakenError   nobody: the one in service changed while they were compared
└── LockedError    nobody yet: another run works on the same weights store (exit code 5)
"""

from worker.errors import ModerationError


class DataError(ModerationError):
    """The labelled pictures are not usable as they are; the message says what to change."""


class CacheError(ModerationError):
    """The folder of the feature cache cannot be used; the message says what to mend. What is in it stays valid."""


class RefusedError(ModerationError):
    """The promotion gate says no; the message says what is missing."""


class OvertakenError(RefusedError):
    """Another version came into service while this one was compared with the last; the next attempt compares anew."""


class LockedError(ModerationError):
    """Another run holds the lock of this weights store; the same command may succeed once it has ended."""
