"""Corrections in, labelled pictures on disk out: what people decided becomes training and test pictures.

    decision ─► in the set already ──────────────────────────────► moved to its label's folder, if it is elsewhere
             └► fetched ─► SHA-256 as decided on? ─► decoded ─► <part>/interim/<label>/<content_id>.<ext>
    decided without a SHA-256 ─► its own ID's file alone; in the set otherwise, there or as other bytes ─► taken out
    the same bytes under another ID ─► the label of the latest decision that names them, as the worker judges them
    a block of them on disk ─► the log of what was left out ─► the cursor

A run may be killed at any moment: the decisions after the cursor are gone through again, and what is in place stays
in place. Whoever calls holds the data set's lock. Knows no features, networks or versions.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from trainer import dataset, ledger, same_bytes
from trainer.decoding import decoded
from trainer.errors import DataError
from trainer.ledger import Decision, Ledger, LeftOut
from trainer.progress import Reporter
from trainer.results import EMPTY_FROM, SAID, Result, fault_of, is_doubtful, result_of
from trainer.spots import Spot, Spots, label_folders, sha256
from trainer.threads import in_threads
from worker.decode import DecoderPool
from worker.errors import ContentError, UnavailableError, UsageError
from worker.model import files

BLOCK: Final = 256
"""Decisions between two saves of the cursor: what a killed run goes through again at most."""

TEST_SHARE: Final = 0.2

EXTENSIONS: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "AVIF": "avif", "BMP": "bmp"} | {
    "HEIF": "heic"
}
"""By the format that the picture really has, by Pillow's names."""


class Fetches(Protocol):
    """The content store."""

    def fetch(self, content_id: str) -> bytes:
        """The bytes of an ID; raises ContentError."""
        ...


