"""A worker's life: what it needs to start, how it takes up a champion, how it stops, and what a death leaves."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.processes import decoders_of, lives
from tests.support.store import publish_colours
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker, free_port

TAKE_UP_S = 5.0


def refusal(place: Place, **settings: str) -> str:
    """Starts a worker that must not start; returns what it says about why."""
    worker = place.start_worker(forked=False, **settings)
    code = worker.process.wait(90)
    log = worker.log()
    assert code == 2, log
    assert "Traceback" not in log, log
    sentences = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, log
    return sentences[0]


def test_without_a_champion_it_does_not_start(place: Place) -> None:
    """One sentence that says how to make one, and exit 2."""
    (place.weights / "champion").unlink()
    assert "moderation-trainer fit" in refusal(place)


def test_without_redis_it_does_not_start(place: Place) -> None:
    """One sentence, and exit 2."""
    assert "Redis does not answer" in refusal(place, redis_url=f"redis://127.0.0.1:{free_port()}/0")


def test_without_its_content_folder_it_does_not_start(place: Place) -> None:
    """One sentence, and exit 2."""
    assert "content folder" in refusal(place, content_url="file:///no/such/folder/{content_id}")


def test_with_a_setting_out_of_range_it_does_not_start(place: Place) -> None:
    """The variable is named."""
    assert "MODERATION_MAX_BATCH" in refusal(place, max_batch="0")


def test_with_damaged_weights_it_does_not_start(place: Place) -> None:
    """A flipped bit in the champion's tensors is seen before they are opened."""
    delta = place.weights / "versions" / (place.store.champion() or "") / "delta.safetensors"
    data = bytearray(delta.read_bytes())
    data[-1] ^= 1
    delta.chmod(0o644)
    delta.write_bytes(data)
    assert "SHA-256" in refusal(place)


def test_with_its_metrics_port_taken_it_does_not_start(place: Place, broker: Broker) -> None:
    """The port and the way out are named."""
    assert "MODERATION_METRICS_PORT" in refusal(place, metrics_port=str(broker.port))


def test_a_new_champion_is_served_within_seconds_and_delays_nothing(place: Place) -> None:
    """Champions are swapped while pictures stream through: all get a verdict, each by the version it names."""
    worker = place.start_worker().wait_ready()
    first = place.store.champion()
    second = publish_colours(place.store, sharpness=5.0)
    assert place.judge(place.add()).popitem()[1].weights == first
    place.store.promote(second, by="tests", why="swap")
    promoted = time.monotonic()

    def served() -> bool:
        return next(iter(place.judge(place.add()).values())).weights == second

    wait_until(served, "a verdict by the new champion", TAKE_UP_S)
    assert time.monotonic() - promoted < TAKE_UP_S
    ids = [place.add(label="risked") for _ in range(150)]
    place.client.submit(ids)
    for version in (first, second, first):
        place.store.promote(str(version), by="tests", why="swap under load")
        wait_until(lambda version=version: worker.metric("moderation_weights_info", weights=version) == 1, "the swap")
    found = place.client.wait(ids, 60)
    assert {document.label for document in found.values()} == {"risked"}
    assert {document.weights for document in found.values()} <= {first, second}
    assert sorted(place.entries()) == sorted(set(place.entries()))


def test_a_champion_that_cannot_be_served_is_refused(place: Place) -> None:
    """The version in service goes on, one log line and the metric say so, and a mended one is taken up."""
    worker = place.start_worker().wait_ready()
    (place.weights / "champion").write_text("tiny-000000000000\n")
    wait_until(lambda: worker.metric("moderation_weights_loads_total", outcome="refused") >= 1, "the refusal")
    assert place.judge(place.add()).popitem()[1].label == "approved"
    assert worker.log().count("champion refused") == 1
    assert worker.metric("moderation_champion_refused") == 1
    second = publish_colours(place.store, sharpness=6.0)
    place.store.promote(second, by="tests", why="mended")
    wait_until(lambda: worker.metric("moderation_weights_info", weights=second) == 1, "the mended champion")
    assert worker.metric("moderation_champion_refused") == 0


def test_a_missing_picture_that_appears_is_judged(place: Place) -> None:
    """It is looked for again, holding no thread meanwhile."""
    place.start_worker(not_found_retry_s="60").wait_ready()
    place.client.submit("late")
    raw = place.broker.client()
    wait_until(lambda: raw.zcard("moderation:retry") == 1, "the entry to wait for its next attempt")
    assert raw.xlen("moderation:uploads") == 0
    (place.content / "late").write_bytes(picture("approved"))
    assert place.client.wait("late", 30)["late"].label == "approved"


