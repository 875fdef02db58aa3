"""Fetching bytes: bounded, and every fault of a store is ContentError or one sentence."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from worker.content import TRANSLATIONS, ContentStore
from worker.errors import ContentError, UsageError

LIMIT = 1000


def store(url: str) -> ContentStore:
    """A store with a small limit."""
    return ContentStore(url, max_bytes=LIMIT, timeout_s=1.0)


def reason(content: ContentStore, content_id: str) -> str:
    """Why it cannot be fetched."""
    with pytest.raises(ContentError) as caught:
        content.fetch(content_id)
    return caught.value.reason


class _Handler(BaseHTTPRequestHandler):
    sent = 0

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name in ("404", "403", "500"):
            self.send_error(int(name))
            return
        self.send_response(200)
        if name == "honest":
            self.send_header("Content-Length", "5")
        self.end_headers()
        if name == "slow":
            time.sleep(3)
        try:
            for _ in range(20_000 if name == "endless" else 1):
                self.wfile.write(b"x" * 100_000 if name == "endless" else b"hello")
                _Handler.sent += 1
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def http() -> Iterator[ContentStore]:
    """A store behind a real HTTP server that knows no ranges."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield store(f"http://127.0.0.1:{server.server_port}/{{content_id}}")
    server.shutdown()


def test_a_local_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """The limit itself is allowed, a byte more is too_large."""
    content = store(f"file://{tmp_path}/{{content_id}}")
    (tmp_path / "fits").write_bytes(b"x" * LIMIT)
    (tmp_path / "more").write_bytes(b"x" * (LIMIT + 1))
    (tmp_path / "folder").mkdir()
    assert content.fetch("fits") == b"x" * LIMIT
    assert reason(content, "more") == "too_large"
    assert reason(content, "missing") == "not_found"
    assert reason(content, "folder") == "not_found"


def test_a_local_folder_that_vanishes_says_nothing_about_pictures(tmp_path: Path) -> None:
    """They would be given up as not there within seconds; a store that fails is tried for an hour."""
    folder = tmp_path / "mounted"
    (folder / "ab").mkdir(parents=True)
    content = store(f"file://{folder}/{{content_id}}/full.jpg")
    assert reason(content, "ab") == "not_found"
    folder.rename(tmp_path / "elsewhere")
    assert reason(content, "ab") == "fetch_failed"
    (tmp_path / "elsewhere" / "ab" / "full.jpg").write_bytes(b"x")
    (tmp_path / "elsewhere").rename(folder)
    assert content.fetch("ab") == b"x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("404", "not_found"), ("403", "fetch_failed"), ("500", "fetch_failed"), ("slow", "fetch_failed")],
)
def test_faults_over_http_have_their_reasons(http: ContentStore, name: str, expected: str) -> None:
    """What is missing is not_found, whatever else goes wrong is fetch_failed."""
    assert reason(http, name) == expected


def test_over_http_with_and_without_a_length(http: ContentStore) -> None:
    """Both are read whole."""
    assert http.fetch("honest") == http.fetch("nolength") == b"hello"


def test_an_endless_answer_is_cut_off(http: ContentStore) -> None:
    """Of 2 GB only little is sent before the connection is closed."""
    assert reason(http, "endless") == "too_large"
    assert _Handler.sent < 1000


def test_any_file_system_will_do() -> None:
    """One in memory, for example."""
    fsspec.filesystem("memory").pipe("/pictures/one", b"bytes")
    assert store("memory://pictures/{content_id}").fetch("one") == b"bytes"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("file:///no/such/folder/{content_id}", "content folder"),
        ("nonsense://x/{content_id}", "cannot be used"),
        ("gcs://bucket/{content_id}", "not installed"),
    ],
)
def test_a_store_that_cannot_be_is_refused(url: str, sentence: str) -> None:
    """One sentence, when the store is made."""
    with pytest.raises(UsageError, match=sentence):
        store(url)


@pytest.mark.parametrize("url", ["ftp://user:geheim/2@127.0.0.1:1/{content_id}", "hdfs://user:geheim@x:y/{content_id}"])
def test_a_password_in_the_url_is_never_told(url: str) -> None:
    """What is wrong with it may be said by quoting it."""
    with pytest.raises(UsageError) as refused:
        store(url)
    assert "geheim" not in str(refused.value) and refused.value.__cause__ is None


def test_the_translations_are_complete() -> None:
    """The last row takes everything that the rows before it do not."""
    assert TRANSLATIONS[-1][0] is Exception
    assert {row[1] for row in TRANSLATIONS} == {"not_found", "fetch_failed"}
