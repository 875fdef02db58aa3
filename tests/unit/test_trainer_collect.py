"""Decisions in, labelled pictures on disk out: with real decoders and a real content folder."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.pictures import animation, picture
from trainer import ledger
from trainer.collect import BLOCK, Collector, part_of
from trainer.decoding import decoder_pool
from trainer.errors import DataError
from trainer.ledger import Decision, Ledger
from trainer.progress import Reporter
from trainer.results import EMPTY_FROM
from worker.content import ContentStore
from worker.decode import DecoderPool
from worker.errors import ContentError, UnavailableError, UndecidedReason, UsageError
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded

SIZE = (24, 20)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    with decoder_pool(Preprocessing()) as pool:
        yield pool


class Scene:
    """A content folder, a data set, and the decisions made so far."""

    def __init__(self, folder: Path, decoders: DecoderPool) -> None:
        self.data, self.content = folder / "data", folder / "content"
        self.decoders: DecoderPool | BusyDecoders = decoders
        self.content.mkdir()
        self.decisions: list[Decision] = []

    def decide(self, content_id: str, label: str, data: bytes | None = None, *, sha256: str | None = None) -> bytes:
        """A decision on a picture, whose bytes go into the content folder unless they are none."""
        made = picture(label, size=SIZE) if data is None else data
        if made:
            (self.content / content_id).write_bytes(made)
        number = f"{1000 + len(self.decisions)}-0"
        self.decisions.append(Decision(correction=number, content_id=content_id, label=label, sha256=sha256))
        return made

    def after(self, cursor: str) -> Iterator[Decision]:
        """As the stream: what is later than the cursor."""
        return iter([one for one in self.decisions if ledger.entry(one.correction) > ledger.entry(cursor)])

    def collect(self, test_share: float = 0.0, results: Counter | None = None) -> dict[str, int]:
        """One run; how many became what, also in `results`, where it raises."""
        store = ContentStore(f"file://{self.content}/{{content_id}}", max_bytes=10**6, timeout_s=5)
        results = Counter() if results is None else results
        Collector(self.data, store, lambda: nullcontext(self.decoders), Reporter(), 4, test_share).collect(
            self.after, results
        )
        return dict(results)

    def files(self) -> list[str]:
        """All there is in the label folders."""
        return sorted(str(path.relative_to(self.data)) for path in self.data.rglob("interim/*/*") if path.is_file())

    def left_out(self) -> list[tuple[str, str]]:
        """(content ID, reason) of the log."""
        lines = (self.data / ledger.LEFT_OUT_FILE).read_text().splitlines()
        return [(entry["content_id"], entry["reason"]) for entry in map(json.loads, lines)]


@pytest.fixture
def scene(tmp_path: Path, decoders: DecoderPool) -> Scene:
    return Scene(tmp_path, decoders)


def test_a_labels_folder_may_lie_on_another_file_system(scene: Scene) -> None:
    """Such as that of risked pictures on an encrypted volume: a picture is moved there and back again."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == scene.content.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        folder = scene.data / "train" / "interim"
        folder.mkdir(parents=True)
        (folder / "risked").symlink_to(elsewhere)
        data = scene.decide("a", "approved")
        scene.collect()
        for label in ("risked", "approved"):
            scene.decide("a", label, b"", sha256=digest_of(data))
            assert scene.collect() == {"moved": 1}
            assert scene.files() == [f"train/interim/{label}/a.jpg"]
            assert (folder / label / "a.jpg").read_bytes() == data


def test_a_picture_lies_under_its_label_with_the_suffix_of_what_it_is(scene: Scene) -> None:
    """Whatever the upload was called; the bytes are the content store's."""
    data = scene.decide("a", "approved")
    scene.decide("b", "risked", picture("risked", "PNG", size=SIZE))
    scene.decide("c", "not_suitable", animation(["approved", "risked"]))
    assert scene.collect() == {"added": 3}
    folder = "train/interim"
    assert scene.files() == [f"{folder}/approved/a.jpg", f"{folder}/not_suitable/c.gif", f"{folder}/risked/b.png"]
    assert (scene.data / folder / "approved" / "a.jpg").read_bytes() == data
    assert ledger.read(scene.data).cursor == "1002-0"


