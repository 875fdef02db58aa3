"""The weights store: what is published comes back as it was, and one version at a time is in service."""

import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.tiny_network import TINY
from trainer.bases import random_base
from worker import status
from worker.errors import UsageError, WeightsError
from worker.model import files, history, network
from worker.model.manifest import BaseRef, EngineCheck, Manifest, ManifestDraft, identity
from worker.model.tensors import state_dict
from worker.model.weights import ChampionChangedError, WeightsStore

HEAD = ["classifier.3.bias", "classifier.3.weight"]


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """An empty store whose folder does not exist yet."""
    network.register(TINY)
    return WeightsStore(tmp_path / "weights")


@pytest.fixture
def base(store: WeightsStore) -> BaseRef:
    """A base in the store."""
    return store.add_base(random_base(TINY, seed=1), "random:1")


def delta(value: float) -> dict[str, Tensor]:
    return {"classifier.3.weight": torch.full((3, 6), value), "classifier.3.bias": torch.zeros(3)}


def draft(base: BaseRef, **changes: Any) -> ManifestDraft:
    return ManifestDraft.model_validate({"network": "tiny", "base": base, **changes})


def published(store: WeightsStore, base: BaseRef, value: float) -> str:
    return store.publish(draft(base), delta(value)).id


def test_an_empty_store_serves_nothing(store: WeightsStore) -> None:
    """No champion, no challenger, no versions, no history; looking makes no folder."""
    assert (store.champion(), store.challenger(), store.versions(), store.history()) == (None, None, [], [])
    assert not store.root.exists()


def test_a_version_comes_back_as_it_was_published(store: WeightsStore, base: BaseRef) -> None:
    """Manifest, tensors and further files, and together with the base they make the whole network."""
    check = EngineCheck(pictures=180, clear_pictures=150, flips=1, passed=True)
    given = draft(
        base,
        temperature=1.5,
        ban_threshold=0.62,
        ban_threshold_proven=True,
        review_threshold=0.31,
        metrics={"test": {"accuracy": 0.81}},
        provenance={"by": "ops", "epochs": 10},
        engines={"cpu-bf16": check},
    )
    manifest = store.publish(given, delta(0.5), {"report.html": b"<html>"})
    again = store.manifest(manifest.id)
    assert again == manifest
    assert again.model_dump(exclude={"id", "delta"}) == given.model_dump()
    assert list(again.delta.tensors) == HEAD
    assert store.versions() == [manifest.id]
    assert (store.root / "versions" / manifest.id / "report.html").read_bytes() == b"<html>"
    tensors = state_dict(store.read_base(base.sha256, base.bytes), store.read_delta(again))
    module = TINY.build()
    module.load_state_dict(tensors, strict=True)
    assert torch.equal(module.state_dict()["classifier.3.weight"], delta(0.5)["classifier.3.weight"])


def test_the_manifest_is_readable_json(store: WeightsStore, base: BaseRef) -> None:
    """Other systems read the file: `schema`, `id`, and metrics.test.accuracy; what is no number is null."""
    manifest = store.publish(draft(base, metrics={"test": {"accuracy": 0.81, "auc": float("nan")}}), delta(0.5))
    document = json.loads((store.root / "versions" / manifest.id / "manifest.json").read_text())
    assert (document["schema"], document["id"]) == (1, manifest.id)
    assert document["metrics"]["test"] == {"accuracy": 0.81, "auc": None}


def test_identity_is_what_decides_verdicts(base: BaseRef) -> None:
    """Tensors, preprocessing, temperature, thresholds and base change the id; who, when and how well do not."""
    first = identity(draft(base), "0" * 64)
    assert first == identity(draft(base, metrics={"a": 1}, provenance={"by": "x"}, data={"digest": "y"}), "0" * 64)
    assert first == identity(draft(base.model_copy(update={"source": "elsewhere"})), "0" * 64)
    preprocessing = {**draft(base).preprocessing, "resize": 240}
    others = [
        identity(draft(base), "1" * 64),
        identity(draft(base, preprocessing=preprocessing), "0" * 64),
        identity(draft(base, temperature=1.1), "0" * 64),
        identity(draft(base, ban_threshold=0.5), "0" * 64),
        identity(draft(base, review_threshold=0.5), "0" * 64),
        identity(draft(base.model_copy(update={"sha256": "2" * 64})), "0" * 64),
    ]
    assert len({first, *others}) == 7
    assert all(version_id.startswith("tiny-") for version_id in others)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.0}, {"ban_threshold": 1.2}, {"parent": "../x"}, {"surprise": 1}, {"network": "A/b"}]
)
def test_a_draft_with_odd_values_cannot_exist(base: BaseRef, change: dict[str, Any]) -> None:
    """Values check themselves when they are built."""
    with pytest.raises(ValidationError):
        draft(base, **change)


