"""The scheduled job, a straight line from what people decided to a version in service, or not.

    lock ─► collect ─► check ─► anything new? ─► fit and evaluate ─► gate ─► promoted, or left as challenger

Each step is another module's; this one is their order, and what makes the job safe to run twice: the ledger says
what has gone the whole way, and only that is not done again. Knows no Redis, metrics formats or command lines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from trainer import collect, dataset, gate, ledger, locks, prepare, release
from trainer.collect import Collector, Fetches
from trainer.decoding import decoder_pool
from trainer.errors import DataError, OvertakenError, RefusedError
from trainer.fit import fit
from trainer.ledger import Decision, Fitted
from trainer.plan import Plan
from trainer.prepare import Parts
from trainer.progress import Reporter
from trainer.retrain_metrics import Record
from worker.client import Moderation
from worker.errors import WeightsError
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

WHY: Final = "retrain: passed the gate"


@dataclass(frozen=True)
class Job:
    """What a run is asked for. `plan` says how to fit; its folders are those of the data set in `data`.

    `always` fits although nothing is new. Raises UsageError for a margin or a share that is none.
    """

    data: Path
    plan: Plan
    margin: float = gate.MARGIN
    test_share: float = collect.TEST_SHARE
    always: bool = False
    fetch_threads: int = 16

    def __post_init__(self) -> None:
        gate.check_margin(self.margin)
        collect.check_test_share(self.test_share)


def retrain(
    job: Job, store: WeightsStore, client: Moderation, content: Fetches, reporter: Reporter, record: Record
) -> str | None:
    """Run the job and note in `record` what became of it; returns the champion's id.

    Raises LockedError, before anything is touched, where another run works on the data set or the store;
    RefusedError, with the new version left as challenger, where the gate says no or a person has rolled back and
    promoted none since, and again while nothing is new and it still is the challenger; WeightsError for an empty store
    in the place of one that had versions; and what its steps raise.
    """
    _check_not_begun_anew(job, store)
    with locks.one_run(job.data, "data set", "--data", DataError), release.one_run(store):
        store.in_service()  # a lost champion is found out before the work
        with record.step("collect"):
            decoders = partial(decoder_pool, Preprocessing())
            collector = Collector(job.data, content, decoders, reporter, job.fetch_threads, job.test_share)
            collector.collect(lambda after: _decisions(client, after), record.pictures)
        with record.step("check"):
            parts = prepare.gather(job.plan.train, job.plan.test, reporter)
            record.parts = {
                "train": dataset.counts([*parts.fitted_on, *parts.held_out]),
                "test": dataset.counts(parts.test),
            }
        known = ledger.read(job.data).fitted
        if known is not None and _is_done(known, parts, store) and not job.always:
            _nothing_new(job, known, store, reporter, record)
        else:
            _fit_and_release(job, parts, store, reporter, record)
        return store.champion()


def _check_not_begun_anew(job: Job, store: WeightsStore) -> None:
    """A store's first version comes into service without a gate, so none may begin for want of a mount or by a slip."""
    known = ledger.read(job.data).fitted
    if known is not None and not store.versions():
        raise WeightsError(
            f"the weights store {store.root.absolute()} has no version, and that of the last run had {known.version}: "
            "mount it, or name it with --weights or MODERATION_WEIGHTS_DIR; where a new one is to begin, delete "
            f"{str(job.data / ledger.FILE)!r}, and its first version is champion"
        )


def _is_done(known: Fitted, parts: Parts, store: WeightsStore) -> bool:
    same = known.model_copy(update={"refused": None}) == _fitted(known.version, parts)
    return same and known.version in store.versions()


def _nothing_new(job: Job, known: Fitted, store: WeightsStore, reporter: Reporter, record: Record) -> None:
    """Says so, and asks again for what was refused and still is the challenger: a success would resolve the alert on
    it before anybody has looked, and what stood against it may be gone, such as a rollback or the champion of then."""
    reporter.say(f"Nothing is new since {known.version}: no version is fitted; --always fits all the same.")
    if known.refused is not None and store.challenger() == known.version:
        _release(job, known.model_copy(update={"refused": None}), store, reporter, record)
    else:
        record.outcome = "nothing_new"


def _fit_and_release(job: Job, parts: Parts, store: WeightsStore, reporter: Reporter, record: Record) -> None:
    before = store.champion()
    with record.step("fit"):
        version = fit(job.plan, store, reporter, parts=parts, locked=True).id
    done = _fitted(version, parts)
    if version != before:
        _release(job, done, store, reporter, record)
        return
    reporter.say(f"The pictures make {version} again, which is in service already.")
    record.outcome = "nothing_new"
    _save(job.data, done)


def _release(job: Job, done: Fitted, store: WeightsStore, reporter: Reporter, record: Record) -> None:
    with record.step("gate"):
        try:
            _put_into_service(job, store, done.version, reporter)
        except OvertakenError:  # by a person, most likely; nothing is done, so the next run compares again
            raise
        except RefusedError as error:
            _save(job.data, done.model_copy(update={"refused": str(error)}))
            raise
        record.outcome = "promoted"
        _save(job.data, done)


def _put_into_service(job: Job, store: WeightsStore, version: str, reporter: Reporter) -> None:
    """Past the gate, unless it is the store's first version and so in service already, or a person rolled back."""
    if store.champion() == version:
        return
    if why := release.after_a_rollback(store, version):
        raise RefusedError(why)
    release.promote(store, version, by=job.plan.by, why=WHY, margin=job.margin, say=reporter.say)


def _fitted(version: str, parts: Parts) -> Fitted:
    train = dataset.digest([*parts.fitted_on, *parts.held_out])
    return Fitted(version=version, train=train, test=dataset.digest(parts.test))


def _save(data: Path, fitted: Fitted) -> None:
    ledger.save(data, ledger.read(data).model_copy(update={"fitted": fitted}))


def _decisions(client: Moderation, after: str) -> Iterator[Decision]:
    for one in client.corrections(after):
        yield Decision(correction=one.id, content_id=one.content_id, label=one.label, sha256=one.content_sha256)
