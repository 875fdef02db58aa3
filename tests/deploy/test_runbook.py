"""deploy/README.md: every alert has its section, every link leads somewhere, and what it tells people to type works."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.guarded import GuardedServer, valkey
from tests.support.place import Place
from tests.support.store import publish_colours
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, WorkerProcess
from worker.client import Moderation

RUNBOOK = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """What a link into a page may name after its #."""
    headings = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


ANCHORS = anchors(RUNBOOK)
AT_ONCE = Retry(NoBackoff(), 0)
RULES = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules" / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_section(alert: dict[str, str | dict[str, str]]) -> None:
    """Where its link leads, and it says what it means, what to check and what to do."""
    anchor = alert["annotations"]["runbook_url"].partition("#")[2]
    assert anchor in ANCHORS
    section = RUNBOOK.partition(f"### {alert['alert']}\n")[2].partition("\n#")[0]
    for word in ("**Means** ", "**Check** ", "**Do** "):
        assert section.count(word) == 1, word


def test_no_section_is_of_an_alert_that_is_no_more() -> None:
    sections = re.findall(r"^### (.*)$", RUNBOOK.partition("## Alerts")[2], re.M)
    assert sections == [rule["alert"] for rule in sorted(ALERTS, key=lambda r: sections.index(r["alert"]))]


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]*)\)", RUNBOOK):
        if target.startswith("#"):
            assert target[1:] in ANCHORS, target
        elif not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (REPOSITORY / "deploy" / path).exists(), target
            assert not anchor or anchor in anchors((REPOSITORY / "deploy" / path).read_text()), target


def test_the_commands_it_names_exist() -> None:
    """Every `moderation …` and `moderation-trainer …` of the text, as far as its subcommands and options."""
    for program, module in (("moderation", "worker.cli"), ("moderation-trainer", "trainer.cli")):
        for words in sorted(set(re.findall(rf"`{program} ([^`]+)`", RUNBOOK))):
            named = [word for word in words.split() if re.fullmatch(r"[a-z][a-z-]+", word)]
            command = [sys.executable, "-m", module, *named, "--help"]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (words, done.stderr)
            assert all(word.split("=")[0] in done.stdout for word in words.split() if word.startswith("--")), words


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Secured"]:
    """A place whose Redis wants a password of the user `worker`, and a worker that knows it."""
    with Place(tmp_path_factory.mktemp("secured")) as place:
        made = Secured(place)
        yield made
        made.admin.execute_command("ACL", "DELUSER", "worker")


