"""Content stores that are large, late, lying or gone, over real HTTP, and IDs that try to leave the folder."""

import asyncio
import builtins
import gzip
import http.client
import inspect
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import fsspec
import fsspec.exceptions
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.worker import free_port
from worker.content import ContentStore
from worker.errors import ContentError, UsageError

MEGABYTE = 2**20
PICTURE = bytes(range(256)) * (3 * MEGABYTE // 256)
BOMB = gzip.compress(bytes(300 * MEGABYTE), 1)


class Server(ThreadingHTTPServer):
    """Serves one picture of 3 MB in many ways, by name; knows no ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.sent = 0
        self.release = threading.Event()

    def store(self, **changes: object) -> ContentStore:
        """A content store on this server."""
        options: dict[str, object] = {"max_bytes": 4 * MEGABYTE, "timeout_s": 20.0}
        url = f"http://127.0.0.1:{self.server_port}/pictures/{{content_id}}?size=full"
        return ContentStore(url, **options | changes)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up in the middle is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    """The name says how."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        """Counted: no store should ask twice."""
        self.server.requests.append(f"HEAD {self.path}")
        self.send_error(405)

    def do_GET(self) -> None:
        """See `serve`."""
        self.server.requests.append(f"GET {self.path}")
        name = self.path.split("/")[-1].partition("?")[0]
        if name.isdigit():
            self.send_error(int(name))
        elif name == "signed" and self.headers["Authorization"] != "sesame":
            self.send_error(401)
        else:
            self.serve(name)

    def serve(self, name: str) -> None:
        """The picture, told to be longer or shorter than it is, without a length, late, or endless."""
        lengths = {"whole": len(PICTURE), "cut": 2 * len(PICTURE), "longer": 1000, "late": len(PICTURE)}
        self.send_response(200)
        if name == "bomb":
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(BOMB)))
        elif name in lengths:
            self.send_header("Content-Length", str(lengths[name]))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if name == "late":
            self.wfile.write(PICTURE[:1000])
            self.server.release.wait(60)
        if name == "bomb":
            self.wfile.write(BOMB)
            return
        while name == "drip":
            self.wfile.write(b"x")
            self.server.release.wait(0.05)
        while True:
            for start in range(0, len(PICTURE), 10_000):
                self.wfile.write(PICTURE[start : start + 10_000])
                self.server.sent += 10_000
            if name != "endless":
                return


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on loopback."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.release.set()
    made.shutdown()
    made.server_close()


def reason(store: ContentStore, content_id: str) -> str:
    """Why there are no bytes."""
    with pytest.raises(ContentError) as raised:
        store.fetch(content_id)
    return raised.value.reason


@pytest.mark.parametrize("name", ["whole", "unknown-length"])
def test_a_large_picture_arrives_whole_over_http(server: Server, name: str) -> None:
    """Every byte of 3 MB that arrive in pieces, with one request and no look before it."""
    assert server.store().fetch(name) == PICTURE
    assert server.requests == [f"GET /pictures/{name}?size=full"]


def test_many_threads_share_one_store(server: Server) -> None:
    """As the fetch threads of a worker do."""
    store = server.store()
    fetched: list[bytes] = []
    threads = [threading.Thread(target=lambda: fetched.append(store.fetch("whole"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert fetched == [PICTURE] * 8


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, "not_found"), (403, "fetch_failed"), (410, "fetch_failed"), (429, "fetch_failed"), (500, "fetch_failed"),
     (502, "fetch_failed"), (503, "fetch_failed")],
)  # fmt: skip
def test_only_404_means_that_there_is_no_such_picture(server: Server, status: int, expected: str) -> None:
    """A server in trouble is tried again for longer than a picture that is missing."""
    assert reason(server.store(), str(status)) == expected


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_away_is_no_missing_picture(scheme: str) -> None:
    """Connections refused, and a name that nobody knows."""
    for host in (f"127.0.0.1:{free_port()}", "no-such-host.invalid"):
        store = ContentStore(f"{scheme}://{host}/{{content_id}}", max_bytes=100, timeout_s=20)
        assert reason(store, "any") == "fetch_failed"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_accepts_and_says_nothing_times_out(scheme: str) -> None:
    """`fetch_failed` after the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/{{content_id}}"
        store = ContentStore(url, max_bytes=9, timeout_s=0.3)
        began = time.monotonic()
        assert reason(store, "any") == "fetch_failed"
        assert time.monotonic() - began < 30


def test_an_s3_that_accepts_and_says_nothing_is_asked_once() -> None:
    """And no longer than the time limit: the intake tries again, and until then others are fetched. With more attempts
    a fetch takes longer than it may before it counts as hung, and a worker whose every fetch hangs is not healthy."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"key": "any", "secret": "any", "endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        store = ContentStore("s3://bucket/{content_id}", max_bytes=9, timeout_s=0.3, options=options)
        began = time.monotonic()
        assert reason(store, "any") == "fetch_failed"
        assert time.monotonic() - began < 30
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_picture_that_stops_half_way_times_out(server: Server) -> None:
    """The limit is on the whole attempt: a server that begins and then dawdles is not waited for."""
    assert reason(server.store(timeout_s=0.5), "late") == "fetch_failed"


def test_a_picture_that_comes_byte_by_byte_times_out(server: Server) -> None:
    """Or it would hold its thread for as long as the server likes, and so would the next."""
    assert reason(server.store(timeout_s=0.5, max_bytes=1000), "drip") == "fetch_failed"


def test_a_local_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    """It may be larger than the memory there is."""
    with open(tmp_path / "huge", "wb") as huge:
        huge.truncate(64 * MEGABYTE)
    store = ContentStore(f"file://{tmp_path}/{{content_id}}", max_bytes=1000, timeout_s=1)
    tracemalloc.start()
    assert reason(store, "huge") == "too_large"
    assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    tracemalloc.stop()


def test_a_length_that_promises_more_than_comes_is_a_failure(server: Server) -> None:
    """Half a picture is never taken for a picture."""
    assert reason(server.store(), "cut") == "fetch_failed"


def test_bytes_beyond_the_promised_length_are_no_part_of_the_picture(server: Server) -> None:
    """They end the answer there, or make it a failure; they are not read on."""
    try:
        assert server.store().fetch("longer") == PICTURE[:1000]
    except ContentError as error:
        assert error.reason == "fetch_failed"


def test_no_more_is_read_than_the_limit_and_a_byte(server: Server) -> None:
    """An endless answer costs the limit and what lies in buffers, and the connection is closed."""
    limit = MEGABYTE
    assert reason(server.store(max_bytes=limit), "endless") == "too_large"
    assert server.sent < limit + 20 * MEGABYTE


def test_a_picture_of_exactly_the_limit_is_read(server: Server) -> None:
    """One byte less allowed, and it is too large."""
    assert server.store(max_bytes=len(PICTURE)).fetch("whole") == PICTURE
    assert reason(server.store(max_bytes=len(PICTURE) - 1), "whole") == "too_large"


def test_a_compressed_answer_counts_as_what_it_unpacks_to(server: Server) -> None:
    """1 MB of gzip that unpacks to 300 is too large, not 300 MB of memory."""
    assert reason(server.store(), "bomb") == "too_large"


def test_options_do_not_push_out_the_time_limit(server: Server) -> None:
    """Own client options, such as headers, stand beside the time limit, and may replace it."""
    options = {"client_kwargs": {"headers": {"Authorization": "x"}}}
    assert server.store(options=options).fetch("whole") == PICTURE
    assert reason(server.store(timeout_s=0.5, options=options), "late") == "fetch_failed"
    patient = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=60)}}
    threading.Timer(1.0, server.release.set).start()
    assert len(server.store(timeout_s=0.5, options=patient).fetch("late")) == len(PICTURE)


def test_other_options_reach_the_file_system(server: Server) -> None:
    """Such as a store's user and password."""
    signed = server.store(options={"headers": {"Authorization": "sesame"}})
    assert signed.fetch("signed") == PICTURE
    assert reason(server.store(), "signed") == "fetch_failed"


class Faulty(MemoryFileSystem):
    """A file system whose `open` raises what the test says."""

    protocol = "faulty"
    error: BaseException = OSError()

    def _open(self, *args: object, **options: object) -> object:
        raise self.error


def foreign_errors() -> list[type[Exception]]:
    """Every exception class that is not meant to end the program: Python's own, aiohttp's and fsspec's."""
    found: set[type[Exception]] = {type("NobodyKnowsThisError", (Exception,), {})}
    for module in (builtins, asyncio, socket, ssl, http.client, aiohttp, fsspec.exceptions):
        found |= {error for _, error in inspect.getmembers(module, inspect.isclass) if issubclass(error, Exception)}
    return sorted(found - {ExceptionGroup}, key=lambda error: error.__name__)


def test_every_foreign_error_ends_as_a_content_error() -> None:
    """Whatever a file system raises, it is this picture's ContentError, to be tried again, and one sentence."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    store = ContentStore("faulty://x/{content_id}", max_bytes=100, timeout_s=1)
    for foreign in foreign_errors():
        Faulty.error = foreign.__new__(foreign)
        with pytest.raises(ContentError) as raised:
            store.fetch("any")
        missing = issubclass(foreign, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        assert raised.value.reason == ("not_found" if missing else "fetch_failed"), foreign
        assert foreign.__name__ in raised.value.detail
        assert raised.value.detail.endswith(".")


def test_ctrl_c_is_not_swallowed() -> None:
    """What is meant to end the program ends it."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    store = ContentStore("faulty://x/{content_id}", max_bytes=100, timeout_s=1)
    Faulty.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        store.fetch("any")


@settings(deadline=None)
@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True))
def test_a_content_id_cannot_leave_the_folder(tmp_path_factory: pytest.TempPathFactory, content_id: str) -> None:
    """A well-formed ID names a file right in the folder, and no other."""
    folder = tmp_path_factory.getbasetemp() / "folder"
    folder.mkdir(exist_ok=True)
    store = ContentStore(f"file://{folder}/{{content_id}}", max_bytes=100, timeout_s=1)
    (folder / content_id).write_bytes(content_id.encode()[:100])
    try:
        assert store.fetch(content_id) == content_id.encode()[:100]
    finally:
        (folder / content_id).unlink()
    assert reason(store, content_id) == "not_found"


def test_the_id_may_stand_anywhere_in_the_url(tmp_path: Path) -> None:
    """As a folder's name, with the file's own after it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "original.jpg").write_bytes(b"bytes")
    store = ContentStore(f"file://{tmp_path}/{{content_id}}/original.jpg", max_bytes=100, timeout_s=1)
    assert store.fetch("one") == b"bytes"
    (tmp_path / "two").write_bytes(b"a file where a folder should be")
    assert reason(store, "two") == "not_found"
    assert reason(store, "three") == "not_found"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://127.0.0.1/{content_id}", {"client_kwargs": 5}),
        ("zip:///no/such/archive.zip/{content_id}", {}),
        ("ftp://127.0.0.1:1/{content_id}", {}),
        ("dir://x/{content_id}", {}),
        ("simplecache::nonsense://x/{content_id}", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_a_file_system_says_when_it_is_made_is_one_sentence(url: str, options: dict[str, object]) -> None:
    """UsageError that names the variable, not a traceback out of a third party's package."""
    with pytest.raises(UsageError, match="MODERATION_CONTENT_URL"):
        ContentStore(url, max_bytes=100, timeout_s=1, options=options)