def test_collecting_twice_adds_nothing(scene: Scene) -> None:
    """Neither with the cursor nor without: what is in place stays in place, and is not fetched again."""
    scene.decide("a", "approved")
    scene.collect()
    assert scene.collect() == {}
    (scene.data / ledger.FILE).unlink()
    (scene.content / "a").unlink()
    assert scene.collect() == {"unchanged": 1}
    assert scene.files() == ["train/interim/approved/a.jpg"]


def test_a_later_decision_moves_the_picture_without_fetching_it(scene: Scene) -> None:
    data = scene.decide("a", "approved")
    scene.collect()
    scene.decide("a", "risked", b"", sha256=digest_of(data))
    (scene.content / "a").unlink()
    assert scene.collect() == {"moved": 1}
    assert scene.files() == ["train/interim/risked/a.jpg"]


def test_of_two_decisions_collected_at_once_the_later_holds(scene: Scene) -> None:
    scene.decide("a", "approved")
    scene.decide("a", "risked")
    scene.decide("a", "not_suitable")
    assert scene.collect() == {"added": 1}
    assert scene.files() == ["train/interim/not_suitable/a.jpg"]


def test_of_opposite_decisions_on_the_same_bytes_the_latest_holds_for_every_id(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the worker has it: whichever run collects them, and in whatever order the IDs first came."""
    data = scene.decide("a", "approved")
    scene.decide("other", "approved", picture("approved", "PNG", size=SIZE))
    scene.decide("b", "risked", data, sha256=digest_of(data))
    scene.decide("a", "not_suitable", b"", sha256=digest_of(data))
    assert scene.collect() == {"added": 3}
    folder = "train/interim"
    assert scene.files() == [f"{folder}/approved/other.png", *(f"{folder}/not_suitable/{n}.jpg" for n in "ab")]
    scene.decide("c", "risked", data, sha256=digest_of(data))
    capsys.readouterr()
    assert scene.collect() == {"added": 1}
    assert "2 pictures hold the same bytes as one decided on later" in capsys.readouterr().err
    assert scene.files() == [f"{folder}/approved/other.png", *(f"{folder}/risked/{n}.jpg" for n in "abc")]


@pytest.mark.parametrize("late_is_latest", [True, False])
def test_a_decision_that_was_kept_back_labels_the_same_bytes_unless_a_later_one_has(
    late_is_latest: bool, scene: Scene
) -> None:
    """Or they would lie under two labels, and both would be taken out of the training pictures for good."""
    drawn = picture("approved", size=SIZE)
    digest = digest_of(drawn)
    scene.decide("a", "approved", drawn, sha256=digest)
    scene.collect()
    scene.decide("b", "risked", b"", sha256=digest)  # not there yet
    if not late_is_latest:
        scene.decide("c", "not_suitable", drawn, sha256=digest)
    scene.collect()
    scene.decide("other", "approved", picture("risked", size=SIZE))
    (scene.content / "b").write_bytes(drawn)
    assert scene.collect() == {"added": 2}
    label, ids = ("risked", "ab") if late_is_latest else ("not_suitable", "abc")
    assert scene.files() == sorted(
        ["train/interim/approved/other.jpg", *(f"train/interim/{label}/{content_id}.jpg" for content_id in ids)]
    )


def test_a_picture_of_the_same_name_is_never_lost_to_a_decision_on_other_bytes(scene: Scene) -> None:
    """Folders made by hand may hold two pictures of one name; what is decided is another ID."""
    folder = scene.data / "train" / "interim"
    same, different = picture("approved", size=SIZE), picture("risked", size=SIZE)
    for label, content in (("approved", same), ("risked", different)):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.jpg").write_bytes(content)
    scene.decide("a", "risked", same, sha256=digest_of(same))
    assert scene.collect() == {"added": 1}
    assert (folder / "risked" / "1.jpg").read_bytes() == different
    assert (folder / "approved" / "1.jpg").read_bytes() == same


@pytest.mark.parametrize(("first", "then"), [("approved", "risked"), ("risked", "approved")])
def test_a_decision_that_names_no_bytes_takes_its_picture_out_and_no_other(
    first: str, then: str, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been made on what came under the ID since; everybody else who shows the picture keeps the label that
    they were given. Or whoever had a common picture approved could have the next version ban it."""
    common = picture("approved", "PNG", size=SIZE)
    for content_id in ("mine", "other"):
        scene.decide(content_id, first, common, sha256=digest_of(common))
    scene.collect()
    scene.decide("mine", then, picture("risked", "PNG", size=SIZE))
    capsys.readouterr()
    assert scene.collect() == {"doubtful": 1}
    assert scene.files() == [f"train/interim/{first}/other.png"]
    assert scene.left_out() == [("mine", "doubtful")]
    assert "without a SHA-256, otherwise than before" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["collected", "waiting", "new"])
