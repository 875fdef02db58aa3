"""Hung stores, full servers, dead neighbours, odd entries: work goes on, and nobody is blamed for them."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from kombu.transport import redis

from tests.support.flaky_content import FlakyContent
from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.processes import listens_at
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.worker import free_port
from worker import messages
from worker.errors import UnavailableError, WaitedError
from worker.intake import Intake


def test_hung_fetches_stop_nobody_else(place: Place) -> None:
    """Six pictures whose fetch never ends, through a kill: others are judged meanwhile, nothing is condemned."""
    hung = [f"hung{n}" for n in range(6)]
    for content_id in hung:
        os.mkfifo(place.content / content_id)
    first = place.start_worker(takeover_idle_s="2", fetch_timeout_s="1").wait_ready()
    place.client.submit(hung)
    wait_until(lambda: place.broker.client().xpending("moderation:uploads", "moderation")["pending"] == 6, "the claims")
    first.kill()
    place.start_worker(takeover_idle_s="2", fetch_timeout_s="1").wait_ready()
    wait_until(lambda: place.workers[1].metric("moderation_reclaimed_total") >= 6, "the take-over", 30)
    for _ in range(3):
        assert place.judge(place.add(), timeout_s=30).popitem()[1].label == "approved"
    raw = place.broker.client()
    put_aside: set[str] = set()

    def all_put_aside() -> bool:
        put_aside.update(json.loads(member)["content_id"] for member in raw.zrange("moderation:retry", 0, -1))
        return put_aside == set(hung)

    wait_until(all_put_aside, "the hung ones to be put aside", 60)
    assert raw.xlen("moderation:dead-letter") == 0
    assert place.workers[1].get("/healthz")[0] == 200


def test_fetches_that_hang_take_no_room(place: Place) -> None:
    """More of them than an idle process may have in work: whatever comes later is claimed and judged all the same."""
    hung = [f"hung{n}" for n in range(12)]
    for content_id in hung:
        os.mkfifo(place.content / content_id)
    place.start_worker(fetch_timeout_s="60").wait_ready()
    place.client.submit(hung)
    raw = place.broker.client()
    wait_until(lambda: raw.xpending("moderation:uploads", "moderation")["pending"] == 12, "all claims", 30)
    for _ in range(3):
        assert place.judge(place.add(), timeout_s=30).popitem()[1].label == "approved"


def test_a_dead_workers_claims_do_not_wait_for_the_backlog(place: Place) -> None:
    """Two workers, a backlog, one killed: the first of its claims is taken over while most of the backlog waits."""
    first = place.start_worker(takeover_idle_s="2").wait_ready()
    second = place.start_worker(takeover_idle_s="2").wait_ready()
    ids = [place.add() for _ in range(4000)]
    place.client.submit(ids)
    wait_until(lambda: first.metric("moderation_verdicts_total") > 20, "the first worker's verdicts")
    first.kill()
    wait_until(lambda: second.metric("moderation_reclaimed_total") > 0, "the take-over", 30)
    assert len(place.entries()) < 3500, "the backlog was gone before: this shows nothing"
    place.client.wait(ids, 180)
    assert len(place.entries()) == 4000


def test_entries_from_the_far_future_are_judged(place: Place) -> None:
    """An entry ID beyond any date, and a first failure that is yet to come: verdicts all the same."""
    worker = place.start_worker().wait_ready()
    far, odd = place.add(), place.add(b"no picture")
    raw = place.broker.client()
    raw.xadd("moderation:uploads", {"content_id": odd, "not_found_since_ms": "999999999999999"})
    raw.xadd("moderation:uploads", {"content_id": far}, id="300000000000000-0")
    found = place.client.wait([far, odd], 30)
    assert found[far].label == "approved"
    assert found[odd].reasons == ("unsupported_format",)
    assert raw.xlen("moderation:uploads") == 0
    assert place.judge(place.add()).popitem()[1].label == "approved"
    assert worker.get("/healthz")[0] == 200


def test_a_refusing_server_loses_no_task(place: Place) -> None:
    """The server takes no entry while a Celery task is in work: its ID is enqueued once it does again."""
    worker = place.start_worker().wait_ready()
    raw = place.broker.client()
    sender = Celery(broker=place.broker.url)
    content_id = place.add()
    raw.execute_command("ACL", "SETUSER", "default", "-xadd")
    sender.send_task("moderation.moderate", args=[[content_id]], queue="moderation")
    wait_until(lambda: worker.log().count("a task goes back") >= 2, "the task to be refused and come again", 30)
    raw.execute_command("ACL", "SETUSER", "default", "+xadd")
    assert place.client.wait(content_id, 120)[content_id].label == "approved"
    assert "Traceback" not in worker.log()
    sender.close()


def test_a_connection_lost_with_messages_in_work_can_be_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Celery closes it before it connects anew; an error on the way would end the worker."""
    for owner, name in (
        (redis.Channel, "QoS"),
        (redis.Channel, "Message"),
        (redis, "loads"),
        (messages.Consumer, "bury"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name, None), raising=False)  # as they are again afterwards
    messages.install(lambda sent, sentence: None)
    connection = Connection(place.broker.url, transport_options={"socket_timeout": 2})
    queue = connection.SimpleQueue("messages")
    queue.put("one")
    message = queue.get(timeout=10)
    assert message.payload == "one" and not message.acknowledged
    place.broker.kill()
    connection.transport.client = None  # as a first attempt leaves it that ended halfway
    connection.close()
    message.requeue()  # a task that ends only now
    place.broker.start()