def part_of(content_id: str, test_share: float) -> str:
    """`test` for that share of content IDs, else `train`: by a hash of the ID, so always the same for one ID.

    A larger share keeps those that are test pictures at a smaller one.
    """
    digest = hashlib.sha256(f"part of the data set\0{content_id}".encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < test_share * 2**64 else "train"


def check_test_share(share: float) -> None:
    """Raises UsageError unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise UsageError(f"The test share {share:g} is none: give one from 0 to below 1, such as {TEST_SHARE:g}.")


class Collector:
    """Puts decided pictures into the data set in `data`.

    Args:
        content: where their bytes are.
        decoders: opens a pool of them, once there is something to decode.
        threads: pictures fetched at the same time.
        test_share: of the IDs that are not in the set yet.
    """

    def __init__(
        self,
        data: Path,
        content: Fetches,
        decoders: Callable[[], AbstractContextManager[DecoderPool]],
        reporter: Reporter,
        threads: int,
        test_share: float,
    ) -> None:
        check_test_share(test_share)
        self._data, self._content, self._open_decoders, self._reporter = data, content, decoders, reporter
        self._threads, self._test_share = threads, test_share
        self._spots = Spots(data)

    def collect(self, corrections: Callable[[str], Iterator[Decision]], results: Counter[Result]) -> None:
        """Goes through what is waiting and all decisions after the cursor, and counts in `results` what became of them.

        Raises DataError where the corrections are not those that the cursor is of; UnavailableError where Redis or the
        whole content store fails; OSError where the disk does.
        """
        kept = ledger.read(self._data)
        decisions = self._after(kept.cursor, corrections)
        block = list(islice(decisions, BLOCK))
        if not (block or kept.waiting):
            return
        left: dict[Result, list[str]] = {}
        with self._open_decoders() as decoders:
            try:
                of_waiting = ""
                if kept.waiting:
                    since = min(_entry(decision) for decision in kept.waiting)
                    later = [d for d in corrections("{}-{}".format(*since)) if _entry(d) <= ledger.entry(kept.cursor)]
                    kept, fault = self._block(corrections, decoders, kept, kept.waiting, results, left, later)
                    of_waiting = fault if len(kept.waiting) >= EMPTY_FROM else ""
                while block:
                    kept = kept.model_copy(update={"cursor": block[-1].correction})
                    kept, fault = self._block(corrections, decoders, kept, block, results, left)
                    if fault:
                        raise UnavailableError(fault)
                    block = list(islice(decisions, BLOCK))
                # Told last, and not of a few: what waits must not keep the others from being collected, run after run.
                if of_waiting and not (results["added"] or results["replaced"]):
                    raise UnavailableError(of_waiting)
            finally:
                self._say_left(left)

    def _after(self, cursor: str, corrections: Callable[[str], Iterator[Decision]]) -> Iterator[Decision]:
        """The decisions after the cursor. They are kept whole, so where its own is not there they are another Redis's,
        or were lost: nothing would then look new, night after night."""
        if cursor == ledger.START:
            return corrections(cursor)
        decisions = corrections(ledger.before(cursor))
        first = next(decisions, None)
        if first is None or first.correction != cursor:
            raise DataError(
                f"Redis does not have the correction {cursor} that this data set was last collected up to: check "
                "MODERATION_REDIS_URL; where corrections were lost or begin anew, write 0 in its place in "
                f"{str(self._data / ledger.FILE)!r}, and all that there are are gone through."
            )
        return decisions

    def _block(
        self,
        corrections: Callable[[str], Iterator[Decision]],
        decoders: DecoderPool,
        kept: Ledger,
        block: Sequence[Decision],
        results: Counter[Result],
        left: dict[Result, list[str]],
        later: Sequence[Decision] = (),
    ) -> tuple[Ledger, str]:
        """All of a block on disk, then its ledger. Also the fault of the content store where every fetch met it.

        A block that has waited for this attempt may be older than what is in the set: `later` are the decisions since.
        """
        latest, doubtful = ledger.latest(block, kept.waiting)
        waiting = {d.content_id: d for d in kept.waiting if d.content_id not in latest}
        made: list[Result | LeftOut] = []
        with self._reporter.track("Collecting decided pictures", len(latest)) as advance:
            for became in in_threads(partial(self._place, decoders, doubtful), list(latest.values()), self._threads):
                advance(1)
                made.append(became)
        fault = fault_of(made)
        made = self._settle(list(latest.values()), made, later, corrections(kept.cursor))
        for decision, became in zip(latest.values(), made, strict=True):
            result = result_of(became, decision)
            results[result] += 1
            if isinstance(became, LeftOut):
                left.setdefault(result, []).append(decision.content_id)
            if result == "waiting" and isinstance(became, LeftOut):
                waiting[decision.content_id] = decision.model_copy(update={"kept_back": became.reason})
        ledger.note_left_out(self._data, [became for became in made if isinstance(became, LeftOut)])
        kept = kept.model_copy(update={"waiting": tuple(waiting.values())})
        ledger.save(self._data, kept)
        return kept, fault

    def _settle(
        self,
        decided: Sequence[Decision],
        made: Sequence[Result | LeftOut],
        later: Sequence[Decision],
        rest: Iterator[Decision],
    ) -> list[Result | LeftOut]:
        """What became of each in the end: what is in doubt leaves the set, and the same bytes take one label.

        What the `rest` of the decisions comes back to stays: where the cursor was lost, they made what is in the set.
        """
        doubtful = {one.content_id for one, became in zip(decided, made, strict=True) if is_doubtful(became)}
        again = {one.content_id for one in rest if one.content_id in doubtful} if doubtful else set()
        for content_id in doubtful - again:
            self._spots.drop(content_id)
        placed = [one for one, became in zip(decided, made, strict=True) if not isinstance(became, LeftOut)]
        moved, gave_way = same_bytes.agree(self._spots, placed, later)
        if moved:
            self._reporter.say(f"{moved} pictures hold the same bytes as one decided on later and take its label.")
        settled: list[Result | LeftOut] = []
        for one, became in zip(decided, made, strict=True):
            if one in gave_way:
                became = LeftOut(one, "doubtful", "The same bytes have another label under another ID.")
            stays = one.content_id in again and self._spots.of(one.content_id)
            settled.append("unchanged" if stays else became)
        return settled

    def _place(self, decoders: DecoderPool, doubtful: Collection[str], decision: Decision) -> Result | LeftOut:
        spots = self._spots.of(decision.content_id)
        # Once in a part, always in that part, whatever the share is now: a version may have been fitted on it.
        part = spots[0].part if spots else part_of(decision.content_id, self._test_share)
        folder = label_folders(self._data, part) / decision.label
        if decision.sha256 is not None:
            known = [s for s in spots if sha256(s.path) == decision.sha256]
        else:
            known = [s for s in spots if s.label == decision.label]
        if known:
            standing = next((s for s in known if (s.part, s.label) == (part, decision.label)), None)
            if standing is not None:
                self._spots.only(decision.content_id, standing)
                return "unchanged"
            moved = Spot(part, decision.label, folder / known[0].path.name)
            self._spots.move(decision.content_id, known[0], moved)
            return "moved"
        if decision.sha256 is None and (spots or decision.content_id in doubtful):
            # Which bytes were meant nobody knows: perhaps those decided on before, perhaps others that came since.
            return LeftOut(decision, "doubtful", "Decided without a SHA-256, and otherwise than before.")
        try:
            data, extension = self._fetch(decoders, decision)
        except ContentError as error:
            return LeftOut(decision, error.reason, error.detail)
        if decision.sha256 is not None and hashlib.sha256(data).hexdigest() != decision.sha256:
            return LeftOut(decision, "mismatched", "The content store holds other bytes under this ID.")
        new = Spot(part, decision.label, folder / f"{decision.content_id}.{extension}")
        files.replace(new.path, data)
        self._spots.only(decision.content_id, new)
        return "replaced" if spots else "added"

    def _fetch(self, decoders: DecoderPool, decision: Decision) -> tuple[bytes, str]:
        """The bytes and the extension that fits them; decoded in the worker's confined processes, as at training."""
        data = self._content.fetch(decision.content_id)
        return data, EXTENSIONS[decoded(decoders.submit(data), decoders).format]

    def _say_left(self, left: Mapping[Result, Sequence[str]]) -> None:
        for result, ids in left.items():
            self._reporter.say(f"{len(ids)} {SAID[result]}: {dataset.listing(ids)}; all are in {ledger.LEFT_OUT_FILE}.")


def _entry(decision: Decision) -> tuple[int, int]:
    return ledger.entry(decision.correction)
