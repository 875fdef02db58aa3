"""`retrain` is killed at named moments and run again: every decision ends in exactly one place, all files are valid."""

import hashlib
from pathlib import Path

import pytest

from tests.support.retraining import MOMENTS, Moderators, Moment, Site, killed_at, killing
from tests.support.worker import Broker
from trainer import ledger, shards
from trainer.collect import part_of
from worker.client import Moderation

QUICK = ("between two pictures", "all pictures in place, the cursor not yet", "promoted, the ledger not yet")


def check_all_is_valid(site: Site, moderators: Moderators) -> None:
    """The data set is what was decided, the cursor is at its end, store and cache can be read whole."""
    assert not list(site.data.rglob(".*.tmp")), "half-written files are left"
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in sorted(site.data.rglob("interim/*/*")):
        place = (path.parts[-4], path.parent.name, hashlib.sha256(path.read_bytes()).hexdigest())
        found.setdefault(path.stem, []).append(place)
    wanted = {i: [(part_of(i, 0.2), label, digest)] for i, (label, digest) in moderators.truth.items()}
    assert found == wanted
    kept = ledger.read(site.data)
    *_, last = Moderation(site.redis_url).corrections()
    assert (kept.cursor, kept.waiting) == (last.id, ())
    assert kept.fitted is not None and kept.fitted.version in site.store.versions()
    for version in site.store.versions():
        site.store.verify(version)
    assert site.store.champion() == site.store.history()[-1].to
    cached = list((site.folder / "cache").rglob("*.safetensors"))
    assert sum(len(shards.read(path)) for path in cached) >= len(moderators.truth)


def test_a_night_of_kills_ends_as_a_night_without(broker: Broker, tmp_path: Path) -> None:
    """One run after the other dies a step further on; the last one goes through, and the next finds nothing to do."""
    site, processes = Site(tmp_path, broker.url), killing()
    moderators = Moderators(tmp_path, broker)
    moderators.first_night()
    for moment in MOMENTS:
        if moment.name in QUICK:
            assert killed_at(site, moment, processes), moment.name
    assert site.run() == "nothing_new", "the version promoted before the last kill is made again"
    check_all_is_valid(site, moderators)
    assert len(site.store.versions()) == 1
    assert site.run() == "nothing_new"


@pytest.mark.long
@pytest.mark.parametrize("night", ["first", "second"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_a_run_killed_at_one_moment_is_made_good_by_the_next(
    moment: Moment, night: str, broker: Broker, tmp_path: Path
) -> None:
    """In the first night of an empty store, and in one that has a champion, pictures decided otherwise and replaced."""
    site = Site(tmp_path, broker.url)
    moderators = Moderators(tmp_path, broker)
    moderators.first_night()
    if night == "second":
        assert site.run() == "promoted"
        moderators.second_night()
    assert killed_at(site, moment, killing()) == (moment.early or night == "second")
    assert site.run() in ("promoted", "nothing_new")
    check_all_is_valid(site, moderators)
    assert len(site.store.versions()) == (1 if night == "first" else 2)
