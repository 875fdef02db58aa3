"""The attacks. Each is one blow at a running `Driver`, counted in its tally; none of them checks what came of it."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.driver import INTAKE, Driver
from tests.chaos.resumption import observed
from tests.support.failpoint_app import SAID
from tests.support.processes import decoders_of
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.worker import WorkerProcess

FAILPOINT_APP = "tests.support.failpoint_app"
SIDE_BY_SIDE = 3
POINT_PATIENCE_S = 150.0
# Passed many times a second under load: a worker dies there somewhere in its work, not always at its beginning.
OFTEN = (
    "claimed, not handed on", "handed on, not fetched", "fetched, not decoded", "decoded, not scored",
    "scored, not published", "half of a batch published", "published, the answer not read",
    "published, the answer not heeded",
)  # fmt: skip
# When no fail point was reached for so long, an ordinary worker dies: some points need claims to take over.
IMPATIENT_S = 10.0
LOAD = 20
# Half-open: by then no worker has given up on a connection yet, see SOCKET_TIMEOUT_S, and refreshed its claims.
DEAF_S = 3.0


def sigkill(driver: Driver) -> None:
    """A worker in the middle of work dies at once; another is started in its place."""
    _kill_at_work(driver)
    driver.tally["SIGKILL of a worker at work"] += 1
    driver.start_worker()


def sigterm(driver: Driver) -> None:
    """A worker in the middle of work is asked to end, and does so with exit code 0."""
    victim = driver.one_at_work()
    driver.start_worker()
    assert victim.stop() == 0, victim.log()[-3000:]
    driver.tally["SIGTERM of a worker at work"] += 1


def sigstop(driver: Driver) -> None:
    """A worker stands still until others have taken its work, for longer than the take-over time; then it goes on."""
    victim = _stop_at_work(driver)
    _taken_over(driver, victim)
    victim.process.send_signal(signal.SIGCONT)
    driver.tally["SIGSTOP beyond the take-over, SIGCONT"] += 1


def kill_decoder(driver: Driver) -> None:
    """A decoder process of a worker at work dies."""
    found: list[int] = []

    def there() -> bool:
        found[:] = decoders_of(driver.one_at_work().process.pid)
        return bool(found)

    wait_until(there, "a decoder at work", 60)
    os.kill(driver.dice.choice(found), signal.SIGKILL)
    driver.tally["SIGKILL of a decoder process"] += 1


def kill_producer(driver: Driver) -> None:
    """A producer dies in the middle of submitting."""
    driver.producers.one_lives_and_is_killed()
    driver.tally["SIGKILL of a producer while it submits"] += 1


def producer_dies_after_xadd(driver: Driver) -> None:
    """A producer dies when the server has taken its entries, and before anything else."""
    driver.producers.one_lives_and_is_killed(after_xadd=True)
    driver.tally["killed at: producer, after the XADD"] += 1


def crash_points(driver: Driver, points: Sequence[str]) -> None:
    """One worker after the other dies at its fail point, several side by side, beside the ordinary ones."""
    waiting, running = list(points), list[_Armed]()
    last = time.monotonic()
    while waiting or running:
        while waiting and len(running) < SIDE_BY_SIDE:
            running.append(_Armed(driver, waiting.pop()))
        for armed in list(running):
            if armed.ended():
                running.remove(armed)
                last = time.monotonic()
                if not armed.struck():
                    waiting.append(armed.point)
        if time.monotonic() - last > IMPATIENT_S and all(armed.worker.get("/readyz")[0] == 200 for armed in running):
            sigkill(driver)
            last = time.monotonic()
        threading.Event().wait(0.05)


class _Armed:
    """A worker with a fail point."""

    def __init__(self, driver: Driver, point: str) -> None:
        self.point, self.worker = point, _armed(driver, point)
        self._driver, self._since = driver, time.monotonic()
        self._drains = point.startswith("drain")
        self._told = False

    def ended(self) -> bool:
        """Whether it has; one that is to die while it drains is told to, once it holds claims."""
        if self._drains and not self._told and self._driver.claims().get(self.worker.process.pid, 0) > 0:
            self._told = True
            self.worker.process.terminate()
        if self.worker.process.poll() is None and time.monotonic() - self._since > POINT_PATIENCE_S:
            raise AssertionError(f"the point {self.point!r} was not reached:\n{self.worker.log()[-3000:]}")
        return self.worker.process.poll() is not None

    def struck(self) -> bool:
        """Counts a death at the point; False for a drain that had nothing left to give back, and ended well."""
        if self._drains and self.worker.process.returncode == 0:
            return False
        if self.worker.process.returncode != -signal.SIGKILL or f"{SAID}{self.point}" not in self.worker.log():
            raise AssertionError(f"instead of dying {self.point!r}, it ended otherwise:\n{self.worker.log()[-3000:]}")
        self._driver.orphaned += self._driver.claims().get(self.worker.process.pid, 0)
        self._driver.tally[f"killed at: {self.point}"] += 1
        return True


def stopped_before_publish(driver: Driver) -> None:
    """A worker stands still with its results in hand; they are judged by others; it goes on and must do nothing."""
    worker = _armed(driver, "scored, not published", fail_signal="STOP")
    wait_until(lambda: _state(worker) == "T", "the worker to stop before it publishes", POINT_PATIENCE_S)
    _taken_over(driver, worker)
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: driver.claims().get(worker.process.pid, 0) > 0, "the stopped worker to work again", 60)
    assert worker.stop() == 0, worker.log()[-3000:]
    driver.tally["stopped at: scored, not published; taken over, resumed"] += 1


def restart_broker(driver: Driver, outage_s: float, *, kill: bool, worker_dies: bool = False) -> None:
    """The server goes, by SIGKILL or as asked to, stays away, and comes back with its append-only file."""
    _all_at_work(driver)
    if worker_dies:
        _kill_at_work(driver)
        driver.tally["SIGKILL of a worker at work, then the server goes"] += 1
    (driver.place.broker.kill if kill else driver.place.broker.stop)()
    threading.Event().wait(outage_s)
    started = time.time()
    driver.place.broker.start()
    returned = time.time()  # it answers; while it loads its file it is not back for anybody
    if worker_dies:  # not before: one that finds no server at its start ends at once, and is its supervisor's to start
        driver.start_worker()
    what = f"server {'killed' if kill else 'stopped'}" + (", a worker before it" if worker_dies else "")
    _note_resumption(driver, what, outage_s, returned, returned - started)
    driver.tally["SIGKILL of the server, restart" if kill else "clean stop of the server, restart"] += 1


def cut_connections(driver: Driver) -> None:
    """The server closes every connection."""
    _all_at_work(driver)
    cut = time.time()
    driver.raw.client_kill_filter(_type="normal", skipme=True)
    _note_resumption(driver, "connections closed", 0.0, cut)
    driver.tally["all connections closed by the server"] += 1


def go_dark(driver: Driver, proxy: Proxy, *, blocked: bool) -> None:
    """Every connection of the workers is lost without a word to either end; the server believes them to be there.

    In the middle of work, or with `blocked` at a moment when all wait for work in a blocking read: what is submitted
    next is then delivered to nobody.
    """
    if blocked:
        driver.feeder.rest(True)
        wait_until(lambda: not any(map(driver.raw.xlen, INTAKE)), "workers to have nothing to do", 90)
    else:
        _all_at_work(driver)
    proxy.go_dark()
    lost = time.time()
    driver.feeder.rest(False)
    if blocked:
        wait_until(lambda: driver.delivered_since(lost), "an entry to be delivered to nobody", DEAF_S)
    driver.into_the_void += driver.delivered_since(lost)
    what = f"connections half-open, workers {'waiting' if blocked else 'at work'}"
    _note_resumption(driver, what, 0.0, lost)
    driver.tally["all workers' connections half-open"] += 1


def fill(folder: Path) -> Path:
    """Writes a file into the folder until its disk is full; returns it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return ballast