def test_tasks_with_wrong_arguments_are_kept(place: Place) -> None:
    """Whatever was sent stands among the dead letters, whole."""
    place.start_worker().wait_ready()
    sender = Celery(broker=place.broker.url)
    many = [f"id{n}" for n in range(257)]
    sender.send_task("moderation.moderate", kwargs={"content_id": "x"}, queue="moderation")
    sender.send_task("moderation.moderate", args=["x", False, False, 4], queue="moderation")
    sender.send_task("moderation.moderate", args=["x"], kwargs={"self": 1}, queue="moderation")
    sender.send_task("moderation.moderate", args=[many], queue="moderation")
    # kombu writes these as texts and reads them back as what they were.
    sender.send_task("moderation.moderate", args=[uuid.UUID(int=7)], queue="moderation")
    sender.send_task("moderation.moderate", args=["x", {"since": datetime.now(UTC)}], queue="moderation")
    raw = place.broker.client()
    wait_until(lambda: raw.xlen("moderation:dead-letter") == 6, "the dead letters")
    letters = [fields for _, fields in raw.xrange("moderation:dead-letter")]
    assert {letter[b"reason"] for letter in letters} == {b"malformed_task"}
    assert any(all(f'"{one}"'.encode() in letter[b"detail"] for one in many) for letter in letters)
    assert any(str(uuid.UUID(int=7)).encode() in letter[b"detail"] for letter in letters)
    sender.close()


def test_messages_that_are_no_task_are_kept(place: Place) -> None:
    """A misspelt task, another serialisation, JSON that is none: content IDs of somebody's, whom Celery would not tell.
    Where the server takes no dead letter the message comes again."""
    worker = place.start_worker().wait_ready()
    raw = place.broker.client()
    raw.execute_command("ACL", "SETUSER", "default", "-xadd")
    sender = Celery(broker=place.broker.url)
    sender.send_task("moderation.moderat", args=[["misspelt"]], queue="moderation")
    sender.send_task("moderation.moderate", args=[["yaml"]], queue="moderation", serializer="yaml")
    with sender.connection_for_write() as connection, connection.SimpleQueue("moderation") as queue:
        queue.put("text", serializer="raw")
        headers = {"task": "moderation.moderate", "id": "1"}
        queue.put("no JSON", content_type="application/json", content_encoding="utf-8", headers=headers)
    wait_until(lambda: worker.log().count("a message goes back") >= 4, "the messages to be refused")
    assert not raw.exists("moderation:dead-letter")
    raw.execute_command("ACL", "SETUSER", "default", "+xadd")
    wait_until(lambda: raw.exists("moderation:dead-letter") and raw.xlen("moderation:dead-letter") == 4, "the letters")
    letters = [fields for _, fields in raw.xrange("moderation:dead-letter")]
    assert {letter[b"reason"] for letter in letters} == {b"malformed_task"}
    for sent in (b"misspelt", b"yaml", b"text", b"no JSON"):
        assert [letter for letter in letters if sent in letter[b"detail"].partition(b" Sent: ")[2]], sent
    wait_until(lambda: raw.hlen("unacked") == 0, "the messages to be acknowledged")
    assert place.judge(place.add()).popitem()[1].label == "approved"
    assert "Traceback" not in worker.log()
    sender.close()


