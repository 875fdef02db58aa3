"""A Redis client between whose commands something else happens, as others' commands do on a busy server."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import redis

from tests.support.worker import Broker


class Meanwhile(redis.Redis):
    """Talks to the real server; what is in a pipeline is not interrupted."""

    _before_scripts: Iterator[Callable[[], object]]
    _after_scans: Iterator[Callable[[], object]]

    @classmethod
    def of(
        cls,
        broker: Broker,
        *,
        before_scripts: Iterable[Callable[[], object]] = (),
        after_scans: Iterable[Callable[[], object]] = (),
    ) -> Self:
        """A client of that server. One thing happens before each script, and after each look into a hash."""
        client = cls.from_url(broker.url)
        client._before_scripts, client._after_scans = iter(before_scripts), iter(after_scans)
        return client

    def evalsha(self, *args: Any, **options: Any) -> Any:
        """As the server answers after what happened."""
        next(self._before_scripts, int)()
        return super().evalsha(*args, **options)

    def hscan(self, *args: Any, **options: Any) -> Any:
        """As the server answers, but that is old by now."""
        reply = super().hscan(*args, **options)
        next(self._after_scans, int)()
        return reply