def test_stopping_gives_back_what_is_not_finished(place: Place) -> None:
    """SIGTERM in the middle of work: exit 0, and another worker judges the rest at once, not after an idle time."""
    hung = place.content / "hung"
    os.mkfifo(hung)
    place.start_worker(drain_s="0").wait_ready()
    ids = ["hung", *[place.add() for _ in range(400)]]
    place.client.submit(ids)
    wait_until(lambda: len(place.entries()) > 20, "the first verdicts")
    assert place.workers[0].stop() == 0
    raw = place.broker.client()
    assert raw.keys("moderation:worker:*") == []
    claims = raw.xpending_range("moderation:uploads", "moderation", "-", "+", 1000)
    assert min(claim["time_since_delivered"] for claim in claims) >= 60_000
    assert max(claim["times_delivered"] for claim in claims) == 0
    hung.unlink()
    hung.write_bytes(picture("approved"))
    # 2 s in place of 15: claims given back are idle for a minute already, whatever this is.
    place.start_worker(takeover_idle_s="2").wait_ready()
    place.client.wait(ids, 60)
    assert sorted(place.entries()) == sorted(ids)


def test_what_a_killed_worker_held_is_taken_over(place: Place) -> None:
    """SIGKILL: its claims go idle and another worker judges them; nothing is lost or published twice."""
    first = place.start_worker().wait_ready()
    place.start_worker(takeover_idle_s="2").wait_ready()
    ids = [place.add() for _ in range(600)]
    place.client.submit(ids)
    wait_until(lambda: first.metric("moderation_verdicts_total") > 5, "the first worker's first verdicts")

    def stands_still_with_claims() -> bool:
        """Stopped, it keeps what it holds until the kill; going, it may be between two claims, or done."""
        first.process.send_signal(signal.SIGSTOP)
        holders = place.broker.client().xpending("moderation:uploads", "moderation")["consumers"]
        if any(f"-{first.process.pid}-" in holder["name"].decode() for holder in holders):
            return True
        first.process.send_signal(signal.SIGCONT)
        ids.append(place.add())
        place.client.submit(ids[-1])
        return False

    wait_until(stands_still_with_claims, "the first worker to hold something")
    first.kill()
    place.client.wait(ids, 90)
    assert sorted(place.entries()) == sorted(ids)
    assert place.workers[1].metric("moderation_reclaimed_total") > 0


def test_a_restart_of_the_server_loses_nothing(place: Place) -> None:
    """Valkey is stopped and started with its append-only file in the middle of the work."""
    worker = place.start_worker().wait_ready()
    ids = [place.add() for _ in range(300)]
    place.client.submit(ids)
    wait_until(lambda: worker.metric("moderation_verdicts_total") > 5, "the first verdicts")
    place.broker.stop()
    wait_until(lambda: worker.get("/readyz")[0] == 503, "the worker to notice")
    assert worker.get("/healthz")[0] == 200
    place.broker.start()
    place.client.wait(ids, 60)
    assert sorted(place.entries()) == sorted(ids)
    wait_until(lambda: worker.get("/readyz")[0] == 200, "the worker to be ready again")


def test_flushed_streams_and_groups_come_back(place: Place) -> None:
    """Somebody empties the database: the groups are made anew and work goes on."""
    place.start_worker().wait_ready()
    place.judge(place.add())
    place.broker.client().flushall()
    assert place.judge(place.add()).popitem()[1].label == "approved"


def test_two_workers_share_the_work(place: Place) -> None:
    """Both judge, no picture twice."""
    both = [place.start_worker(), place.start_worker()]
    for worker in both:
        worker.wait_ready()
    ids = [place.add() for _ in range(600)]
    place.judge(ids)

    def judged() -> list[float]:
        return [worker.metric("moderation_verdicts_total") for worker in both]

    wait_until(lambda: sum(judged()) >= 600, "what was published to be counted, which comes after")
    assert sum(judged()) == 600 and min(judged()) > 60
    assert sorted(place.entries()) == sorted(ids)


def test_no_key_is_left_without_an_end(place: Place) -> None:
    """Every key that is not one of the contract's lasting ones has a TTL."""
    place.start_worker(not_found_retry_s="0").wait_ready()
    place.judge([place.add(), place.add(b"bad"), "missing"])
    raw = place.broker.client()
    names = (b"uploads", b"backfill", b"verdicts", b"dead-letter", b"retry", b"corrections")
    lasting = {b"moderation:" + name for name in names}
    endless = {key for key in raw.keys("moderation:*") if raw.ttl(key) == -1}
    assert endless <= lasting


def test_celerys_own_inspect_and_shutdown_work(place: Place) -> None:
    """`celery inspect ping` answers, and `celery control shutdown` ends the worker cleanly."""
    worker = place.start_worker().wait_ready()
    environment = os.environ | {"MODERATION_REDIS_URL": place.broker.url}

    def celery(*words: str) -> str:
        command = [sys.executable, "-m", "celery", "-A", "worker.app", *words]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    wait_until(lambda: "pong" in celery("inspect", "ping"), "the pong")
    celery("control", "shutdown")
    assert worker.process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_no_process_is_left_behind(place: Place, number: signal.Signals) -> None:
    """However it ends, its decoders end with it."""
    worker = place.start_worker().wait_ready()
    place.judge(place.add())
    decoders = decoders_of(worker.process.pid)
    assert len(decoders) >= 2
    worker.process.send_signal(number)
    worker.process.wait(60)
    wait_until(lambda: not any(map(lives, decoders)), "its decoders to end", 20)
