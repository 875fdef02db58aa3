"""A running worker whose champion is damaged in every way: refused with a log line and a metric, and work goes on."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.evil import Evil
from tests.support.place import Place
from tests.support.store import publish_colours
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker that goes on through all of them."""
    with Place(tmp_path_factory.mktemp("place")) as made:
        made.start_worker().wait_ready()
        yield made


def rewrite(folder: Path, **changes: Any) -> None:
    """The manifest with these fields changed."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncated(folder: Path) -> None:
    path = folder / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def one_bit_flipped(folder: Path) -> None:
    path = folder / "delta.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def labels_swapped(folder: Path) -> None:
    rewrite(folder, labels=["risked", "not_suitable", "approved"])


def other_preprocessing(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())["preprocessing"]
    rewrite(folder, preprocessing=document | {"resize": 224})


def a_threshold_lowered(folder: Path) -> None:
    rewrite(folder, ban_threshold=0.01)


def a_pickle_in_disguise(folder: Path) -> None:
    content = pickle.dumps(Evil(folder / "ran"))
    (folder / "delta.safetensors").write_bytes(content)
    named = json.loads((folder / "manifest.json").read_text())["delta"]
    rewrite(folder, delta=named | {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})


def a_link_out_of_the_store(folder: Path) -> None:
    path, elsewhere = folder / "delta.safetensors", folder.parents[2] / f"elsewhere-{folder.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def half_copied(folder: Path) -> None:
    (folder / "delta.safetensors").unlink()


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES = [
    (truncated, "bytes where"),
    (one_bit_flipped, "SHA-256"),
    (labels_swapped, "labels"),
    (other_preprocessing, "changed after publishing"),
    (a_threshold_lowered, "changed after publishing"),
    (a_pickle_in_disguise, "no safetensors file"),
    (a_link_out_of_the_store, "link out of the store"),
    (half_copied, "delta.safetensors is not in the store"),
    (gone, "is not in the store"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_the_version_in_service_goes_on(serving: Place, damage: Callable[[Path], None], said: str) -> None:
    """One log line that says what is wrong, one refusal counted, and the champion before judges on until a good one."""
    (worker,) = serving.workers
    good = serving.store.champion()
    assert good is not None
    refused = worker.metric("moderation_weights_loads_total", outcome="refused")
    lines = worker.log().count("champion refused")
    # Another sharpness is another version; a damage of its own for each.
    bad = publish_colours(serving.store, sharpness=5.0 + len(serving.store.versions()))
    damage(serving.weights / "versions" / bad)
    (serving.weights / "champion").write_text(f"{bad}\n")  # as nothing of ours would write it
    wait_until(lambda: worker.metric("moderation_champion_refused") == 1, "the refusal")
    ids = [serving.add(label="risked") for _ in range(3)]
    assert {(v.label, v.weights) for v in serving.judge(ids).values()} == {("risked", good)}
    assert worker.metric("moderation_weights_loads_total", outcome="refused") == refused + 1
    assert worker.metric("moderation_weights_info", weights=good) == 1
    assert worker.get("/readyz")[0] == 200
    told = [line for line in worker.log().splitlines() if "champion refused" in line][lines:]
    assert len(told) == 1 and said in told[0] and f"{good} stays in service" in told[0], told
    assert not list(serving.weights.rglob("ran")), "a pickle ran"

    mended = publish_colours(serving.store, sharpness=50.0 + len(serving.store.versions()))
    os.replace(_pointer(serving.weights, mended), serving.weights / "champion")
    wait_until(lambda: worker.metric("moderation_weights_info", weights=mended) == 1, "the mended champion")
    assert worker.metric("moderation_champion_refused") == 0


def _pointer(weights: Path, version: str) -> Path:
    path = weights / "champion.new"
    path.write_text(f"{version}\n")
    return path