def test_so_it_does_where_the_first_decision_was_not_collected_before(first: str, scene: Scene) -> None:
    """Both in one run, as where all corrections are gone through again, or the picture was not there at first."""
    common = picture("approved", "PNG", size=SIZE)
    scene.decide("mine", "approved", b"" if first == "waiting" else common, sha256=digest_of(common))
    if first != "new":
        scene.collect()
    scene.decide("mine", "risked", common)
    assert scene.collect()["doubtful"] == 1
    assert (scene.files(), ledger.read(scene.data).waiting) == ([], ())


def test_a_decision_that_names_no_bytes_and_agrees_changes_nothing(scene: Scene) -> None:
    """What was decided on stays, and what lies under the ID now is not fetched in its place."""
    data = scene.decide("a", "approved")
    scene.decisions[0] = scene.decisions[0].model_copy(update={"sha256": digest_of(data)})
    scene.collect()
    scene.decide("a", "approved", picture("risked", "PNG", size=SIZE))
    assert scene.collect() == {"unchanged": 1}
    (scene.data / ledger.FILE).unlink()
    (scene.data / "train/interim/approved/a.jpg").unlink()
    assert scene.collect() == {"mismatched": 1}
    assert scene.files() == []


@pytest.mark.parametrize("at_once", [True, False])
def test_a_decision_that_names_no_bytes_is_its_own_ids_alone(at_once: bool, scene: Scene) -> None:
    """Of an ID that is not in the set its picture is learned, but never against a decision on the same bytes, which
    would else lie under two labels and leave the training pictures."""
    common, unlike = picture("approved", "PNG", size=SIZE), picture("risked", "PNG", size=SIZE)
    scene.decide("other", "approved", common, sha256=digest_of(common))
    if not at_once:
        scene.collect()
    scene.decide("mine", "risked", common)
    scene.decide("alone", "risked", unlike)
    scene.collect()
    held = [file for file in scene.files() if not file.endswith("/mine.png")]
    assert held == ["train/interim/approved/other.png", "train/interim/risked/alone.png"]
    assert "train/interim/risked/mine.png" not in scene.files()
    scene.decide("third", "approved", unlike, sha256=digest_of(unlike))
    scene.collect()
    assert {"train/interim/approved/alone.png", "train/interim/approved/third.png"} < set(scene.files())


@pytest.mark.parametrize("named", [True, False])
def test_a_decision_that_was_kept_back_gives_way_to_what_names_its_bytes(named: bool, scene: Scene) -> None:
    """Whichever of the two waited: the later one labels no other ID where it names no bytes, nor does the earlier."""
    common = picture("approved", "PNG", size=SIZE)
    scene.decide("late", "approved", b"", sha256=digest_of(common) if named else None)
    scene.decide("early", "risked", common, sha256=None if named else digest_of(common))
    scene.collect()
    scene.decide("new", "approved")
    (scene.content / "late").write_bytes(common)
    scene.collect()
    label = "approved" if named else "risked"
    held = set(scene.files()) - {"train/interim/approved/new.jpg"}
    assert held and {Path(file).parent.name for file in held} == {label}


def test_going_through_all_again_takes_nothing_out_that_was_decided_on_later(scene: Scene) -> None:
    """The picture may be gone from the content store by now."""
    data = scene.decide("a", "approved")
    for number in range(BLOCK):
        scene.decide(f"none{number}", "approved", b"no picture")
    scene.decide("a", "risked", b"", sha256=digest_of(data))
    scene.collect()
    (scene.data / ledger.FILE).unlink()
    (scene.content / "a").unlink()
    assert scene.collect() == {"unchanged": 2, "unusable": BLOCK}
    assert scene.files() == ["train/interim/risked/a.jpg"]