def test_a_base_is_stored_once(store: WeightsStore) -> None:
    """The same tensors give the same file, whatever memory layout they have, and leave no other file."""
    tensors = random_base(TINY, seed=1)
    first = store.add_base(tensors, "random:1")
    turned = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    assert store.add_base(dict(reversed(turned.items())), "random:1") == first
    assert [path.name for path in (store.root / "base").iterdir()] == [f"{first.sha256}.safetensors"]


def test_publishing_again_takes_what_was_found_out_anew(store: WeightsStore, base: BaseRef) -> None:
    """Such as on more test pictures, which the gate then counts. What decides verdicts stays, and who made it when."""
    given = {"by": "first", "created_at": "2026-01-01T00:00:00Z", "seed": 1}
    first = store.publish(draft(base, provenance=given), delta(0.5), {"report.html": b"old"})
    before = (store.root / "versions" / first.id / "delta.safetensors").stat()
    again = draft(
        base, provenance={"by": "second", "created_at": "2026-02-02T00:00:00Z", "seed": 2},
        metrics={"test": {"accuracy": 0.9}}, parent=first.id,
    )  # fmt: skip
    second = store.publish(again, delta(0.5), {"report.html": b"new", "more.json": b"{}"})
    assert second.id == first.id and store.manifest(first.id) == second
    assert second.provenance == {"by": "first", "created_at": "2026-01-01T00:00:00Z", "seed": 2}
    assert second.metrics == {"test": {"accuracy": 0.9}} and second.parent is None
    assert [store.read_extra(first.id, name, 9) for name in ("report.html", "more.json")] == [b"new", b"{}"]
    assert (store.root / "versions" / first.id / "delta.safetensors").stat() == before
    assert [path.name for path in (store.root / "versions").iterdir()] == [first.id]


def test_a_base_that_is_there_is_not_written_again(store: WeightsStore, base: BaseRef) -> None:
    """Half a gigabyte for a version of kilobytes; a damaged one is mended."""
    path = store.root / "base" / f"{base.sha256}.safetensors"
    before = path.stat()
    assert store.add_base(random_base(TINY, seed=1), "random:1") == base
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.write_bytes(b"x" * base.bytes)
    assert store.add_base(random_base(TINY, seed=1), "random:1") == base
    assert store.read_base(base.sha256, base.bytes)


def test_what_killed_processes_left_is_removed_an_hour_later(store: WeightsStore, base: BaseRef) -> None:
    """Files and folders half-written; what may still be in work stays, and so does all that has a name."""
    version = published(store, base, 0.5)
    for folder in (store.root, store.root / "base", store.root / "versions"):
        for name, age_s in ((".old.tmp", 4000), (".new.tmp", 10)):
            (folder / name).write_bytes(b"half")
            os.utime(folder / name, (time.time() - age_s,) * 2)
    (store.root / "versions" / ".folder.tmp").mkdir()
    os.utime(store.root / "versions" / ".folder.tmp", (0, 0))
    store.remove_abandoned()
    assert sorted(path.name for path in store.root.rglob("*.tmp")) == [".new.tmp"] * 3
    store.verify(version)


def test_nothing_is_removed_through_a_link_out_of_the_store(store: WeightsStore, base: BaseRef, tmp_path: Path) -> None:
    """Where somebody has put one: what lies there is another's, whatever its name."""
    (tmp_path / "elsewhere").mkdir()
    others = tmp_path / "elsewhere" / ".old.tmp"
    others.write_bytes(b"another's")
    os.utime(others, (0, 0))
    (store.root / "check").symlink_to(others.parent, target_is_directory=True)
    store.remove_abandoned()
    assert others.read_bytes() == b"another's"


def test_what_is_written_is_as_readable_as_the_store(store: WeightsStore, base: BaseRef) -> None:
    """Whatever the umask of who promotes: workers are often another user."""
    store.root.chmod(0o755)
    before = os.umask(0o077)
    try:
        version = published(store, base, 0.5)
        store.promote(version, by="ada", why="first")
    finally:
        os.umask(before)
    folder = store.root / "versions" / version
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder)] == [0o755, 0o755]
    assert [path.stat().st_mode & 0o777 for path in (store.root / "champion", folder / "manifest.json")] == [0o644] * 2


