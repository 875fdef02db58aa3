"""Damaged files of the weights store, and the words of a command line: an error of ours, one sentence, no traceback.

`test_weights_attacks` shows single attacks by name; here the bytes are drawn.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hostile.test_weights_attacks import Shelf
from tests.support.worker import REPOSITORY, free_port
from trainer import labelling
from trainer.cli import run
from trainer.errors import DataError
from worker.cli import main
from worker.errors import WeightsError
from worker.model import manifest as manifests

QUICK = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MANY = settings(QUICK, max_examples=3000)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.just("../x")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=10,
)
TENSOR = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "F64", "BF16", "U8", "BOOL", "F8_E4M3", "X"]), JSON),
            "shape": st.one_of(st.lists(st.sampled_from([0, 1, 3, 6, -1, 2**63, 2**64, 2**31]), max_size=4), JSON),
            "data_offsets": st.one_of(
                st.lists(st.sampled_from([0, 12, 72, 84, -1, 2**63, 2**64]), min_size=2, max_size=2), JSON
            ),
        }
    ),
)
HEADERS = st.dictionaries(
    st.one_of(st.sampled_from(["classifier.3.weight", "classifier.3.bias", "__metadata__"]), st.text(max_size=20)),
    TENSOR,
    max_size=4,
)
LENGTHS = st.one_of(st.none(), st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]))


@st.composite
def deltas(draw: st.DrawFn) -> bytes:
    """Bytes in the form of a safetensors file: a length that may lie, a header, some data; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    header = json.dumps(draw(HEADERS)).encode()
    length = draw(LENGTHS)
    return struct.pack("<Q", len(header) if length is None else length) + header + draw(st.binary(max_size=100))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """One store for all examples; each damages it anew."""
    made = Shelf(tmp_path_factory.mktemp("store") / "weights")
    made.serve()
    return made


def refused(shelf: Shelf) -> None:
    """What a worker does with the version ends in WeightsError, in one line."""
    with pytest.raises(WeightsError) as caught:
        shelf.serve()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@QUICK
@given(content=deltas())
def test_any_delta_that_its_manifest_vouches_for(shelf: Shelf, content: bytes) -> None:
    """Whoever can forge the digest too reaches the reader of tensors; the identity still refuses other tensors."""
    kept = shelf.manifest_path.read_bytes(), shelf.delta_path.read_bytes()
    try:
        shelf.forge(content)
        refused(shelf)
    finally:
        shelf.manifest_path.write_bytes(kept[0])
        shelf.delta_path.write_bytes(kept[1])


@pytest.mark.long
@MANY
@given(content=deltas())
def test_any_delta_that_its_manifest_vouches_for_long(shelf: Shelf, content: bytes) -> None:
    """The same, three thousand times."""
    kept = shelf.manifest_path.read_bytes(), shelf.delta_path.read_bytes()
    try:
        shelf.forge(content)
        refused(shelf)
    finally:
        shelf.manifest_path.write_bytes(kept[0])
        shelf.delta_path.write_bytes(kept[1])


FIELDS = ["schema", "id", "network", "labels", "preprocessing", "base", "delta", "temperature", "ban_threshold",
          "review_threshold", "metrics", "parent", "data", "provenance", "engines"]  # fmt: skip


@settings(QUICK, max_examples=300)
@given(field=st.sampled_from(FIELDS), value=JSON, inside=st.none() | st.text(max_size=12))
@example(field="base", value=None, inside="\n")
@example(field="preprocessing", value=None, inside="\n")
def test_any_value_in_a_manifest(shelf: Shelf, field: str, value: Any, inside: str | None) -> None:
    """A manifest that differs where verdicts are decided is refused; no other error comes out."""
    document = json.loads(shelf.manifest_path.read_text())
    before = manifests.parse(shelf.manifest_path.read_bytes(), shelf.id)
    if inside is not None and isinstance(document[field], dict):
        document[field] |= {inside: value}
    else:
        document[field] = value
    try:
        read = manifests.parse(json.dumps(document).encode(), shelf.id)
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        for name in ("network", "labels", "preprocessing", "temperature", "ban_threshold", "review_threshold"):
            assert getattr(read, name) == getattr(before, name)


