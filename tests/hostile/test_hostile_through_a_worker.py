"""Whatever file is thrown at a running worker ends as a verdict, and the worker lives."""

from pathlib import Path

from tests.support.place import Place
from worker.errors import UNDECIDED_REASONS


def test_every_hostile_file_ends_as_a_verdict(busy_place: Place, shared_data: Path) -> None:
    """All odd, truncated, broken, exploding and fuzz-found files, with healthy pictures between them."""
    hostile = {busy_place.add(path.read_bytes()): path.name for path in sorted((shared_data / "hostile").iterdir())}
    healthy = [busy_place.add(label="approved") for _ in range(40)]
    worker = busy_place.workers[0]
    process = worker.process.pid
    found = busy_place.judge([*hostile, *healthy], timeout_s=240)
    assert len(found) == len(hostile) + len(healthy)
    assert {found[content_id].label for content_id in healthy} == {"approved"}
    for content_id, name in hostile.items():
        document = found[content_id]
        if document.status == "undecided":
            assert document.reasons[0] in UNDECIDED_REASONS and document.review, name
    undecided = sum(found[content_id].status == "undecided" for content_id in hostile)
    assert 100 < undecided < len(hostile) - 100, "some are pictures and some are not, or this proves little"
    assert worker.process.poll() is None and worker.process.pid == process
    assert worker.get("/healthz")[0] == 200
    entries = busy_place.entries()
    assert len(entries) == len(set(entries)) == len(found)
    assert busy_place.broker.client().xlen("moderation:dead-letter") == 0