def test_a_version_compared_with_another_champion_is_not_promoted(store: WeightsStore, base: BaseRef) -> None:
    """Somebody rolled back, or promoted, while it was compared."""
    first, second, third = (store.publish(draft(base), delta(value)).id for value in (0.1, 0.2, 0.3))
    store.promote(first, by="ada", why="first")
    store.promote(second, by="ada", why="second", compared_with=first)
    store.rollback(by="grace", why="it bans cats")
    with pytest.raises(ChampionChangedError, match=f"compared with {second}, and {first} serves by now"):
        store.promote(third, by="ada", why="third", compared_with=second)
    assert store.champion() == first


def test_a_damaged_challenger_does_not_fail_a_rollback_that_took_effect(store: WeightsStore, base: BaseRef) -> None:
    """Whoever then tries again would go one version too far."""
    for value in (0.1, 0.2, 0.3):
        store.promote(published(store, base, value), by="ada", why="better")
    (store.root / "challenger").write_bytes(b"")
    second = store.history()[1].to
    assert store.rollback(by="grace", why="it bans cats") == store.champion() == second


def test_a_groups_folder_hands_its_group_down(store: WeightsStore, base: BaseRef) -> None:
    """A store that trainer and workers share by a group (setgid), whatever the umask."""
    shutil.rmtree(store.root)
    store.root.mkdir()
    store.root.chmod(0o2750)
    before = os.umask(0o077)
    try:
        version = published(store, store.add_base(random_base(TINY, seed=1), "random:1"), 0.5)
        store.promote(version, by="ada", why="first")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.root.rglob("*")}
    assert {modes[name] for name in ("base", "versions", version)} == {0o2750}
    assert {modes[name] for name in ("manifest.json", "delta.safetensors", "champion", "history.jsonl")} == {0o640}


def test_what_is_written_for_a_person_follows_the_umask(tmp_path: Path) -> None:
    """In a folder of everybody's, such as /tmp, nobody else may read or change it."""
    tmp_path.chmod(0o1777)
    before = os.umask(0o077)
    try:
        files.replace(tmp_path / "report.html", b"private")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o600


def test_a_challenger_that_comes_back_into_service_is_none_any_more(store: WeightsStore, base: BaseRef) -> None:
    first, second = (store.publish(draft(base), delta(value)).id for value in (0.1, 0.2))
    store.promote(first, by="ada", why="first")
    store.promote(second, by="ada", why="second")
    store.set_challenger(first)
    store.rollback(by="grace", why="it bans cats")
    assert (store.champion(), store.challenger()) == (first, None)