def test_a_decision_on_other_bytes_replaces_the_picture(scene: Scene) -> None:
    """The ID's content has changed since it was collected, and a person decided on the new one."""
    scene.decide("a", "approved")
    scene.collect()
    data = picture("risked", "PNG", size=SIZE)
    scene.decide("a", "risked", data, sha256=digest_of(data))
    assert scene.collect() == {"replaced": 1}
    assert scene.files() == ["train/interim/risked/a.png"]


def test_bytes_that_nobody_decided_on_are_left_out(scene: Scene) -> None:
    """The content was exchanged after the decision: the label says nothing of what lies there now."""
    scene.decide("a", "risked", sha256="0" * 64)
    assert scene.collect() == {"mismatched": 1}
    assert (scene.files(), scene.left_out()) == ([], [("a", "mismatched")])


def test_what_is_gone_or_no_picture_is_left_out_and_listed(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.decide("gone", "risked", b"")
    scene.decide("text", "approved", b"no picture at all")
    scene.decide("good", "approved")
    assert scene.collect() == {"waiting": 1, "unusable": 1, "added": 1}
    capsys.readouterr()
    assert scene.collect() == {"gone": 1}
    heard = capsys.readouterr().err
    assert "1 pictures are gone from the content store" in heard and "'gone'" in heard
    assert scene.left_out() == [("gone", "not_found"), ("text", "unsupported_format"), ("gone", "not_found")]
    assert scene.collect() == {}


def test_an_id_never_changes_sides(scene: Scene) -> None:
    """The share decides for new IDs alone: also a larger one, and a later decision, leave the others where they are."""
    ids = [f"id{number}" for number in range(60)]
    made = {content_id: scene.decide(content_id, "approved") for content_id in ids}
    scene.collect(test_share=0.2)
    side = {Path(file).stem: file.partition("/")[0] for file in scene.files()}
    assert set(side) == set(ids) and set(side.values()) == {"train", "test"}
    assert side == {content_id: part_of(content_id, 0.2) for content_id in ids}
    for content_id in ids:
        scene.decide(content_id, "risked", b"", sha256=digest_of(made[content_id]))
    assert scene.collect(test_share=0.9) == {"moved": 60}
    assert {Path(file).stem: file.partition("/")[0] for file in scene.files()} == side


def test_the_test_share_is_met_and_a_larger_one_keeps_its_pictures() -> None:
    ids = [f"content-{number}" for number in range(10_000)]
    small = {content_id for content_id in ids if part_of(content_id, 0.2) == "test"}
    assert 1_850 < len(small) < 2_150
    assert small < {content_id for content_id in ids if part_of(content_id, 0.3) == "test"}
    assert not any(part_of(content_id, 0) == "test" for content_id in ids)


def test_a_broken_content_store_ends_the_run_and_the_next_one_fetches(scene: Scene) -> None:
    """Nothing is lost, although the cursor has gone on."""
    scene.decide("a", "approved")
    scene.decide("b", "risked")
    for content_id in ("a", "b"):
        (scene.content / content_id).unlink()
        (scene.content / content_id).symlink_to(content_id)  # what opening fails on: a link to itself
    with pytest.raises(UnavailableError, match="content store failed"):
        scene.collect()
    assert [d.content_id for d in ledger.read(scene.data).waiting] == ["a", "b"]
    (scene.content / "a").unlink()
    (scene.content / "a").write_bytes(picture("approved", size=SIZE))
    assert scene.collect() == {"added": 1, "waiting": 1}
    scene.decide("c", "risked")
    assert scene.collect() == {"added": 1, "waiting": 1}
    (scene.content / "b").unlink()
    data = picture("risked", "PNG", size=SIZE)
    scene.decide("b", "not_suitable", data, sha256=digest_of(data))
    assert scene.collect() == {"added": 1, "moved": 1}
    assert [Path(file).name for file in scene.files()] == ["a.jpg", "b.png", "c.jpg"]
    assert ledger.read(scene.data).waiting == ()


def test_a_content_store_that_has_nothing_ends_the_run_and_nothing_is_lost(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mount that is missing, or a wrong prefix; the pictures are all there once that is mended. What the set has
    already is not asked for, and says nothing for the store."""
    before = scene.decide("before", "approved")
    scene.collect()
    scene.decide("before", "risked", b"", sha256=digest_of(before))
    ids = [f"id{number}" for number in range(EMPTY_FROM)]
    for content_id in ids:
        scene.decide(content_id, "approved")
    mounted = scene.content.rename(scene.content.with_name("elsewhere"))
    scene.content.mkdir()
    results: Counter = Counter()
    with pytest.raises(UnavailableError, match=f"none of {len(ids)} pictures .* check MODERATION_CONTENT_URL"):
        scene.collect(results=results)
    assert results == {"moved": 1, "waiting": len(ids)}
    assert [decision.content_id for decision in ledger.read(scene.data).waiting] == ids
    assert "tried again by the next run" in capsys.readouterr().err
    scene.content.rmdir()
    mounted.rename(scene.content)
    assert scene.collect() == {"added": len(ids)}
    assert len(scene.files()) == len(ids) + 1
    assert ledger.read(scene.data).waiting == ()


def test_what_is_gone_at_the_second_attempt_is_left_out(scene: Scene) -> None:
    """So that no schedule is stuck for good where the pictures really are gone."""
    for number in range(EMPTY_FROM):
        scene.decide(f"id{number}", "approved", b"")
    with pytest.raises(UnavailableError, match="once more"):
        scene.collect()
    scene.decide("new", "risked")
    assert scene.collect() == {"gone": EMPTY_FROM, "added": 1}
    assert ledger.read(scene.data).waiting == ()
    assert scene.collect() == {}


def test_a_store_that_failed_and_then_has_nothing_is_asked_once_more(scene: Scene) -> None:
    """What could not be fetched was never not found; and that the store has nothing is told, late or not."""
    ids = [f"id{number}" for number in range(EMPTY_FROM)]
    for content_id in ids:
        scene.decide(content_id, "approved", b"")
        (scene.content / content_id).symlink_to(content_id)
    with pytest.raises(UnavailableError, match="failed for each picture"):
        scene.collect()
    for content_id in ids:
        (scene.content / content_id).unlink()
    with pytest.raises(UnavailableError, match="none of 20 pictures"):
        scene.collect()
    assert [decision.content_id for decision in ledger.read(scene.data).waiting] == ids
    assert scene.collect() == {"gone": EMPTY_FROM}


def test_a_store_that_stays_broken_ends_every_run_until_it_is_mended_or_gives_a_picture(scene: Scene) -> None:
    """Else the second night, in which nothing is new, would resolve the alert of the first. Links to themselves stand
    in for an outage; in the end only what waits is broken, such as pictures that nobody may read any more."""
    ids = [f"id{number}" for number in range(EMPTY_FROM)]
    for content_id in ids:
        scene.decide(content_id, "approved", b"")
        (scene.content / content_id).symlink_to(content_id)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="failed for each picture"):
            scene.collect()
        assert [decision.content_id for decision in ledger.read(scene.data).waiting] == ids
    scene.decide("new", "risked")
    assert scene.collect() == {"added": 1, "waiting": EMPTY_FROM}
    (scene.content / ids[0]).unlink()
    (scene.content / ids[0]).write_bytes(picture("approved", size=SIZE))
    assert scene.collect() == {"added": 1, "waiting": EMPTY_FROM - 1}
    assert scene.collect() == {"waiting": EMPTY_FROM - 1}


@pytest.mark.parametrize(("missing", "there"), [(EMPTY_FROM - 1, 0), (EMPTY_FROM, 1)])
def test_a_few_that_are_gone_or_one_that_is_there_say_nothing_against_the_store(
    missing: int, there: int, scene: Scene
) -> None:
    """They are asked for once more all the same, and no run fails for them."""
    for number in range(missing + there):
        scene.decide(f"id{number}", "approved", b"" if number < missing else None)
    assert scene.collect() == {"waiting": missing} | ({"added": there} if there else {})
    assert scene.collect() == {"gone": missing}


def test_what_is_in_doubt_and_was_not_asked_for_excuses_no_store_that_fails(scene: Scene) -> None:
    scene.decide("a", "approved")
    scene.collect()
    scene.decide("a", "risked", picture("risked", size=SIZE))
    scene.decide("b", "approved", b"")
    (scene.content / "b").symlink_to("b")
    with pytest.raises(UnavailableError, match="failed for each picture"):
        scene.collect()


def test_a_picture_that_replaces_another_says_as_much_for_the_store_as_a_new_one(scene: Scene) -> None:
    scene.decide("a", "approved")
    scene.collect()
    other = picture("risked", "PNG", size=SIZE)
    scene.decide("a", "risked", other, sha256=digest_of(other))
    for number in range(EMPTY_FROM):
        scene.decide(f"id{number}", "approved", b"")
    assert scene.collect() == {"replaced": 1, "waiting": EMPTY_FROM}


def test_a_store_that_half_fails_costs_no_label(scene: Scene) -> None:
    """One bucket of it has nothing, and another times out: one kind of fault does not excuse the other."""
    drawn = picture("approved", size=SIZE)
    for number in range(255):
        scene.decide(f"id{number}", "approved", b"")
    scene.decide("looped", "approved", b"")
    (scene.content / "looped").symlink_to("looped")
    assert scene.collect() == {"waiting": 256}
    for number in range(255):
        (scene.content / f"id{number}").write_bytes(drawn)
    assert scene.collect() == {"added": 255, "waiting": 1}


class BusyDecoders:
    """Decoders of a machine that is too busy for them: each picture fails for a reason that is not its own."""

    def __init__(self, reason: UndecidedReason) -> None:
        self._reason = reason

    def submit(self, _: bytes) -> Future[Decoded]:
        failed: Future[Decoded] = Future()
        failed.set_exception(ContentError(self._reason, "The machine was busy."))
        return failed

    def check(self) -> None:
        """They live."""


@pytest.mark.parametrize("reason", ["decode_timeout", "decoder_crashed"])
def test_a_decoder_that_failed_once_is_no_verdict_on_the_picture(
    reason: UndecidedReason, scene: Scene, decoders: DecoderPool
) -> None:
    """It is tried again by the next run; a second failure is the picture's own."""
    for content_id in ("a", "b"):
        scene.decide(content_id, "approved")
        scene.decoders = BusyDecoders(reason)
        assert scene.collect() == {"waiting": 1}
        scene.decoders = decoders if content_id == "a" else scene.decoders
        assert scene.collect() == ({"added": 1} if content_id == "a" else {"unusable": 1})
    assert scene.collect() == {}
    assert scene.files() == ["train/interim/approved/a.jpg"]
    assert scene.left_out() == [("a", reason), ("b", reason), ("b", reason)]


def test_what_a_killed_run_left_is_cleared_away(scene: Scene) -> None:
    """A temporary file goes; of two copies of an ID the decided one stays."""
    data = scene.decide("a", "approved")
    scene.collect()
    folder = scene.data / "train" / "interim"
    (folder / "approved" / ".0123456789abcdef.tmp").write_bytes(b"half")
    (folder / "risked" / "a.jpg").write_bytes(data)
    (scene.data / ledger.FILE).unlink()
    assert scene.collect() == {"unchanged": 1}
    assert scene.files() == ["train/interim/approved/a.jpg"]


@pytest.mark.parametrize("cursor", ["1000-1", "1000-0"])
def test_the_cursor_is_found_whichever_entry_of_a_millisecond_it_is(cursor: str, scene: Scene) -> None:
    scene.decide("a", "approved")
    scene.decisions[0] = scene.decisions[0].model_copy(update={"correction": cursor})
    assert scene.collect() == {"added": 1}
    assert scene.collect() == {}
    scene.decisions.clear()
    with pytest.raises(DataError, match=f"does not have the correction {cursor}"):
        scene.collect()


def test_several_decisions_of_one_millisecond_are_each_collected_once(scene: Scene) -> None:
    """As moderators' tools write them that decide on a page of pictures at a time."""
    for number in range(3):
        scene.decide(f"id{number}", "approved")
        scene.decisions[-1] = scene.decisions[-1].model_copy(update={"correction": f"1000-{number}"})
        assert scene.collect() == {"added": 1}
        assert scene.collect() == {}


def test_corrections_that_begin_after_the_cursor_are_another_redis_or_were_lost(scene: Scene) -> None:
    """What lay between is not known, and a set that lacks it must not look complete."""
    scene.decide("a", "approved")
    scene.collect()
    scene.decide("b", "risked")
    del scene.decisions[0]
    with pytest.raises(DataError, match="does not have the correction 1000-0"):
        scene.collect()
    assert scene.files() == ["train/interim/approved/a.jpg"]


def test_what_still_waits_and_names_bytes_is_in_doubt_after_a_decision_that_names_none(scene: Scene) -> None:
    """The store fails for it in both runs; mended, it gives bytes of which nobody knows who decided on them."""
    drawn = picture("approved", size=SIZE)
    (scene.content / "a").symlink_to("a")
    scene.decide("a", "approved", b"", sha256=digest_of(drawn))
    scene.decide("b", "approved")
    assert scene.collect() == {"waiting": 1, "added": 1}
    scene.decide("a", "risked", b"")
    scene.decide("c", "approved")
    assert scene.collect() == {"waiting": 1, "doubtful": 1, "added": 1}
    (scene.content / "a").unlink()
    (scene.content / "a").write_bytes(drawn)
    assert scene.collect() == {}
    assert [Path(file).name for file in scene.files()] == ["b.jpg", "c.jpg"]


def test_of_what_was_decided_since_the_last_that_names_the_bytes_labels_them(scene: Scene) -> None:
    """What waited takes neither the label of other bytes nor the one before the last; test pictures stay such."""
    drawn, other = picture("approved", size=SIZE), picture("risked", size=SIZE)
    in_test = next(f"t{number}" for number in range(100) if part_of(f"t{number}", 0.2) == "test")
    in_train = [name for name in (f"w{number}" for number in range(100)) if part_of(name, 0.2) == "train"][:3]
    scene.decide(in_train[0], "approved", b"", sha256=digest_of(drawn))  # not there yet
    scene.decide(in_test, "risked", drawn, sha256=digest_of(drawn))
    scene.decide(in_train[1], "not_suitable", drawn, sha256=digest_of(drawn))
    scene.decide(in_train[2], "approved", other, sha256=digest_of(other))
    assert scene.collect(0.2) == {"waiting": 1, "added": 3}
    (scene.content / in_train[0]).write_bytes(drawn)
    assert scene.collect(0.2) == {"added": 1}
    assert scene.files() == sorted(
        [f"test/interim/not_suitable/{in_test}.jpg", f"train/interim/approved/{in_train[2]}.jpg",
         *(f"train/interim/not_suitable/{name}.jpg" for name in in_train[:2])]
    )  # fmt: skip


def test_a_ledger_that_cannot_be_read_is_no_empty_one(scene: Scene) -> None:
    """Or all corrections would be gone through again, and what was fitted last be forgotten."""
    scene.decide("a", "approved")
    scene.collect()
    (scene.data / ledger.FILE).unlink()
    (scene.data / ledger.FILE).mkdir()
    with pytest.raises(DataError, match=f"{ledger.FILE}' cannot be read"):
        scene.collect()


def test_a_damaged_ledger_is_refused_in_one_sentence(scene: Scene) -> None:
    scene.decide("a", "approved")
    scene.collect()
    (scene.data / ledger.FILE).write_text('{"schema": 1, "cursor": "yesterday"}')
    with pytest.raises(DataError, match="restore it, or delete it"):
        scene.collect()


def test_a_ledger_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    decision = Decision(correction="1-0", content_id="a", label="risked", sha256="0" * 64)
    kept = Ledger(cursor="5-1", waiting=(decision,), fitted=ledger.Fitted(version="v", train="t", test="u"))
    ledger.save(tmp_path, kept)
    assert ledger.read(tmp_path) == kept


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(scene: Scene, share: float) -> None:
    with pytest.raises(UsageError, match="test share"):
        scene.collect(test_share=share)
