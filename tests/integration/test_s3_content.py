"""Pictures in an S3 bucket: a real worker, s3fs, and moto's S3 server on loopback."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import WorkerProcess, free_port

BUCKET, SECRET = "pictures", "wJalrXUtnFEMI-K7MDENG"
MAX_BYTES = 200_000


@dataclass
class Bucket:
    """A worker whose content lies in S3; `server` may be stopped and started, its objects stay."""

    place: Place
    worker: WorkerProcess
    files: s3fs.S3FileSystem
    port: int
    server: ThreadedMotoServer

    def put(self, content_id: str, data: bytes) -> None:
        """An object."""
        self.files.pipe_file(f"{BUCKET}/{content_id}", data)

    def restart(self) -> None:
        """On the same port."""
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """One worker for all tests here."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    options = {"key": "AKIAEXAMPLE", "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}
    files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    files.mkdir(BUCKET)
    with Place(tmp_path_factory.mktemp("s3")) as place:
        worker = place.start_worker(
            content_url=f"s3://{BUCKET}/{{content_id}}",
            content_options=json.dumps(options),
            content_max_bytes=str(MAX_BYTES),
            fetch_timeout_s="2",
        ).wait_ready()
        made = Bucket(place, worker, files, port, server)
        yield made
        made.server.stop()


def test_pictures_are_judged_from_the_bucket(bucket: Bucket) -> None:
    """Each by its own bytes."""
    pictures = {f"s3-{label}": picture(label) for label in ("approved", "not_suitable", "risked")}
    for content_id, data in pictures.items():
        bucket.put(content_id, data)
    for content_id, document in bucket.place.judge(pictures).items():
        assert document.label == content_id.removeprefix("s3-")
        assert document.content_sha256 == hashlib.sha256(pictures[content_id]).hexdigest()


def test_an_object_that_appears_later_is_judged(bucket: Bucket) -> None:
    """That it was not there is not remembered."""
    bucket.place.client.submit("s3-late")
    wait_until(lambda: bucket.place.broker.client().zcard("moderation:retry") == 1, "the next attempt to wait")
    bucket.put("s3-late", picture("approved"))
    assert bucket.place.client.wait("s3-late", 30)["s3-late"].label == "approved"


def test_an_object_that_is_too_large_is_not_fetched_whole(bucket: Bucket) -> None:
    bucket.put("s3-large", bytes(MAX_BYTES + 1))
    assert bucket.place.judge("s3-large")["s3-large"].reasons == ("too_large",)


def test_a_server_that_goes_away_costs_nothing(bucket: Bucket) -> None:
    """What is submitted meanwhile waits, and is judged once it is back."""
    ids = [f"s3-away-{i}" for i in range(5)]
    for content_id in ids:
        bucket.put(content_id, picture("not_suitable"))
    bucket.server.stop()
    bucket.place.client.submit(ids)
    raw = bucket.place.broker.client()
    wait_until(lambda: raw.zcard("moderation:retry") == len(ids), "all of them to wait for another attempt", 60)
    assert raw.xlen("moderation:uploads") == 0
    bucket.restart()
    assert {document.label for document in bucket.place.client.wait(ids, 90).values()} == {"not_suitable"}


def test_the_secret_is_in_no_log(bucket: Bucket) -> None:
    """Whatever went wrong before."""
    assert SECRET not in bucket.worker.log()