class Secured:
    """`admin` is a client that may do everything; `start` starts a worker with a password."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.admin = place.broker.client()
        self.admin.execute_command("ACL", "SETUSER", "worker", "on", ">old", "~*", "&*", "+@all")

    def url(self, password: str) -> str:
        """Redis, as this worker knows it."""
        return f"redis://worker:{password}@127.0.0.1:{self.place.broker.port}/0"

    def start(self, password: str) -> WorkerProcess:
        """A ready worker."""
        return self.place.start_worker(redis_url=self.url(password)).wait_ready()


def test_credentials_rotate_while_uploads_are_judged(secured: Secured) -> None:
    """As the runbook has it: both are good, workers restart with the new one, the old one is good no more."""
    place = secured.place
    first = secured.start("old")
    ids = [place.add() for _ in range(150)]
    place.client.submit(ids)
    secured.admin.execute_command("ACL", "SETUSER", "worker", ">new")
    assert first.stop() == 0
    second = secured.start("new")
    secured.admin.execute_command("ACL", "SETUSER", "worker", "<old")
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(secured.url("old")).ping()
    secured.admin.execute_command("CLIENT", "KILL", "USER", "worker")
    later = place.add()
    place.client.submit(later)
    assert place.client.wait([*ids, later], 60)[later].label == "approved"
    assert sorted(place.entries()) == sorted([*ids, later])
    assert second.stop() == 0


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedServer]:
    """A server as deploy/redis starts it, its passwords where the runbook has them."""
    with GuardedServer(tmp_path / "redis", valkey()) as server:
        (tmp_path / "deploy").mkdir()
        (tmp_path / "deploy" / "secrets").symlink_to(server.folder / "secrets")
        yield server


def type_in(server: GuardedServer, *blocks: str) -> None:
    """Types blocks of the runbook into one shell, where `redis-cli` finds the server and /srv and /var are a folder."""
    folder = server.folder.parent
    client = tool("redis-cli", "apt-get install redis-tools")
    typed = [f'redis-cli() {{ {client} -p {server.port} "$@"; }}', *blocks]
    script = (
        "\n".join(typed)
        .replace("/var/lib/moderation-redis", str(server.folder))
        .replace("/etc/moderation/secrets", "deploy/secrets")
        .replace("/srv/backup", str(folder))
    )
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", (script, done.stdout, done.stderr)
    assert not re.search("ERR|NOAUTH|WRONGPASS|NOPERM", done.stdout), done.stdout


def test_passwords_rotate_as_the_runbook_says_though_redis_restarts(guarded: GuardedServer) -> None:
    """Its own commands: both passwords are good, before and after a restart, until the first one is taken away."""
    first, second = blocks_of("Rotate credentials")
    file = guarded.folder / "secrets" / "worker"
    type_in(guarded, first)
    old, new = file.read_text().splitlines()

    def good() -> tuple[bool, bool]:
        return logs_in(guarded, old), logs_in(guarded, new)

    assert good() == (True, True)
    guarded.stop()
    guarded.start()
    assert good() == (True, True)
    definition = next(line for line in first.splitlines() if line.startswith("sum()"))
    type_in(guarded, *first.splitlines()[:2], definition, second)
    assert good() == (False, True)
    guarded.stop()
    guarded.start()
    assert good() == (False, True) and not logs_in(guarded, "")


def test_what_a_version_decided_is_judged_again_as_the_runbook_says(tmp_path: Path) -> None:
    """Its own commands find the IDs, of a version and of a reason, and a rescan of them ends where nothing changed."""
    by_version, by_reason, submit = blocks_of("Judge again")
    with Place(tmp_path) as place:
        worker = place.start_worker(not_found_retry_s="0").wait_ready()
        first, bad = [place.add() for _ in range(3)], [place.add(label="risked") for _ in range(2)]
        place.judge([*first, "gone"])
        publish_colours(place.store, sharpness=5.0, promote=True)
        version = place.store.champion() or ""
        wait_until(lambda: worker.metric("moderation_weights_info", weights=version) == 1, "the next version")
        place.judge(bad)
        place.client.correct(first[0], "risked", by="ann")
        wait_until(lambda: len(place.entries()) == 7, "the correction")

        def typed(block: str) -> list[str]:
            desk = f'desk() {{ shift; {sys.executable} -m worker.cli "$@"; }}\ncd {tmp_path}\n'
            environment = os.environ | {"MODERATION_REDIS_URL": place.broker.url, "PYTHONPATH": str(REPOSITORY)}
            subprocess.run(["bash", "-euc", desk + block], env=environment, check=True, timeout=60)
            return (tmp_path / "ids").read_text().split()

        assert typed(by_reason.replace("REASON", "not_found")) == ["gone"]
        assert typed(by_version.replace("VERSION", version)) == sorted(bad)
        typed(submit)
        wait_until(lambda: worker.metric("moderation_unchanged_total") == 2, "the rescans")
        assert len(place.entries()) == 7


def test_the_keys_are_removed_as_the_runbook_says(guarded: GuardedServer) -> None:
    """All of ours, and nobody else's."""
    (remove,) = blocks_of("Remove")
    Moderation(redis_url=guarded.url_of("uploader")).submit(["one", "two"], backfill=True)
    Moderation(redis_url=guarded.url_of("moderator")).correct("three", "risked", by="ann")
    with Celery(broker=guarded.url_of("worker")) as sender:
        for priority in (0, 9):
            sender.send_task("moderation.moderate", [["four"]], queue="moderation", priority=priority)
    raw = guarded.client()
    assert raw.exists("moderation") and raw.exists("_kombu.binding.moderation")
    raw.mset({"others": 1, "moderation_of_somebody": 1, "moderations": 1})
    type_in(guarded, remove)
    assert set(raw.keys()) - {b"_kombu.binding_deadlines"} == {b"others", b"moderation_of_somebody", b"moderations"}


def blocks_of(heading: str) -> list[str]:
    """The commands of a section, block by block."""
    section = RUNBOOK.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.M | re.S)


def logs_in(server: GuardedServer, password: str) -> bool:
    """As the role `worker`."""
    try:
        return bool(redis.Redis(port=server.port, username="worker", password=password, retry=AT_ONCE).ping())
    except redis.AuthenticationError:
        return False


def test_a_backup_is_restored_as_the_runbook_says(guarded: GuardedServer) -> None:
    """Its own commands, while the server rewrites its file; what waited and what people decided is there again."""
    backup, restore = blocks_of("Back up and restore")
    Moderation(redis_url=guarded.url_of("uploader")).submit(["one", "two"])
    Moderation(redis_url=guarded.url_of("moderator")).correct("three", "risked", by="ann")
    raw = guarded.client()
    before = {stream: raw.xrange(stream) for stream in ("moderation:uploads", "moderation:corrections")}
    raw.config_set("auto-aof-rewrite-percentage", "80")
    raw.bgrewriteaof()
    type_in(guarded, backup)
    assert raw.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "80"}
    raw.flushall()
    guarded.stop()
    (copy,) = guarded.folder.parent.glob("redis-*")
    here = restore.replace("redis:redis", f"{os.getuid()}:{os.getgid()}")
    type_in(guarded, re.sub(r"redis-20[0-9T-]+", copy.name, here))
    guarded.start()
    assert {stream: raw.xrange(stream) for stream in before} == before
    assert all(before.values())