def test_publishing_at_the_same_time_leaves_one_version(store: WeightsStore, base: BaseRef) -> None:
    """Several writers of the same version: one wins, all return it, nothing temporary is left."""
    results: list[Manifest] = []
    threads = [
        threading.Thread(target=lambda: results.append(store.publish(draft(base), delta(0.5)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (store.root / "versions").iterdir()] == [results[0].id]
    assert results == [results[0]] * 8


@pytest.mark.parametrize(
    "tensors",
    [
        {"classifier.3.weight": torch.ones(4, 6)},
        {"unknown": torch.ones(1)},
        {"classifier.3.bias": torch.full((3,), float("inf"))},
    ],
)
def test_a_delta_that_does_not_fit_is_not_published(
    store: WeightsStore, base: BaseRef, tensors: dict[str, Tensor]
) -> None:
    """Another shape, an unknown name, numbers that are none: refused before anything is written."""
    with pytest.raises(WeightsError):
        store.publish(draft(base), tensors)
    assert store.versions() == []


def test_a_version_without_its_base_is_not_published(store: WeightsStore) -> None:
    """A version is only complete together with the base it names."""
    with pytest.raises(WeightsError, match="not in the store"):
        store.publish(draft(BaseRef(sha256="0" * 64, bytes=5, source="nowhere")), delta(0.5))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "manifest.json", "delta.safetensors", "x" * 101])
def test_odd_file_names_are_refused(store: WeightsStore, base: BaseRef, name: str) -> None:
    """What is put beside the manifest has a plain name that is not taken."""
    with pytest.raises(UsageError):
        store.publish(draft(base), delta(0.5), {name: b""})
    assert store.versions() == []


def test_promotion_puts_a_version_into_service(store: WeightsStore, base: BaseRef) -> None:
    """The champion file holds one line, and the history says who, from, to and why."""
    first, second = published(store, base, 0.1), published(store, base, 0.2)
    store.promote(first, by="ana", why="first")
    store.promote(second, by="ben", why="better")
    assert store.champion() == second
    assert (store.root / "champion").read_text() == f"{second}\n"
    entries = store.history()
    assert [(entry.by, entry.action, entry.from_, entry.to, entry.why) for entry in entries] == [
        ("ana", "promote", None, first, "first"),
        ("ben", "promote", first, second, "better"),
    ]
    assert entries[0].at <= entries[1].at
    lines = (store.root / "history.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"at", "by", "action", "from", "to", "why"}] * 2


def test_promoting_the_champion_is_said(store: WeightsStore, base: BaseRef) -> None:
    """It is in service already; the history does not grow."""
    first = published(store, base, 0.1)
    store.promote(first, by="ana", why="")
    with pytest.raises(UsageError, match="already"):
        store.promote(first, by="ana", why="")
    assert len(store.history()) == 1


def test_rollback_goes_back_step_by_step(store: WeightsStore, base: BaseRef) -> None:
    """Each rollback goes one champion further back, until there is none; then it says so."""
    ids = [published(store, base, value) for value in (0.1, 0.2, 0.3)]
    for version_id in ids:
        store.promote(version_id, by="ana", why="")
    assert store.rollback(by="ben", why="worse") == ids[1]
    assert store.rollback(by="ben", why="worse still") == ids[0]
    assert store.champion() == ids[0]
    with pytest.raises(UsageError, match="no earlier champion"):
        store.rollback(by="ben", why="")
    last = store.history()[-1]
    assert (last.action, last.from_, last.to, last.why) == ("rollback", ids[1], ids[0], "worse still")


def test_rollback_after_a_new_promotion_goes_to_what_it_replaced(store: WeightsStore, base: BaseRef) -> None:
    """What was rolled back before does not come back."""
    first, bad, good = (published(store, base, value) for value in (0.1, 0.2, 0.3))
    store.promote(first, by="a", why="")
    store.promote(bad, by="a", why="")
    store.rollback(by="a", why="")
    store.promote(good, by="a", why="")
    assert store.rollback(by="a", why="") == first


@pytest.mark.parametrize(
    ("act", "entries"),
    [
        (lambda store, other: store.promote(other, by="ada", why="better"), 3),
        (lambda store, other: store.rollback(by="ada", why="it bans cats"), 3),
        (lambda store, other: store.note_refit(store.champion(), by="ada", why="other aims"), 3),
        (lambda store, other: store.set_challenger(other), 2),
        (lambda store, other: store.in_service(), 2),
    ],
    ids=["promote", "rollback", "note_refit", "set_challenger", "in_service"],
)
def test_who_changes_what_serves_waits_for_whoever_does_so(
    act: Callable[[WeightsStore, str], object], entries: int, store: WeightsStore, base: BaseRef
) -> None:
    """Else a rollback between another's look and its writing would be undone unseen."""
    first, second, third = (published(store, base, value) for value in (1.0, 2.0, 3.0))
    for version in (first, second):
        store.promote(version, by="ops", why="")
    at_work = threading.Thread(target=act, args=(store, third), daemon=True)
    with files.locked(store.root):
        at_work.start()
        at_work.join(0.3)
        assert at_work.is_alive() and len(store.history()) == 2
    at_work.join(30)
    assert not at_work.is_alive() and len(store.history()) == entries


def test_rollback_with_nothing_in_service_is_said(store: WeightsStore) -> None:
    """There is nothing to go back from."""
    with pytest.raises(UsageError):
        store.rollback(by="a", why="")


def test_a_store_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    """Such as ./weights in the shell of somebody who has not said where the store is; nor is the one that is there
    left unnamed where it has no earlier champion."""
    for folder in (tmp_path / "elsewhere", tmp_path):
        with pytest.raises(UsageError, match=re.escape(f"store {folder}")):
            WeightsStore(folder).rollback(by="a", why="")
    assert not (tmp_path / "elsewhere").exists()


def test_a_promotion_that_a_crash_cut_off_counts_for_nothing(store: WeightsStore, base: BaseRef) -> None:
    """The history is written before the champion: a line, or half a line, without its effect misleads nobody."""
    first, second, third = (published(store, base, value) for value in (0.1, 0.2, 0.3))
    store.promote(first, by="a", why="")
    store.promote(second, by="a", why="")
    (store.root / "champion").write_text(f"{first}\n")
    with pytest.raises(UsageError, match="no earlier champion"):
        store.rollback(by="a", why="")
    with (store.root / "history.jsonl").open("a") as file:
        file.write('{"at": "2026-')
    assert len(store.history()) == 2
    store.promote(third, by="a", why="")
    assert [entry.to for entry in store.history()] == [first, second, third]
    assert store.rollback(by="a", why="") == first


def test_only_what_took_effect_counts_whatever_stands_last(store: WeightsStore, base: BaseRef) -> None:
    """A promotion or a rollback whose champion file met a full disk leaves a line all the same."""
    first, second, third = (published(store, base, value) for value in (0.1, 0.2, 0.3))
    for version in (first, second):
        store.promote(version, by="a", why="")
    for act, standing in (
        (lambda: store.rollback(by="a", why=""), second),
        (lambda: store.promote(third, by="a", why=""), second),
        (lambda: store.rollback(by="a", why="really"), first),
        (lambda: store.promote(third, by="a", why=""), first),
    ):
        act()
        (store.root / "champion").write_text(f"{standing}\n")
    assert len(store.history()) == 6
    effective = history.in_effect(store.history(), store.champion())
    assert [(entry.action, entry.to, entry.why) for entry in effective] == [
        ("promote", first, ""),
        ("promote", second, ""),
        ("rollback", first, "really"),
    ]
    assert history.in_effect([], None) == []


def test_a_refit_of_the_champion_is_on_record_and_moves_nothing(store: WeightsStore, base: BaseRef) -> None:
    """What went before it stays the last promotion or rollback, and the way back is the same."""
    first, second, third = (published(store, base, value) for value in (0.1, 0.2, 0.3))
    for version in (first, second, third):
        store.promote(version, by="a", why="")
    store.rollback(by="a", why="it bans cats")
    store.note_refit(second, by="b", why="fitted again: ban precision 0.95 -> 0.9")
    store.note_refit(third, by="b", why="not in service")
    assert [entry.action for entry in store.history()] == ["promote"] * 3 + ["rollback", "refit"]
    effective = history.in_effect(store.history(), store.champion())
    assert [entry.action for entry in effective] == ["promote"] * 3 + ["rollback"]
    assert history.trail(store.history(), store.champion()) == [first, second]
    promotion = status.last_promotion(store.root)
    assert isinstance(promotion, history.HistoryEntry) and promotion.why == "it bans cats"
    assert store.rollback(by="a", why="") == first


def test_a_history_mended_by_hand_keeps_its_last_line(store: WeightsStore, base: BaseRef) -> None:
    """Editors leave it without an end: it counts, and the next entry comes after it."""
    first, second = published(store, base, 0.1), published(store, base, 0.2)
    store.promote(first, by="a", why="")
    path = store.root / "history.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert [entry.to for entry in store.history()] == [first]
    store.promote(second, by="a", why="")
    assert [entry.to for entry in store.history()] == [first, second]
    path.write_bytes(path.read_bytes() + b"{}")
    with pytest.raises(WeightsError, match=r"line 3 .* damaged"):
        store.history()


def test_a_challenger_is_named_and_withdrawn(store: WeightsStore, base: BaseRef) -> None:
    """It must be a version and not the champion; once promoted it is the challenger no more."""
    first, second = published(store, base, 0.1), published(store, base, 0.2)
    store.promote(first, by="a", why="")
    store.set_challenger(second)
    assert store.challenger() == second
    store.set_challenger(None)
    store.set_challenger(None)
    assert store.challenger() is None
    with pytest.raises(UsageError):
        store.set_challenger(first)
    store.set_challenger(second)
    store.promote(second, by="a", why="")
    assert store.challenger() is None
    assert [entry.action for entry in store.history()] == ["promote", "promote"]


@pytest.mark.parametrize("act", [lambda s, i: s.promote(i, by="a", why=""), lambda s, i: s.set_challenger(i)])
def test_what_cannot_be_served_does_not_go_into_service(
    store: WeightsStore, base: BaseRef, act: Callable[[WeightsStore, str], None]
) -> None:
    """A version that is not there, or whose base was lost, leaves champion, challenger and history as they are."""
    first, second = published(store, base, 0.1), published(store, base, 0.2)
    store.promote(first, by="a", why="")
    with pytest.raises(WeightsError):
        act(store, "tiny-000000000000")
    (store.root / "base" / f"{base.sha256}.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError):
        act(store, second)
    assert (store.champion(), store.challenger(), len(store.history())) == (first, None, 1)


def test_workers_need_only_the_right_to_read(store: WeightsStore, base: BaseRef) -> None:
    """Files and folders are as readable as the umask makes them, not for their writer alone."""
    version_id = published(store, base, 0.1)
    folder = store.root / "versions" / version_id
    plain = store.root / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode
    for path in (folder / "manifest.json", store.root / "base" / f"{base.sha256}.safetensors"):
        assert path.stat().st_mode & 0o444 == plain.stat().st_mode & 0o444