def _armed(driver: Driver, point: str, **settings: str) -> WorkerProcess:
    passes = driver.dice.randrange(40) if point in OFTEN else 0
    more = {"drain_s": "0"} if point.startswith("drain") else {}
    return driver.start_worker(FAILPOINT_APP, fail_point=point, fail_passes=str(passes), **more, **settings)


def _stop_at_work(driver: Driver) -> WorkerProcess:
    """A worker that holds claims stands still; one that turns out to hold none goes on, and another is looked for."""
    while True:
        victim = driver.one_at_work()
        victim.process.send_signal(signal.SIGSTOP)
        wait_until(lambda victim=victim: _state(victim) == "T", "a worker to stop")
        if driver.claims().get(victim.process.pid, 0):
            return victim
        victim.process.send_signal(signal.SIGCONT)


def _kill_at_work(driver: Driver) -> None:
    """A worker dies that holds claims at that very moment.

    Counts what it leaves once it is dead: an answer may have been on its way when it was stopped.
    """
    victim = _stop_at_work(driver)
    victim.kill()
    driver.orphaned += driver.claims().get(victim.process.pid, 0)


def _all_at_work(driver: Driver) -> None:
    """All workers are connected, and there is work: one about to connect would go on as if nothing were."""
    wait_until(lambda: all(worker.get("/readyz")[0] == 200 for worker in driver.alive()), "all workers connected", 90)
    wait_until(lambda: driver.feeder.waiting() > LOAD, "work for them", 60)


def _taken_over(driver: Driver, stopped: WorkerProcess) -> None:
    wait_until(lambda: driver.claims().get(stopped.process.pid, 0) == 0, "the stopped worker's claims to be taken", 60)


def _state(worker: WorkerProcess) -> str:
    return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def _note_resumption(driver: Driver, what: str, outage_s: float, returned: float, loading_s: float = 0.0) -> None:
    try:
        driver.resumed.append(observed(driver.witness, driver.celery, what, outage_s, returned, loading_s))
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *driver.ended_by_themselves()])) from None
