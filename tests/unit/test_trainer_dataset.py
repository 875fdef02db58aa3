"""What the trainer makes of labelled folders."""

from pathlib import Path

import pytest

from trainer import dataset
from trainer.dataset import Picture
from trainer.errors import DataError
from worker.model.labels import LABELS


def labelled(root: Path, per_label: int = 2) -> Path:
    for label in LABELS:
        (root / label).mkdir(parents=True)
        for i in range(per_label):
            (root / label / f"{label}{i}.png").write_bytes(f"{label} {i}".encode())
    return root


def picture(name: str, label: int = 0, sha256: str | None = None) -> Picture:
    return Picture(Path(f"{name}.jpg"), label, name if sha256 is None else sha256)


def many(count: int) -> list[Picture]:
    return [picture(f"{label}x{i}", label) for label in range(3) for i in range(count)]


def test_every_visible_file_is_listed_whatever_its_suffix(tmp_path: Path) -> None:
    """GIF and AVIF, which ImageFolder skips, and nested folders are listed; hidden files are not."""
    root = labelled(tmp_path)
    for name in ("a.gif", "b.avif", "nested/c.webp", ".DS_Store", ".cache/d.png"):
        (root / "approved" / name).parent.mkdir(exist_ok=True)
        (root / "approved" / name).write_bytes(name.encode())

    found = dataset.scan(root, "training")

    approved = [p.path.relative_to(root / "approved").as_posix() for p in found if p.label == 0]
    assert approved == ["a.gif", "approved0.png", "approved1.png", "b.avif", "nested/c.webp"]
    assert found[0].content_id == "a"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training folder"):
        dataset.scan(tmp_path / "nowhere", "training")


def test_a_missing_label_folder_is_named(tmp_path: Path) -> None:
    root = labelled(tmp_path)
    for file in (root / "risked").iterdir():
        file.unlink()
    (root / "risked").rmdir()
    with pytest.raises(DataError, match="no folder 'risked'"):
        dataset.scan(root, "test")


def test_an_empty_label_folder_is_named(tmp_path: Path) -> None:
    root = labelled(tmp_path)
    for file in (root / "not_suitable").iterdir():
        file.unlink()
    (root / "not_suitable" / ".gitkeep").touch()
    with pytest.raises(DataError, match="not_suitable' is empty"):
        dataset.scan(root, "training")


def test_an_unknown_label_folder_is_named(tmp_path: Path) -> None:
    root = labelled(tmp_path)
    (root / "spam").mkdir()
    with pytest.raises(DataError, match="'spam', which is no label"):
        dataset.scan(root, "training")


def test_the_digest_depends_on_labels_and_bytes_alone(tmp_path: Path) -> None:
    """Elsewhere and under other names it is the same; with one picture under another label it is not."""
    here = dataset.scan(labelled(tmp_path / "here"), "training")
    there = dataset.scan(labelled(tmp_path / "there"), "training")
    relabelled = [Picture(here[0].path, 2, here[0].sha256), *here[1:]]
    assert dataset.digest(here) == dataset.digest(reversed(there))
    assert dataset.digest(here) != dataset.digest(relabelled)


def test_repeated_content_is_used_once_and_contradictory_content_not_at_all() -> None:
    pictures = [picture("a", 0, "1"), picture("b", 0, "1"), picture("c", 0, "2"), picture("d", 2, "2")]
    kept, repeated, contradictory = dataset.once_each(pictures)
    assert [p.content_id for p in kept] == ["a"]
    assert [p.content_id for p in repeated] == ["b"]
    assert [p.content_id for p in contradictory] == ["c", "d"]


def test_what_was_trained_on_leaves_the_test_set() -> None:
    kept, leaked = dataset.without_leaks([picture("a")], [picture("x", sha256="a"), picture("y")])
    assert [p.content_id for p in kept] == ["y"]
    assert [p.content_id for p in leaked] == ["x"]


def test_a_fifth_of_each_label_is_held_out_whatever_the_order() -> None:
    fitted_on, held_out = dataset.split(many(20))
    again = dataset.split(list(reversed(many(20))))
    assert dataset.counts(held_out) == dict.fromkeys(LABELS, 4)
    assert dataset.counts(fitted_on) == dict.fromkeys(LABELS, 16)
    assert set(again[1]) == set(held_out)


def test_new_pictures_move_few_old_ones_across_the_split() -> None:
    before = set(dataset.split(many(100))[1])
    after = set(dataset.split(many(110))[1])
    assert len(before - after) <= 12


def test_too_few_pictures_to_hold_some_out_are_refused() -> None:
    with pytest.raises(DataError, match="2 usable training pictures of 'approved'"):
        dataset.split(many(2))


def test_a_label_of_which_too_little_can_be_read_is_refused() -> None:
    with pytest.raises(DataError, match=r"Only 3 .*'approved' can be read"):
        dataset.check_enough(many(3), [])


def test_long_lists_of_files_are_cut() -> None:
    named = dataset.listing([str(i) for i in range(25)])
    assert named.endswith("'9' and 15 more")