@QUICK
@given(content=st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
@example(content=b"[" * 100_000)
@example(content=b'{"schema": ' + b"9" * 5000 + b"}")
def test_any_bytes_in_any_file_of_the_store(shelf: Shelf, content: bytes) -> None:
    """Manifest, champion, challenger and history."""
    looks = {
        shelf.manifest_path: lambda: shelf.store.manifest(shelf.id),
        shelf.store.root / "champion": shelf.store.champion,
        shelf.store.root / "challenger": shelf.store.challenger,
        shelf.store.root / "history.jsonl": shelf.store.history,
    }
    for path, look in looks.items():
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            look()
        except WeightsError as error:
            assert "\n" not in str(error)
        finally:
            path.unlink() if kept is None else path.write_bytes(kept)


# -- what a person fills in, and a cluster folder's own record


RECORD = {
    "schema": 1, "root": "/nowhere", "doubt_max": 0.5, "made": {},
    "pictures": [["a.jpg", "0" * 64, 0, 0.1], ["b.jpg", "1" * 64, 1, 0.9]],
}  # fmt: skip
NAMES = b'[names]\nc00 = "approved"\nc01 = ""\n'
SAMPLE = b"path,label\na.jpg,approved\n"
TEXTS = st.one_of(
    st.binary(max_size=150),
    st.lists(
        st.sampled_from([b"[names]", b"\n", b"c00", b"c01", b" = ", b'""', b'"risked"', b"path,label", b"a.jpg", b",",
                         b'"', b"\0", b"\r", b"\xff", b"1", b"[[", b"{", b"inf"]), max_size=20
    ).map(b"".join),
)  # fmt: skip


@settings(QUICK, max_examples=300)
@given(
    names=TEXTS | st.just(NAMES),
    sample=TEXTS | st.just(SAMPLE),
    check=TEXTS | st.none(),
    record=st.dictionaries(st.sampled_from(list(RECORD)), JSON, max_size=2),
)
@example(names=NAMES, sample=SAMPLE, check=None, record={"pictures": [["a", "b", float("inf"), 0.5]]})
@example(names=b"x = " + b"[" * 50_000, sample=SAMPLE, check=None, record={})
def test_any_file_of_a_cluster_folder(
    tmp_path: Path, names: bytes, sample: bytes, check: bytes | None, record: dict[str, Any]
) -> None:
    """Read as it was meant, or DataError in one sentence; every label that comes out is one of the three."""
    (tmp_path / labelling.CLUSTERS).write_text(json.dumps(RECORD | record))
    (tmp_path / labelling.NAMES).write_bytes(names)
    (tmp_path / labelling.SAMPLE).write_bytes(sample)
    (tmp_path / labelling.CHECK).unlink(missing_ok=True)
    if check is not None:
        (tmp_path / labelling.CHECK).write_bytes(check)
    try:
        clustering, filled = labelling.read(tmp_path / labelling.NAMES)
    except DataError as error:
        assert "Traceback" not in str(error)
        return
    for decision in labelling.decide(clustering, filled):
        assert decision.label in (None, *labelling.LABELS)


# -- the command line


WORDS = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=40),
    st.sampled_from(["-", "--", "--by", "-h", "$", "0", "../x", "\x1b[2J", "a" * 5000, "\udcff", "@/etc/passwd"]),
)
COMMANDS = [
    ["verdict"], ["verdicts", "--after"], ["submit"], ["submit", "--from"], ["correct"], ["correct", "x"],
    ["correct", "x", "risked", "--by"], ["dead-letter", "replay"], ["dead-letter", "drop"], ["breaker"],
    ["submit", "x", "--patience"], ["submit", "x", "--timeout"], ["exporter", "--port"], ["worker", "--gpu"],
]  # fmt: skip


@settings(QUICK, max_examples=150)
@given(command=st.sampled_from(COMMANDS), words=st.lists(WORDS, min_size=1, max_size=2))
def test_any_words_on_the_command_line(command: list[str], words: list[str]) -> None:
    """With no server to ask: help, or exit 2 and an error; nothing else is raised."""
    if command[0] in ("exporter", "worker") and words[0].isdigit():
        return  # a sound number starts it
    environment = {"MODERATION_REDIS_URL": f"redis://127.0.0.1:{PORT}/0"}
    result = CliRunner().invoke(main, [*command, *words], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), (command, words, result.exception)
    assert result.exit_code in (0, 2) and "Traceback" not in result.output
    assert result.exit_code == 2 or {"-h", "--help"} & set(words) or "Usage" in result.output, result.output


PORT = free_port()


def test_words_that_are_no_text() -> None:
    """Bytes that are no UTF-8, as a shell passes them on, in a real process."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "correct", b"\xff", "risked", "--by", b"\xff"],
        cwd=REPOSITORY, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


@settings(QUICK, max_examples=60)
@given(
    command=st.sampled_from(
        [["promote"], ["show"], ["rollback", "--weights"], ["list", "--weights"], ["fit", "--train"],
         ["fit", "--train", ".", "--test"], ["cluster", "--apply"], ["cluster", "--out", "x", "--pictures"]]
    ),
    words=st.lists(WORDS, min_size=1, max_size=2),
)  # fmt: skip
def test_any_words_of_the_trainer(
    command: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the contract's exit codes; what is raised instead would be a traceback for a person."""
    monkeypatch.chdir(tmp_path)
    assert run([*command, *words]) in (0, 2, 4)
