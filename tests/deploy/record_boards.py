"""Records the pictures of deploy/grafana/pictures: `python -m tests.deploy.record_boards [MINUTES]`.

The watched deployment of the tests with traffic that changes, so that the boards have something to tell: waves of
uploads, a backlog while the worker stands still, files that are no pictures, a promotion.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.deploy.conftest import LABELS, Watched, running
from tests.support.worker import REPOSITORY


def main() -> None:
    """Runs for some minutes, then draws."""
    seconds = 60 * float(sys.argv[1] if len(sys.argv) > 1 else 5)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as watched:
        started = time.monotonic()
        stood_still = False
        while (gone := time.monotonic() - started) < seconds:
            if not stood_still and gone > seconds / 2:
                stood_still = True
                watched.worker.process.send_signal(signal.SIGSTOP)
                submit(watched, 300)
                time.sleep(12)
                watched.worker.process.send_signal(signal.SIGCONT)
            submit(watched, random.randint(5, 60))
            time.sleep(1)
        command = [sys.executable, "-m", "deploy.grafana.pictures", f"http://127.0.0.1:{watched.prometheus.port}"]
        options = ["--minutes", str(seconds / 60), str(REPOSITORY / "deploy" / "grafana" / "pictures")]
        subprocess.run([*command, *options], cwd=REPOSITORY, check=True)


def submit(watched: Watched, count: int) -> None:
    """So many pictures with the labels' usual shares, a few of them unreadable."""
    place = watched.place
    ids = [place.add(label=random.choice(LABELS)) for _ in range(count)]
    place.client.submit([*ids, *(place.add(b"no picture") for _ in range(random.choice((0, 0, 1, 2))))])


if __name__ == "__main__":
    main()
