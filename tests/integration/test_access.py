"""Who may do what: the ACL file of deploy/redis on real servers, with a real worker; and TLS.

That each role can do its whole job; that it can do no more is in test_access_by_key.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from celery import Celery
from prometheus_client import generate_latest

from tests.support.guarded import ROLES, GuardedServer, debian_redis, valkey
from tests.support.pictures import picture
from tests.support.store import colour_store
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, WorkerProcess
from worker import bus, exporter
from worker.client import Moderation
from worker.errors import UnavailableError, UsageError


@dataclass
class Guarded:
    """A guarded server with a worker."""

    server: GuardedServer
    content: Path
    worker: WorkerProcess

    def add(self, name: str, label: str = "approved") -> str:
        """One more picture."""
        (self.content / name).write_bytes(picture(label))
        return name

    def as_role(self, role: str) -> Moderation:
        """The client, as that role."""
        return Moderation(self.server.url_of(role))

    def run(self, role: str, *words: str) -> subprocess.CompletedProcess[str]:
        """The `moderation` command, as that role."""
        environment = {"MODERATION_REDIS_URL": self.server.url_of(role), "PATH": os.environ["PATH"]}
        command = [sys.executable, "-m", "worker.cli", *words]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)


def start(folder: Path, program: str, tls: Path | None = None) -> Iterator[Guarded]:
    """A server, a store and a worker in a folder."""
    content = folder / "content"
    content.mkdir()
    colour_store(folder / "weights")
    with GuardedServer(folder / "server", program, tls) as server:
        worker = WorkerProcess(server, folder / "weights", content, folder, ban_quota_count="2", not_found_retry_s="0")
        try:
            worker.wait_ready()
            yield Guarded(server, content, worker)
        finally:
            worker.kill()


@pytest.fixture(scope="module", params=[valkey, debian_redis], ids=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Each kind of server, with a worker of the role `worker`."""
    program: Callable[[], str] = request.param
    yield from start(tmp_path_factory.mktemp("guarded"), program())


def test_an_uploader_submits_and_reads_verdicts(guarded: Guarded) -> None:
    """All that the client offers an upload pipeline; `durable` where the server can."""
    uploader = guarded.as_role("uploader")
    names = [guarded.add(f"upload{number}") for number in range(3)]
    uploader.submit(names)
    assert {document.label for document in uploader.wait(names, 60).values()} == {"approved"}
    uploader.submit(names[0], backfill=True, rescan=True)
    assert uploader.verdict(names[0]).label == "approved"
    assert {document.content_id for _, document in uploader.verdicts()} >= set(names)
    if "valkey" in str(guarded.server.process.args) or guarded.server.client().info()["redis_version"] >= "7.2":
        uploader.submit(names[1], durable=True)
    else:
        with pytest.raises(UsageError, match=r"Redis 7\.2"):
            uploader.submit(names[1], durable=True)


def test_a_worker_does_all_of_its_work(guarded: Guarded) -> None:
    """Celery's messages, bans, the breaker, retries, dead letters: nothing it does is refused."""
    client = guarded.as_role("worker")
    names = [guarded.add(f"risked{number}", "risked") for number in range(4)]
    with Celery(broker=guarded.server.url) as sender:
        sender.send_task("moderation.moderate", [names], queue="moderation")
        found = client.wait(names, 60)
        assert sender.control.inspect(timeout=5).ping()
    assert [sum(document.ban for document in found.values()), exporter.read(client.redis).breaker.withheld] == [2, 2]
    client.submit("missing")
    assert client.wait("missing", 60)["missing"].reasons == ("not_found",)
    guarded.server.client().xadd(bus.UPLOADS, {"content_id": "../malformed"})
    wait_until(lambda: client.redis.xlen(bus.DEAD_LETTER) >= 1, "the malformed entry to be buried")
    assert "may not do that" not in guarded.worker.log() and "NOPERM" not in guarded.worker.log()


def test_a_moderator_corrects_and_sees_to_breaker_and_dead_letters(guarded: Guarded) -> None:
    """By the commands, as a person would."""
    admin = guarded.server.client()
    name = guarded.add("to-correct")
    guarded.as_role("uploader").submit(name)
    guarded.as_role("moderator").wait(name, 60)
    assert guarded.run("moderator", "correct", name, "risked", "--by", "ann").returncode == 0
    wait_until(lambda: guarded.as_role("uploader").verdict(name).ban, "the correction")
    admin.hset(bus.WITHHELD, "#opened", '{"at": "2026-11-24T00:00:00.000Z", "bans": 3, "decided": 9}')
    admin.hset(bus.WITHHELD, "no-ban-of-ours", "x")
    said = guarded.run("moderator", "breaker", "status", "--ids").stdout
    assert said.startswith("open since") and "no-ban-of-ours" in said.splitlines()
    assert guarded.run("moderator", "breaker", "close", "--apply").stdout.startswith("closed")
    for command in ("replay", "drop"):
        letter = admin.xadd(bus.DEAD_LETTER, {"content_id": name, "reason": "killed_its_worker", "stream": bus.UPLOADS})
        done = guarded.run("moderator", "dead-letter", command, letter.decode())
        assert done.returncode == 0, done.stderr
    assert guarded.run("moderator", "dead-letter", "list").returncode == 0


