"""Says when a forward pass has taken too long, by a clock that stands still while this process does.

When the batch in work began goes in. Knows no batch, no device, and not what becomes of the process.
"""

import time
from collections.abc import Callable

LOOK_S = 1.0
# Redis may keep whoever looks for one time-out; what comes later than this, the whole process came later.
LATE_S = 10.0


class Watchdog:
    """Looks about once a second, on one thread.

    A container that is paused, or a machine that is saved and restored, is no fault of the device: what lies between
    two looks that should not lie there is not counted.

    Args:
        most_s: how long a forward pass may take.
        clock: seconds, such as `time.monotonic`.
    """

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_s = most_s
        self._clock = clock
        self._looked = clock()
        self._since: float | None = None
        self._forgiven_s = 0.0

    def overdue(self, since: float | None) -> bool:
        """Whether the batch in work, begun at `since` on the same clock (None: there is none), takes too long."""
        now = self._clock()
        gap_s, self._looked = now - self._looked, now
        if since != self._since:
            self._since, self._forgiven_s = since, 0.0
        if since is None:
            return False
        if gap_s > LATE_S:
            self._forgiven_s += min(gap_s, now - since) - LOOK_S
        return now - since - self._forgiven_s > self.most_s
