"""An upload pipeline that may be killed: pictures go into the content folder, into its notes, and are submitted.

    python -m tests.support.producer URL CONTENT POOL RECORD PREFIX SEED [DIES_AFTER]

By turns through the client and with a bare XADD, until it is killed. With DIES_AFTER it dies by its own hand right
after so many submissions, with nothing done but the note that the server had taken the last one.
"""

import itertools
import os
import random
import signal
import sys
from pathlib import Path

import redis

from tests.chaos.record import Notebook
from worker.client import Moderation


def main() -> None:
    """The life of a producer."""
    url, content, pool, record, prefix, seed, *rest = sys.argv[1:]
    dies_after = int(rest[0]) if rest else 0
    dice = random.Random(int(seed))
    pictures = sorted(Path(pool).iterdir())
    notes = Notebook(Path(record))
    client, raw = Moderation(url), redis.Redis.from_url(url)
    numbers = itertools.count()
    for turn in itertools.count(1):
        # Long ones, so that a kill most often comes in the middle.
        chosen = dice.choices(pictures, k=dice.randint(1, 300))
        ids = [f"{prefix}{next(numbers)}-p{picture.name}" for picture in chosen]
        for content_id, picture in zip(ids, chosen, strict=True):
            os.link(picture, Path(content) / content_id)
        notes.intended(ids)
        if turn % 2:
            client.submit(ids)
        else:
            for content_id in ids:
                raw.xadd("moderation:uploads", {"content_id": content_id})
        notes.acknowledged(ids)
        if turn == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