def test_dashboards_and_trainers_read_what_they_need(guarded: Guarded) -> None:
    """The exporter's figures and `status`; the corrections."""
    dashboard = guarded.as_role("dashboard").redis
    assert b"moderation_waiting" in generate_latest(exporter.registry(dashboard))
    assert exporter.problem(dashboard) is None
    assert guarded.run("dashboard", "status").returncode == 0
    guarded.as_role("moderator").correct("for-the-trainer", "approved", by="ann")
    assert "for-the-trainer" in {correction.content_id for correction in guarded.as_role("trainer").corrections()}


FORGED_VERDICT = "redis.call('SET', KEYS[1], 'x')"


def test_a_moderator_takes_no_decision_back_by_a_script(guarded: Guarded) -> None:
    """Overrides are among the keys that its scripts may name, and no more: HDEL is for withheld bans only."""
    admin, moderator = guarded.server.client(), guarded.server.client("moderator")
    admin.hset(bus.OVERRIDES, "decided", "by a person")
    admin.hset(bus.WITHHELD, "held", "a ban")
    take = moderator.script_load("return redis.call('HDEL', KEYS[1], ARGV[1])")
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|can.t access"):
        moderator.evalsha(take, 1, bus.OVERRIDES, "decided")
    assert admin.hexists(bus.OVERRIDES, "decided")
    assert moderator.evalsha(take, 1, bus.WITHHELD, "held") == 1
    admin.delete(bus.OVERRIDES)


@pytest.mark.parametrize("role", ["uploader", "dashboard", "trainer"])
def test_a_script_is_no_way_around(guarded: Guarded, role: str) -> None:
    """What a script does counts as done by whoever runs it."""
    digest = guarded.server.client().script_load(FORGED_VERDICT)
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission"):
        guarded.server.client(role).evalsha(digest, 1, "moderation:verdict:x")
    assert guarded.server.client().get("moderation:verdict:x") is None


def test_without_a_password_nothing(guarded: Guarded) -> None:
    """The default user is off, and a refused login is one sentence without the password."""
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=guarded.server.port).ping()
    wrong = guarded.server.url_of("uploader").replace("uploader%3A", "geheim")
    with pytest.raises(UsageError, match="refuses the user or password") as refused:
        Moderation(wrong).submit("x")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("program", [valkey, debian_redis], ids=["valkey", "redis"])
def test_a_role_reaches_it_from_another_machine(program: Callable[[], str], tmp_path: Path) -> None:
    """Through an address that is not loopback's, where servers as they are distributed keep everybody out for as long
    as the default user needs no password, off or not. Without a password there is still nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which address it would be sent from
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        address = probe.getsockname()[0]
    with GuardedServer(tmp_path, program(), also=address) as server:
        for role in ROLES:
            assert redis.Redis.from_url(server.url_of(role).replace("127.0.0.1", address)).ping()
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(address, server.port).ping()


def test_no_password_in_what_a_worker_says(guarded: Guarded) -> None:
    """After all of the above, refusals and dead letters among it: neither its log nor its metrics holds one."""
    said = guarded.worker.log() + guarded.worker.get("/metrics")[1]
    assert "127.0.0.1" in said, "the server is named, or this proves little"
    for piece in ("p@ss", "p%40ss", "w\u00f6rd", "w%C3%B6rd", "w\\xf6rd"):
        assert piece not in said


@pytest.mark.parametrize("words", [("submit", "x"), ("breaker", "close", "--apply"), ("breaker", "close", "--discard")])
def test_a_role_that_may_not_is_told_so(guarded: Guarded, words: tuple[str, ...]) -> None:
    """One sentence that says where to look; also in a drill, while the breaker is closed."""
    guarded.server.client().delete(bus.WITHHELD)
    done = guarded.run("dashboard", *words)
    assert done.returncode == 2
    assert done.stderr == "error: This Redis user may not do that; see the ACL in deploy/redis.\n"


def test_tls_end_to_end(tmp_path: Path) -> None:
    """Client, worker and Celery speak TLS and check the certificate; a server that cannot show one is not talked to."""
    tls = tmp_path / "tls"
    tls.mkdir()
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(tls / "key.pem")]
    command = ["openssl", "req", "-x509", "-days", "2", *key, *subject, "-out", str(tls / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    (tls / "ca.pem").write_bytes((tls / "cert.pem").read_bytes())
    for guarded in start(tmp_path, debian_redis(), tls):
        name = guarded.add("over-tls")
        with Celery(broker=f"{guarded.server.url}&ssl_cert_reqs=required") as sender:
            sender.send_task("moderation.moderate", [[name]], queue="moderation")
            assert guarded.as_role("uploader").wait(name, 60)[name].label == "approved"
        unchecked = guarded.server.url_of("uploader").partition("?")[0]
        with pytest.raises(UnavailableError, match="certificate is not trusted"):
            Moderation(unchecked).submit("x")
