"""Everything is attacked at once, over and over: nothing is lost, nothing takes effect twice.

The short form is part of every test run; the long form, by `make chaos`, writes RESULTS.md.
"""

from pathlib import Path

import pytest

from tests.chaos import attacks, results
from tests.chaos.checks import Findings
from tests.chaos.driver import Driver
from tests.support.failpoint_app import POINTS
from tests.support.flaky_content import FlakyContent
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from worker.errors import WeightsError

SEED = 20261124
OUTAGES_S = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 30.0, 30.0)
TIMES = 5


def check(driver: Driver, findings: Findings) -> None:
    """What holds for every run."""
    findings.assert_none()
    assert findings.bans > findings.verdicts / 5, "too few bans: what is said of bans shows little"
    late = [resumption for resumption in driver.resumed if resumption.late]
    assert not late, f"work resumed too late: {late}"
    assert driver.orphaned > 0, "no kill hit a worker that held claims: this shows nothing"


def test_kills_and_a_restart_lose_and_double_nothing(tmp_path: Path) -> None:
    """The short form: six workers die in the middle of work, the server once, under swaps, corrections and repeats."""
    with Driver(tmp_path, seed=SEED, workers=2, appendfsync="always") as driver:
        driver.begin()
        for _ in range(3):
            attacks.sigkill(driver)
        attacks.restart_broker(driver, 1.0, kill=True)
        for _ in range(3):
            attacks.sigkill(driver)
        check(driver, driver.settle())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_processes_die(tmp_path: Path, _table: None) -> None:
    """Workers are killed, stopped and asked to end; decoders and producers are killed."""
    results.begin("processes")
    with Driver(tmp_path, seed=SEED, celery_every_s=0.5) as driver:
        blows = [attacks.sigkill] * 45 + [attacks.sigterm] * 8 + [attacks.sigstop] * 6
        blows += [attacks.kill_decoder] * 15 + [attacks.kill_producer] * 10
        driver.dice.shuffle(blows)
        driver.begin()
        for blow in blows:
            blow(driver)
        findings = driver.settle()
        results.keep("processes", driver, findings)
        check(driver, findings)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_workers_die_at_every_crash_point(tmp_path: Path, _table: None) -> None:
    """Five times each, between any two steps of the line, in its side ways, and a producer after its XADD."""
    results.begin("crash points")
    points = [point for point in POINTS for _ in range(TIMES)]
    with Driver(tmp_path, seed=SEED + 1, workers=2, celery_every_s=0.5) as driver:
        driver.dice.shuffle(points)
        driver.begin()
        attacks.crash_points(driver, points)
        for _ in range(TIMES):
            attacks.producer_dies_after_xadd(driver)
            attacks.stopped_before_publish(driver)
        findings = driver.settle()
        results.keep("crash points", driver, findings)
        check(driver, findings)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_server_goes_and_comes_back(tmp_path: Path, _table: None) -> None:
    """Killed and stopped for one to thirty seconds, its connections closed and half-open; the real take-over time."""
    results.begin("server")
    with (
        Driver(tmp_path, seed=SEED + 2, celery_every_s=0.5, appendfsync="always", takeover_idle_s="15") as driver,
        Proxy(driver.place.broker.port) as proxy,
    ):
        driver.settings["redis_url"] = f"redis://127.0.0.1:{proxy.port}/0"
        driver.begin()
        for number, outage_s in enumerate(driver.dice.sample(OUTAGES_S, len(OUTAGES_S))):
            attacks.restart_broker(driver, outage_s, kill=number % 2 == 0, worker_dies=number % 3 == 2)
            attacks.cut_connections(driver)
            if number % 3 == 0:
                attacks.go_dark(driver, proxy, blocked=number % 2 == 0)
        findings = driver.settle()
        results.keep("server", driver, findings)
        check(driver, findings)
        assert driver.into_the_void > 0, "half-open connections took nothing along: this shows little"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_stores_fail(tmp_path: Path, small_disk: Path, _table: None) -> None:
    """The content store is slow, refuses, cuts short, hangs and goes; the disk of the weights store is full."""
    results.begin("stores")
    with (
        Driver(tmp_path, seed=SEED + 3, weights=small_disk / "weights", fetch_timeout_s="2") as driver,
        FlakyContent(driver.place.content, SEED) as store,
    ):
        driver.settings["content_url"] = store.url
        driver.begin()
        for share in (0.2, 0.0, 0.5, 0.0, 1.0, 0.0):
            store.share = share
            ballast = attacks.fill(small_disk)
            before = driver.versions.store.versions()
            with pytest.raises(WeightsError):
                driver.versions.publish()
            refused = driver.swapper.refused
            wait_until(lambda refused=refused: driver.swapper.refused > refused, "a promotion to be refused", 30)
            attacks.sigkill(driver)
            assert driver.versions.store.versions() == before, "a version is half there"
            ballast.unlink()
            driver.versions.publish()
            driver.tally["disk of the weights store full, a version published"] += 1
            swaps = driver.swapper.swaps
            wait_until(lambda swaps=swaps: driver.swapper.swaps > swaps + 3, "swaps after the disk was full", 60)
        driver.tally.update({f"content store: {trouble}": count for trouble, count in store.met.items()})
        findings = driver.settle()
        results.keep("stores", driver, findings)
        check(driver, findings)
        assert driver.versions.store.history(), "the history can be read"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_without_the_take_over_work_is_lost(tmp_path: Path, _table: None) -> None:
    """The positive control: the same run, where nobody takes over what the dead left, is found to lose it."""
    results.begin("control")
    with Driver(tmp_path, seed=SEED + 4, workers=2, app="tests.support.no_takeover_app") as driver:
        driver.begin()
        for _ in range(TIMES):
            attacks.sigkill(driver)
        driver.end_load()
        wait_until(driver.only_stranded_left, "all to be done but what the dead have claimed", 120)
        stranded = driver.stranded()
        lost = driver.finish(patience_s=0).lost
        never_judged = set(stranded) - driver.witness.judged
        driver.start_worker("tests.support.tiny_app")
        findings = driver.finish(patience_s=120)
        results.keep("control", driver, findings, control=len(lost), stranded=len(stranded))
        assert lost, "the suite does not see that work is lost"
        assert lost == never_judged, f"lost, and not in a dead worker's list, or the other way: {lost ^ never_judged}"
        findings.assert_none()


@pytest.mark.long
def test_all_parts_together_are_as_much_as_is_promised() -> None:
    """A hundred kills, ten restarts and a hundred swaps under load, in the figures that the parts above left."""
    totals = results.totals()
    assert totals["kills"] >= 100 and totals["restarts"] >= 10 and totals["swaps"] >= 100, totals
    assert totals["lost"] == totals["twice"] == 0, totals
    assert len(results.commits()) == 1, f"the parts ran at different commits: {sorted(results.commits())}"
