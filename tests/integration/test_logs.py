"""The log of a real worker and exporter: JSON lines on request, a line a batch, and no secrets or pictures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, free_port
from worker.client import Moderation

PASSWORD = "horse-battery-staple"
# Written straight to the terminal by its signal handler, past every logger.
CELERYS_OWN = "\nworker: Warm shutdown (MainProcess)\n"
WORKER = "import tests.support.tiny_app; from worker.cli import main; main()"


def test_debug_is_for_what_is_ours() -> None:
    """A library's lines may hold a store's session tokens and signatures."""
    script = (
        "import logging; from worker import logs; logs.set_up('DEBUG', 'text'); "
        "print([logging.getLogger(name).isEnabledFor(logging.DEBUG) for name in ('worker.intake', 'botocore.auth')])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[True, False]\n", done.stderr


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """All that a `moderation worker` writes, to both outputs, while it judges 40 pictures and is stopped."""
    with Place(tmp_path_factory.mktemp("logs")) as place:
        place.broker.client().config_set("requirepass", PASSWORD)
        url = f"redis://:{PASSWORD}@127.0.0.1:{place.broker.port}/0"
        log = place.folder / "worker.log"
        process = start(log, [sys.executable, "-c", WORKER, "worker"], place, url, not_found_retry_s="0")
        client = Moderation(url)
        ids = [place.add() for _ in range(38)] + [place.add(b"no picture at all"), "absent"]
        client.submit(ids)
        client.wait(ids, 60)
        process.terminate()
        assert process.wait(60) == 0
        client.redis.config_set("requirepass", "")  # as the fixture that stops it knows it
        client.close()
        text = log.read_text()
        assert PASSWORD not in text
        yield [json.loads(line) for line in text.replace(CELERYS_OWN, "").splitlines()]


def start(log: Path, command: list[str], place: Place, url: str, **settings: str) -> "subprocess.Popen[bytes]":
    """A process with a JSON log; every byte it writes goes to the file."""
    environment = os.environ | {
        "MODERATION_REDIS_URL": url,
        "MODERATION_WEIGHTS_DIR": str(place.weights),
        "MODERATION_CONTENT_URL": f"file://{place.content}/{{content_id}}",
        "MODERATION_METRICS_PORT": "0",
        "MODERATION_DEVICE": "cpu",
        "MODERATION_LOG_FORMAT": "json",
        **{f"MODERATION_{name.upper()}": value for name, value in settings.items()},
    }
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)


def test_every_line_is_a_json_object_with_time_level_and_logger(said: list[dict[str, Any]]) -> None:
    assert len(said) > 3
    for line in said:
        assert {"time", "level", "logger", "message"} <= line.keys()
    assert all(line["time"].endswith("+00:00") for line in said)


def test_there_is_a_line_a_claim_and_not_one_a_picture(said: list[dict[str, Any]]) -> None:
    claims = [line for line in said if line["message"].startswith("claimed")]
    published = [line for line in said if line["message"].startswith("published")]
    assert sum(len(line["content_ids"]) for line in claims) == 40
    assert sum(len(line["content_ids"]) for line in published) == 40
    assert len(claims) < 40  # how many are claimed together depends on the machine, but the first claim is of several
    assert not [line for line in said if line["level"] == "INFO" and " is undecided" in line["message"]]


def test_what_is_undecided_is_named_with_its_reason(said: list[dict[str, Any]]) -> None:
    undecided: dict[str, str] = {}
    for line in said:
        undecided |= line.get("undecided", {})
    assert sorted(undecided.values()) == ["not_found", "unsupported_format"]
    assert undecided["absent"] == "not_found"


def test_no_line_holds_bytes_of_a_picture(said: list[dict[str, Any]]) -> None:
    text = json.dumps(said)
    assert "no picture at all" not in text and "JFIF" not in text and "\\ufffd" not in text


def test_the_exporter_speaks_json_too(place: Place) -> None:
    log = place.folder / "exporter.log"
    command = [sys.executable, "-m", "worker.cli", "exporter", "--port", str(free_port())]
    process = start(log, command, place, place.broker.url)
    try:
        wait_until(lambda: log.read_text(), "the exporter's first line")
        assert json.loads(log.read_text().splitlines()[0])["message"].startswith("serving http://127.0.0.1:")
    finally:
        process.terminate()
        assert process.wait(30) == 0