OURS = {"task": "moderation.moderate", "id": "1"}


def push(place: Place, body: Any, headers: Any = OURS, **properties: Any) -> None:
    """As a client that writes its Celery messages itself; what is no text is sent as it is, in no encoding."""
    route = {"exchange": "", "routing_key": "moderation"}
    message = {"body": body, "headers": headers, "content-type": "application/json", "content-encoding": "utf-8"}
    message["properties"] = {"delivery_tag": str(uuid.uuid4()), "delivery_info": route} | properties
    place.broker.client().lpush("moderation", json.dumps(message))


def test_no_message_ends_a_worker(place: Place) -> None:
    """Bodies, headers and properties that Celery takes for granted: each is somebody's content IDs, and kept."""
    worker = place.start_worker().wait_ready()
    raw = place.broker.client()
    named = {"content_ids": ["an-id"]}
    for body in (named, ["an-id"], 71, None):
        push(place, body)
        push(place, body, {})
        push(place, body, {"task": "another", "id": "1"})
    wrong = (["an-id"], named, [["an-id"]], [["an-id"], 3, {}], ["an-id", {}, {}], [["an-id"], {}, 3], "an-id", 71)
    wrong += tuple([[["an-id"]], {}, {"chain": chain}] for chain in (1, True, "x", ["x"], [{}]))
    wrong += ([["an-id"], {}, {"delivery_info": 71}],)
    version_1 = {"task": "moderation.moderate", "id": "1"}
    wrong += (version_1 | named, version_1 | {"args": "an-id"}, version_1 | {"args": ["an-id"], "kwargs": ["x"]})
    for payload in wrong:
        push(place, json.dumps(payload))
        push(place, json.dumps(payload), {})
    task = json.dumps([["an-id"], {}, {}])
    odd = [[1], "x", {"task": ["x"], "id": "1"}, {"task": {}, "id": "1"}, {"task": "moderation.moderate"}]
    odd += [OURS | {"timelimit": limit} for limit in (3, "abc", [1], ["a", "b", "c"], True)]
    odd += [OURS | {"shadow": ["x"]}, OURS | {"id": []}, OURS | {"compression": "x"}, OURS | {"eta": 3}]
    odd += [OURS | {"expires": "soon"}]
    for headers in odd:
        push(place, task, headers)
    push(place, task, body_encoding="rot13")
    push(place, {"an": "id"}, body_encoding="base64")
    push(place, task, delivery_info=None)
    push(place, task, delivery_info={"exchange": 3, "routing_key": "moderation"})
    for tag in ([], None, True):
        push(place, task, delivery_tag=tag)
    moment = json.dumps({"an-id": {"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}})
    raw.lpush("moderation", json.dumps(named), '["an-id"]', moment, "71", "an-id", b"an-id\xff", "[" * 100_000)
    sent = 4 * 3 + len(wrong) * 2 + len(odd) + 7 + 7
    wait_until(lambda: raw.exists("moderation:dead-letter") and raw.xlen("moderation:dead-letter") == sent, "letters")
    details = [fields[b"detail"].partition(b" Sent: ")[2] for _, fields in raw.xrange("moderation:dead-letter")]
    assert sum(b"an-id" in detail for detail in details) > 40
    assert b"\\x00" not in b"".join(details)
    assert worker.process.poll() is None
    assert place.judge(place.add()).popitem()[1].label == "approved"
    wait_until(lambda: raw.hlen("unacked") == 0, "the messages to be acknowledged")
    assert "Traceback" not in worker.log()


def test_whoever_imports_the_app_has_celery_as_it_was() -> None:
    """A web application that sends tasks may have workers of its own, whose messages are none of our business."""
    code = (
        "import kombu.transport.redis as t; before = t.loads, t.Channel.QoS, t.Channel.Message; import worker.app; "
        "assert before == (t.loads, t.Channel.QoS, t.Channel.Message)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_task_in_another_clients_hand_is_done(place: Place) -> None:
    """PHP writes {} as []; the first version of Celery's protocol has all in its body."""
    place.start_worker().wait_ready()
    ids = [place.add() for _ in range(5)]
    push(place, json.dumps([[[ids[0]]], [], {}]))
    push(place, json.dumps([[[ids[1]]], [], []]))
    push(place, json.dumps([[[ids[2]]], {}, None]))
    push(place, json.dumps({**OURS, "args": [[ids[3]]], "kwargs": []}), [])
    push(place, json.dumps({**OURS, "kwargs": {"content_ids": ids[4]}}), None)
    assert {document.label for document in place.client.wait(ids, 30).values()} == {"approved"}
    assert not place.broker.client().exists("moderation:dead-letter")


def test_a_message_goes_back_to_the_queue_that_it_came_from(place: Place) -> None:
    """Wherever its sender says that it goes, and without headers: it is done once the server takes its ID."""
    worker = place.start_worker().wait_ready()
    raw = place.broker.client()
    ids = [place.add() for _ in range(3)]
    raw.execute_command("ACL", "SETUSER", "default", "-xadd")
    push(place, json.dumps([[ids[0]], {}, {}]), delivery_info={"exchange": "", "routing_key": "celery"})
    push(place, json.dumps([[ids[1]], {}, {}]), delivery_info={"exchange": "celery", "routing_key": "celery"})
    push(place, json.dumps({**OURS, "args": [ids[2]], "kwargs": {}}), None)
    push(place, json.dumps({"no": "task"}), {}, delivery_info=None)
    wait_until(lambda: worker.log().count("goes back") >= 6, "the messages to be refused", 30)
    raw.execute_command("ACL", "SETUSER", "default", "+xadd")
    assert {document.label for document in place.client.wait(ids, 30).values()} == {"approved"}
    wait_until(lambda: raw.exists("moderation:dead-letter") and raw.xlen("moderation:dead-letter") == 1, "the letter")
    assert "Traceback" not in worker.log()


def test_a_large_message_is_kept_in_part(place: Place) -> None:
    """A dead letter stays until a person drops it; one of a size that no task of ours has says what is missing."""
    place.start_worker().wait_ready()
    raw = place.broker.client()
    push(place, json.dumps([["x" * 1_000_000, False, False, 4], {}, {}]))
    push(place, json.dumps([["é" * 200_000], {}, {}], ensure_ascii=False), {"task": "another", "id": "1"})
    wait_until(lambda: raw.exists("moderation:dead-letter") and raw.xlen("moderation:dead-letter") == 2, "the letters")
    for _, fields in raw.xrange("moderation:dead-letter"):
        sentence, _, sent = fields[b"detail"].partition(b" Sent: ")
        assert 65_000 < len(sent) <= 65_536 and b"the first 65536 are kept" in sentence


def test_a_client_goes_on_after_a_restart_of_the_server(place: Place) -> None:
    """What it was waiting for ends with one error, at once; called again, it has all of it, by the same client."""
    place.start_worker().wait_ready()
    place.judge(first := place.add())
    ((last, _),) = place.client.verdicts()
    with ThreadPoolExecutor() as threads:
        later = place.add()
        waiting = threads.submit(place.client.wait, later, 120)
        following = threads.submit(lambda: list(place.client.verdicts(last, follow=True)))
        place.broker.kill()
        for ended in (waiting, following):
            with pytest.raises(UnavailableError) as caught:
                ended.result(60)
            assert not isinstance(caught.value, WaitedError)
    with pytest.raises(UnavailableError):
        place.client.submit(later)
    place.broker.start()
    place.client.submit([first, later])
    assert place.client.wait([first, later], 60).keys() == {first, later}
    assert [document.content_id for _, document in place.client.verdicts(last)] == [later]


def test_a_client_leaves_a_master_that_became_a_replica(place: Place) -> None:
    """Its old connections are closed at the refusal, so that the next call asks the address anew."""
    raw = place.broker.client()
    place.client.submit("before")
    raw.replicaof("127.0.0.1", "1")
    try:
        place.client.submit("during")
    except Exception as error:
        assert "does not answer" in str(error)
    else:
        raise AssertionError("a replica took a write")
    connections = place.client.redis.connection_pool
    assert not any(connection.is_connected for connection in connections._available_connections)
    raw.replicaof("NO", "ONE")
    place.client.submit("after")


def test_a_device_that_hangs_ends_the_process(place: Place) -> None:
    """The watchdog ends it; another worker judges what it held, and nothing is condemned."""
    ids = [place.add() for _ in range(5)]
    hanging = place.start_worker(app="tests.support.hanging_app", forward_timeout_s="2", takeover_idle_s="2")
    place.client.submit(ids)
    assert hanging.process.wait(90) == 70
    assert "forward pass" in hanging.log()
    place.start_worker(takeover_idle_s="2").wait_ready()
    started = time.monotonic()
    assert {document.label for document in place.client.wait(ids, 60).values()} == {"approved"}
    assert time.monotonic() - started < 60
    assert place.broker.client().xlen("moderation:dead-letter") == 0


def test_a_device_that_hangs_again_and_again_condemns_nothing(place: Place) -> None:
    """Five processes in a row end while they judge one picture alone: their device is to blame, not the picture."""
    content_id = place.add()
    place.client.submit(content_id)
    for _ in range(5):
        hanging = place.start_worker(
            app="tests.support.hanging_app", forward_timeout_s="1", takeover_idle_s="1"
        ).wait_ready()
        assert hanging.process.wait(60) == 70
    place.start_worker(takeover_idle_s="1").wait_ready()
    assert place.client.wait(content_id, 60)[content_id].label == "approved"
    assert place.broker.client().xlen("moderation:dead-letter") == 0


def test_a_picture_that_breaks_every_device_is_given_up(place: Place) -> None:
    """Ten processes have had their device broken by it alone: it is dead-lettered, and ends no eleventh."""
    content_id = place.add()
    raw = place.broker.client()
    raw.xgroup_create("moderation:uploads", "moderation", id="0", mkstream=True)
    place.client.submit(content_id)
    for number in range(10):
        intake = Intake(raw, f"broken{number}", takeover_idle_s=0)
        [entry] = intake.take_over("moderation:uploads", 1) or intake.read(["moderation:uploads"], 1)
        assert intake.mark_alone(entry) == (0, number)
        intake.blame_device(entry)
    worker = place.start_worker(app="tests.support.hanging_app", forward_timeout_s="2", takeover_idle_s="1")
    assert place.client.wait(content_id, 60)[content_id].reasons == ("model_failed",)
    assert worker.process.poll() is None
    (_, letter), = raw.xrange("moderation:dead-letter")  # fmt: skip
    assert letter[b"reason"] == b"killed_its_worker" and b"10 processes" in letter[b"detail"]


@pytest.mark.parametrize("app", ["hanging_app", "hanging_busy_app"])
def test_a_device_that_hangs_does_not_keep_a_worker_from_stopping(place: Place, app: str) -> None:
    """SIGTERM while a batch never ends: what it held goes back at once, and the process ends by itself, even where
    another thread waits for that batch."""
    ids = [place.add() for _ in range(3)]
    hanging = place.start_worker(app=f"tests.support.{app}", drain_s="1", forward_timeout_s="8").wait_ready()
    place.client.submit(ids)
    wait_until(lambda: place.broker.client().xpending("moderation:uploads", "moderation")["pending"] == 3, "the claims")
    assert hanging.stop(40) == 70
    place.start_worker(takeover_idle_s="2").wait_ready()
    assert {document.label for document in place.client.wait(ids, 60).values()} == {"approved"}


def test_a_server_that_hangs_does_not_keep_a_worker_from_stopping(place: Place) -> None:
    """SIGTERM while it neither answers nor refuses: before systemd's or Kubernetes' patience is over."""
    worker = place.start_worker(drain_s="1").wait_ready()
    server = place.broker._server._process.pid
    os.kill(server, signal.SIGSTOP)
    try:
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(50) == 0
    finally:
        os.kill(server, signal.SIGCONT)


def test_a_hung_fetch_does_not_keep_a_worker_from_stopping(place: Place) -> None:
    """SIGTERM while a fetch never ends: its claim goes back, and the process exits 0."""
    os.mkfifo(place.content / "stuck")
    worker = place.start_worker(drain_s="1").wait_ready()
    place.client.submit("stuck")
    wait_until(lambda: place.broker.client().xpending("moderation:uploads", "moderation")["pending"] == 1, "the claim")
    assert worker.stop(30) == 0


def test_idle_hours_are_no_standstill(place: Place) -> None:
    """A picture put aside by force leaves no stain: after any pause a worker that works is healthy."""
    os.mkfifo(place.content / "stuck")
    worker = place.start_worker(fetch_timeout_s="1", fetch_failed_retry_s="0").wait_ready()
    assert place.judge("stuck", timeout_s=60)["stuck"].reasons == ("fetch_failed",)
    assert place.judge(place.add()).popitem()[1].label == "approved"
    assert worker.get("/healthz")[0] == 200


def test_a_draining_worker_keeps_its_claims(place: Place) -> None:
    """What it still holds is nobody else's while it drains, though that takes longer than a take-over."""
    drain_s, takeover_s = 8.0, 2.0
    os.mkfifo(place.content / "stuck")
    first = place.start_worker(drain_s=str(drain_s), takeover_idle_s=str(takeover_s)).wait_ready()
    place.client.submit("stuck")
    wait_until(lambda: place.broker.client().xpending("moderation:uploads", "moderation")["pending"] == 1, "the claim")
    second = place.start_worker(takeover_idle_s=str(takeover_s)).wait_ready()
    first.process.terminate()
    began = time.monotonic()
    wait_until(lambda: second.metric("moderation_reclaimed_total") == 1, "the claim to be given back and taken", 60)
    assert time.monotonic() - began >= drain_s - 1, "its claim was taken while it drained"
    assert first.process.wait(30) == 0


def test_refused_postponements_hold_nobody_back(place: Place) -> None:
    """Redis takes no retry, for its key is something else: what is judged meanwhile is published all the same, with
    more refused than the outbox carries at once."""
    raw = place.broker.client()
    raw.set("moderation:retry", "not a sorted set")
    place.start_worker(not_found_retry_s="1", claim_deadline_s="120", max_batch="256").wait_ready()
    missing = [f"missing{number}" for number in range(100)]
    place.client.submit(missing)
    wait_until(lambda: raw.xpending("moderation:uploads", "moderation")["pending"] == 100, "the claims", 25)
    for _ in range(3):
        assert place.judge(place.add(), timeout_s=30).popitem()[1].label == "approved"
    assert place.client.verdict(missing[0]) is None
    raw.delete("moderation:retry")
    assert {found.reasons for found in place.client.wait(missing, 60).values()} == {("not_found",)}


def test_pauses_between_attempts_grow(place: Place) -> None:
    """One second, two, four: a store that is down for an hour is not asked for each picture every second."""
    place.start_worker(not_found_retry_s="600").wait_ready()
    place.client.submit("missing")
    raw = place.broker.client()
    due: dict[int, float] = {}

    def third_attempt_waits() -> bool:
        for member, score in raw.zrange("moderation:retry", 0, -1, withscores=True):
            due[json.loads(member)["attempt"]] = score
        return 4 in due

    wait_until(third_attempt_waits, "four attempts", 60)
    pauses = [due[attempt + 1] - due[attempt] for attempt in (1, 2, 3)]
    assert pauses[0] >= 2000 and pauses[1] >= 4000 and pauses[2] >= 8000, pauses


def test_a_store_that_was_away_leaves_the_picture_its_time_to_appear(place: Place) -> None:
    """Away for longer than a missing picture is waited for, then without the picture: it is waited for all the same."""
    port = free_port()
    content_url = f"http://127.0.0.1:{port}/{{content_id}}"
    place.start_worker(content_url=content_url, not_found_retry_s="6", fetch_failed_retry_s="600").wait_ready()
    content_id = place.add()
    (place.content / content_id).rename(place.folder / "later")
    place.client.submit(content_id)
    raw = place.broker.client()

    def waits_with(field: str, at_least_ms: int = 0) -> bool:
        seconds, micros = raw.time()
        members = [json.loads(member) for member in raw.zrange("moderation:retry", 0, -1)]
        return any(seconds * 1000 + micros // 1000 - m[field] > at_least_ms for m in members if field in m)

    wait_until(lambda: waits_with("fetch_failed_since_ms", 6500), "the store to be away for long", 60)
    with FlakyContent(place.content, 0, port=port):
        wait_until(lambda: waits_with("not_found_since_ms"), "a 404 that is waited for", 60)
        (place.folder / "later").rename(place.content / content_id)
        assert place.client.wait(content_id, 60)[content_id].label == "approved"


def test_claims_whose_answer_was_lost_are_judged_as_if_it_had_come(place: Place) -> None:
    """The server hands them out over a connection that nothing comes through any more, as one that stood still for
    longer than the time-out does: they are judged once there is another, side by side and by the same worker."""
    raw = place.broker.client()

    def alone() -> list[bytes]:
        return list(raw.scan_iter("moderation:alone:*"))

    def waits_for_work() -> bool:
        return any(one["cmd"] == "xreadgroup" and "b" in one["flags"] for one in raw.client_list())

    with Proxy(place.broker.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        worker = place.start_worker(redis_url=url, takeover_idle_s="6").wait_ready()
        for _ in range(5):
            ids = [place.add() for _ in range(3)]
            wait_until(waits_for_work, "the worker to wait for work")
            proxy.go_dark()
            with raw.pipeline(transaction=True) as at_once:
                for content_id in ids:
                    at_once.xadd("moderation:uploads", {"content_id": content_id})
                at_once.execute()
            lost = raw.xpending("moderation:uploads", "moderation")["pending"]
            began = time.monotonic()
            wait_until(lambda ids=ids: alone() or set(ids) <= set(place.entries()), "verdicts", 60)
            assert not alone(), "they are taken for suspects"
            assert time.monotonic() - began < 5 + 6, "a time-out, and less than they would have to wait for others"
            if lost == len(ids):
                break
        else:
            raise AssertionError("no answer was lost: this shows nothing")
        assert worker.metric("moderation_reclaimed_total") == 0
        assert "3 claims had come with an answer that was lost" in worker.log()


def test_without_redis_an_idle_worker_is_never_ready(place: Place) -> None:
    """Nothing in work, so nothing has to be told to Redis: it is noticed all the same, and stays so."""
    worker = place.start_worker().wait_ready()
    place.broker.kill()
    wait_until(lambda: worker.get("/readyz")[0] == 503, "the outage to be noticed", 30)
    seen: list[int] = []
    ends = time.monotonic() + 4

    def over() -> bool:
        seen.append(worker.get("/readyz")[0])
        return time.monotonic() > ends

    wait_until(over, "four seconds of outage", 30)
    assert set(seen) == {503}, f"{seen.count(200)} of {len(seen)} answers said ready"
    assert worker.get("/healthz")[0] == 200
    place.broker.start()
    worker.wait_ready()


def test_a_slow_picture_keeps_no_other_waiting(place: Place) -> None:
    """60 megapixels take a decoder for seconds; what was submitted behind it is judged meanwhile, not after it."""
    slow = place.add(picture("risked", "PNG", (7740, 7740), compress_level=1))
    others = [place.add() for _ in range(40)]
    worker = place.start_worker().wait_ready()
    place.judge(place.add())
    place.client.submit(slow)
    place.client.submit(others)
    found = place.client.wait([slow, *others], 60)
    assert found[slow].label == "risked"
    order = [content_id for content_id in place.entries() if content_id in found]
    behind = len(others) - order.index(slow)
    assert worker.metric("moderation_stage_seconds_count", stage="decode") >= len(others) + 1
    # All but those that a process may begin with, if they waited; a few, where a busy machine holds them up.
    assert behind <= len(others) // 4, f"{behind} of {len(others)} waited for the slow picture"


def test_metrics_are_bound_to_loopback(place: Place) -> None:
    """Nothing on another address of this machine answers."""
    worker = place.start_worker().wait_ready()
    assert listens_at(worker.metrics_port) == ["127.0.0.1"]


def test_malformed_entries_that_cannot_be_buried_hold_nobody_up(place: Place) -> None:
    """The dead letters' key is something else: IDs beside a malformed one are judged, corrections behind it applied."""
    raw = place.broker.client()
    raw.set("moderation:dead-letter", "not a stream")
    place.start_worker(takeover_idle_s="1").wait_ready()
    ids = [place.add() for _ in range(6)]
    for number, content_id in enumerate(ids):
        raw.xadd("moderation:uploads", {"content_id": content_id})
        raw.xadd("moderation:uploads", {"content_id": f"no/id{number}"})
    assert {document.label for document in place.client.wait(ids, 30).values()} == {"approved"}
    raw.xadd("moderation:corrections", {"content_id": "no/id"})
    place.client.correct(ids[0], "risked", by="ada")
    wait_until(lambda: place.client.verdict(ids[0]).ban, "the correction behind a malformed one")
    raw.delete("moderation:dead-letter")
    wait_until(lambda: raw.xlen("moderation:dead-letter") == 7, "the malformed ones among the dead letters", 60)
    assert raw.xlen("moderation:uploads") == 0


def test_workers_that_were_paused_together_keep_their_claims(place: Place) -> None:
    """As with the machine that they are on: the first that goes on finds the other's claims as old as its own were."""
    takeover_s = 10.0
    stuck = [f"stuck{number}" for number in range(12)]  # more than the first may claim
    for content_id in stuck:
        os.mkfifo(place.content / content_id)
    workers = [place.start_worker(takeover_idle_s=str(takeover_s), fetch_timeout_s="60") for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    raw = place.broker.client()

    def claims() -> list[dict[str, Any]]:
        return raw.xpending_range("moderation:uploads", "moderation", "-", "+", len(stuck))

    place.client.submit(stuck)
    wait_until(lambda: len(claims()) == len(stuck), "all to be claimed")
    assert len({claim["consumer"] for claim in claims()}) == 2, "one has them all: this shows nothing"
    for worker in workers:
        worker.process.send_signal(signal.SIGSTOP)
    wait_until(
        lambda: min(claim["time_since_delivered"] for claim in claims()) > 1000 * takeover_s, "the pause to be long"
    )
    for goes_on in (1, 2):
        raw.delete(*raw.scan_iter("moderation:worker:*"))
        workers[goes_on - 1].process.send_signal(signal.SIGCONT)
        wait_until(lambda n=goes_on: len(list(raw.scan_iter("moderation:worker:*"))) == n, "house to be kept")
    assert {claim["times_delivered"] for claim in claims()} == {1}, "one has taken what the other was about to refresh"
