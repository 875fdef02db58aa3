"""First labels from nothing: `moderation-trainer cluster`, a person's files, and what `--apply` makes of them."""

import csv
import io
import json
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import cluster, dataset, intervals, labelling
from trainer.cli import run
from trainer.cluster import NOISE
from worker.model.labels import LABELS

COLOURS = {"approved": (40, 180, 60), "not_suitable": (60, 70, 190), "risked": (190, 50, 40)}
PER_LABEL = 14


def draw(folder: Path) -> dict[str, str]:
    """Pictures of three kinds, told apart by colour, in folders that say nothing; the true label by name."""
    rng, truth = np.random.default_rng(5), {}
    for i in range(3 * PER_LABEL):
        label = LABELS[i % 3]
        pixels = np.clip(rng.normal(COLOURS[label], 14, (64, 64, 3)), 0, 255).astype(np.uint8)
        path = folder / f"day{i % 2}" / f"id-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        truth[str(path.relative_to(folder))] = label
    return truth


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The pictures, a copy of one and a file that is none among them."""
    folder = tmp_path_factory.mktemp("unlabelled")
    truth = draw(folder)
    shutil.copy(folder / "day0" / "id-0.png", folder / "day1" / "zz-copy.png")
    (folder / "day0" / "notes.txt").write_text("no picture")
    return folder, truth


@pytest.fixture(scope="module")
def gathered(pictures: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `cluster` wrote of them."""
    root = tmp_path_factory.mktemp("clusters")
    assert run(arguments(pictures[0], root / "deep" / "c", "--clusters", "6", "--sample", "20")) == 0
    return root / "deep" / "c"


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return ["cluster", "--pictures", str(folder), "--out", str(out), "--base", "random:0", *more]


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith(".\n") and "Traceback" not in text


def members(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, _, number, _ in json.loads((folder / "clusters.json").read_text())["pictures"]:
        found.setdefault(f"c{number:02d}", []).append(path)
    return found


def name_clusters(folder: Path, truth: dict[str, str], unnamed: str = "") -> dict[str, str]:
    """Fill in names.toml as a person who knows would; returns the names."""
    names = {}
    for name, paths in members(folder).items():
        if name == "c-1":
            continue  # noise is no cluster
        names[name] = "" if name == unnamed else Counter(truth[path] for path in paths).most_common(1)[0][0]
    lines = ["[names]", *(f'{name} = "{label}"' for name, label in sorted(names.items()))]
    (folder / "names.toml").write_text("\n".join(lines))
    return names


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def fill_in(file: Path, labels: dict[str, str]) -> None:
    rows = rows_of(file)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": labels.get(row["path"], row["label"])} for row in rows)


@pytest.fixture
def folder(gathered: Path, tmp_path: Path) -> Path:
    """A copy of the cluster folder, to be filled in by one test."""
    return Path(shutil.copytree(gathered, tmp_path / "clusters"))


def test_cluster_writes_a_page_and_the_files_to_fill_in(gathered: Path, pictures: tuple[Path, dict[str, str]]) -> None:
    """Every cluster without a label, the sample without clusters; repeated and unreadable files are left out."""
    truth = pictures[1]
    assert {path.name for path in gathered.iterdir()} == {"clusters.html", "clusters.json", "names.toml", "sample.csv"}
    names = tomllib.loads((gathered / "names.toml").read_text())["names"]
    found = members(gathered)
    assert names == dict.fromkeys(found, "") and len(names) == 6
    assert sorted(path for paths in found.values() for path in paths) == sorted(truth)
    sample = rows_of(gathered / "sample.csv")
    assert len({row["path"] for row in sample} & truth.keys()) == 20
    assert set(sample[0]) == {"path", "label"} and {row["label"] for row in sample} == {""}
    sizes = [len(found[name]) for name in sorted(found)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_page_asks_for_nothing_outside_it_and_blurs_every_picture(gathered: Path) -> None:
    page = (gathered / "clusters.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page
    assert page.count("<img") == page.count('<img src="data:')
    assert page.count("<img") >= 3 * PER_LABEL + 20
    assert ".sheet .tile img { filter: blur" in page
    assert page.count('type="checkbox"') == 6 + 1


def test_the_same_pictures_give_the_same_clusters(
    gathered: Path, pictures: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(pictures[0], tmp_path / "again", "--clusters", "6", "--sample", "20")) == 0
    heard = capsys.readouterr()
    assert json.loads(heard.out)["clusters"] == 6
    assert "1 files repeat" in heard.err and "notes.txt" in heard.err
    for name in ("clusters.json", "names.toml", "sample.csv", "clusters.html"):
        assert (tmp_path / "again" / name).read_bytes() == (gathered / name).read_bytes()


def test_apply_writes_labelled_folders_that_the_trainer_reads(
    folder: Path, pictures: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is placed lies under its cluster's name, with its content ID; the rest is in check.csv with a reason."""
    root, truth = pictures
    names = name_clusters(folder, truth, unnamed="c03")
    out = tmp_path / "labelled"
    assert run(["cluster", "--apply", str(folder / "names.toml"), "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    placed = {path.name: path.parent.name for path in out.rglob("*.png")}
    check = {row["path"]: row for row in rows_of(folder / "check.csv")}
    of = {path: name for name, paths in members(folder).items() for path in paths}
    assert len(placed) + len(check) == len(truth)
    for path, name in of.items():
        if path in check:
            assert check[path]["suggested"] == names[name]
            assert check[path]["reason"] == ("unnamed_cluster" if name == "c03" else "far_from_centre")
        else:
            assert placed[Path(path).name] == names[name]
            assert (out / names[name] / Path(path).name).read_bytes() == (root / path).read_bytes()
    assert told["to_check"] == Counter(row["reason"] for row in check.values())
    assert told["labels"] == Counter(placed.values()) and told["purity"] is None
    assert len(dataset.scan(out, "training")) == len(placed)


def test_a_persons_label_goes_before_a_clusters_name_and_is_kept(
    folder: Path, pictures: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """From sample.csv and check.csv alike; both count again the next time."""
    truth = pictures[1]
    name_clusters(folder, truth, unnamed="c03")
    apply = ["cluster", "--apply", str(folder / "names.toml"), "--out"]
    assert run([*apply, str(tmp_path / "first")]) == 0
    wrong = rows_of(folder / "sample.csv")[0]["path"]
    other = next(label for label in LABELS if label != truth[wrong])
    fill_in(folder / "sample.csv", {wrong: other})
    to_check = [row["path"] for row in rows_of(folder / "check.csv") if row["path"] != wrong]
    fill_in(folder / "check.csv", {path: truth[path] for path in to_check})
    for attempt in ("second", "third"):
        assert run([*apply, str(tmp_path / attempt)]) == 0
        placed = {path.name: path.parent.name for path in (tmp_path / attempt).rglob("*.png")}
        assert placed == {Path(path).name: other if path == wrong else label for path, label in truth.items()}
        rows = rows_of(folder / "check.csv")
        assert {row["path"] for row in rows} == {*to_check, wrong} and {row["reason"] for row in rows} == {"labelled"}


def test_a_persons_label_outlives_the_picture_it_is_about(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one that is gone the label stays in check.csv, for the day it is back; with all gone nothing is written, for
    the folder is away and not the pictures."""
    shutil.copytree(json.loads((folder / "clusters.json").read_text())["root"], tmp_path / "in")
    record = json.loads((folder / "clusters.json").read_text())
    (folder / "clusters.json").write_text(json.dumps(record | {"root": str(tmp_path / "in")}))
    truth = {path: LABELS[0] for paths in members(folder).values() for path in paths}
    name_clusters(folder, truth, unnamed="c03")
    apply = ["cluster", "--apply", str(folder / "names.toml"), "--out"]
    assert run([*apply, str(tmp_path / "first")]) == 0
    labelled = {row["path"]: "risked" for row in rows_of(folder / "check.csv")}
    fill_in(folder / "check.csv", labelled)
    lost = min(labelled)
    (tmp_path / "in" / lost).rename(tmp_path / "elsewhere")
    assert run([*apply, str(tmp_path / "second")]) == 0
    rows = {row["path"]: row for row in rows_of(folder / "check.csv")}
    assert {path: row["label"] for path, row in rows.items()} == labelled
    assert rows[lost]["reason"] == "gone"
    before = (folder / "check.csv").read_bytes()
    (tmp_path / "in").rename(tmp_path / "away")
    capsys.readouterr()
    assert run([*apply, str(tmp_path / "third")]) == 4
    heard = capsys.readouterr().err
    assert one_sentence(heard) and "bring the folder back" in heard
    assert (folder / "check.csv").read_bytes() == before and not (tmp_path / "third").exists()


def test_files_saved_by_a_spreadsheet_or_an_editor_with_a_byte_order_mark_are_read(
    folder: Path, pictures: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """Also with the other end of line."""
    name_clusters(folder, pictures[1])
    for name in ("names.toml", "sample.csv"):
        text = (folder / name).read_text()
        (folder / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert run(["cluster", "--apply", str(folder / "names.toml"), "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").rglob("*.png"))


def test_what_becomes_of_a_picture_by_its_cluster_its_doubt_and_a_person() -> None:
    """Doubtful ones, noise and mixed clusters are somebody's to label, whose word goes before any name; and the purity
    is that of names alone, or a person's own labels would be counted as right."""
    made = {"sure": (0, 0.2), "limit": (0, 0.9), "far": (0, 0.91), "mixed": (1, 0.1), "noise": (NOISE, 0.0),
            "named": (0, 0.1), "found": (0, 0.95)}  # fmt: skip
    pictures = tuple(labelling.Clustered(path, "0" * 64, *where) for path, where in made.items())
    clustering = labelling.Clustering(Path("in"), pictures, 0.9, {})
    by_hand = {"named": "approved", "found": "not_suitable"}
    sample = by_hand | {"sure": "risked", "limit": ""}
    decided = labelling.decide(clustering, labelling.Filled({"c00": "risked"}, by_hand, sample))
    assert {one.picture.path: (one.label, one.reason) for one in decided} == {
        "sure": ("risked", None),
        "limit": ("risked", None),
        "far": (None, "far_from_centre"),
        "mixed": (None, "unnamed_cluster"),
        "noise": (None, "noise"),
        "named": ("approved", None),
        "found": ("not_suitable", None),
    }
    rows = [row.split(",") for row in labelling.check_file(decided).decode().splitlines()[1:]]
    assert [(row[0], row[4]) for row in rows] == [
        ("far", ""), ("mixed", ""), ("noise", ""), ("named", "approved"), ("found", "not_suitable"),
    ]  # fmt: skip
    purity = labelling.purity(decided, 0.9, sample)
    assert purity is not None and (purity["right"], purity["of"]) == (1, 2)


def test_purity_is_counted_on_the_sampled_pictures_that_a_name_labels(
    folder: Path, pictures: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its exact interval; a sampled picture that must be checked anyway says nothing about what is placed."""
    truth = pictures[1]
    names = name_clusters(folder, truth, unnamed="c03")
    sampled = [row["path"] for row in rows_of(folder / "sample.csv")]
    of = {path: name for name, paths in members(folder).items() for path in paths}
    doubt = {path: d for path, _, _, d in json.loads((folder / "clusters.json").read_text())["pictures"]}
    counted = [path for path in sampled if names[of[path]] and doubt[path] <= 0.9]
    wrong = set(counted[:2])
    hand = {
        p: next(x for x in LABELS if x != names[of[p]]) if p in wrong else names[of[p]] or truth[p] for p in sampled
    }
    fill_in(folder / "sample.csv", hand)
    assert run(["cluster", "--apply", str(folder / "names.toml"), "--out", str(tmp_path / "out")]) == 0
    heard = capsys.readouterr()
    purity = json.loads(heard.out)["purity"]
    assert (purity["right"], purity["of"]) == (len(counted) - 2, len(counted))
    assert purity["interval"] == list(intervals.share(len(counted) - 2, len(counted)))
    assert sum(one["of"] for one in purity["labels"].values()) == len(counted)
    assert "95 % interval" in heard.err


def test_hdbscan_lists_noise_to_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures that look like no other are in no cluster, and no name labels them."""
    truth = draw(tmp_path / "in")
    rng = np.random.default_rng(1)
    for i in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (i % 4 + 1, 3, 3), np.uint8))
        coarse.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "in" / f"odd{i}.png")
        truth[f"odd{i}.png"] = "risked"
    out = tmp_path / "c"
    assert run(arguments(tmp_path / "in", out, "--method", "hdbscan", "--smallest", "8", "--doubt", "1")) == 0
    told = json.loads(capsys.readouterr().out)
    noise = members(out).pop("c-1")
    assert told["clusters"] >= 2 and told["noise"] == len(noise)
    assert all(path.startswith("odd") for path in noise)
    name_clusters(out, truth)
    assert run(["cluster", "--apply", str(out / "names.toml"), "--out", str(tmp_path / "labelled")]) == 0
    assert json.loads(capsys.readouterr().out)["to_check"] == {"noise": len(noise)}
    assert {row["cluster"] for row in rows_of(out / "check.csv")} == {""}


def test_a_source_that_changed_or_is_gone_and_a_content_id_taken_twice_are_to_be_checked(tmp_path: Path) -> None:
    truth = draw(tmp_path / "in")
    twin = tmp_path / "in" / "day1" / "id-0.png"
    Image.new("RGB", (64, 64), COLOURS["risked"]).save(twin)
    truth[str(twin.relative_to(tmp_path / "in"))] = "risked"
    assert run(arguments(tmp_path / "in", tmp_path / "c", "--clusters", "3", "--doubt", "1")) == 0
    name_clusters(tmp_path / "c", truth)
    (tmp_path / "in" / "day1" / "id-1.png").unlink()
    (tmp_path / "in" / "day0" / "id-2.png").write_bytes(b"other")
    assert run(["cluster", "--apply", str(tmp_path / "c" / "names.toml"), "--out", str(tmp_path / "out")]) == 0
    reasons = {row["path"]: row["reason"] for row in rows_of(tmp_path / "c" / "check.csv")}
    assert reasons == {"day1/id-1.png": "gone", "day0/id-2.png": "changed", "day1/id-0.png": "name_taken"}
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(truth) - 3


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        ([], 2, "--pictures DIR"),
        (["--pictures", "IN", "--apply", "C/names.toml"], 2, "either"),
        (["--pictures", "IN/absent"], 4, "absent"),
        (["--pictures", "IN/few"], 4, "2 usable pictures"),
        (["--pictures", "IN", "--clusters", "1"], 2, "--clusters"),
        (["--pictures", "IN", "--method", "dbscan"], 2, "--method"),
        (["--pictures", "IN", "--doubt", "2"], 2, "--doubt"),
        (["--pictures", "IN", "--base", "random:x"], 2, "random:0"),
        (["--apply", "C/absent.toml"], 4, "absent.toml"),
        (["--apply", "IN/few/names.toml"], 4, "clusters.json"),
    ],
)
def test_wrong_usage_is_one_sentence_and_writes_nothing(
    more: list[str], code: int, word: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "in" / "few"
    few.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (40, 40), (10, 20, 100 * i)).save(few / f"{i}.png")
    named = [text.replace("IN", str(tmp_path / "in")).replace("C/", f"{folder}/") for text in more]
    base = [] if "--base" in more or "--apply" in more else ["--base", "random:0"]
    assert run(["cluster", *named, *base, "--out", str(tmp_path / "out")]) == code
    heard = capsys.readouterr()
    last = heard.err.splitlines()[-1] + "\n"
    assert one_sentence(last) and word in last and "Traceback" not in heard.err
    assert heard.out == "" and not (tmp_path / "out").exists()


def test_a_place_that_cannot_hold_the_folder_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "in")
    (tmp_path / "file").write_bytes(b"")
    assert run(["cluster", "--pictures", str(tmp_path / "in"), "--out", str(tmp_path / "file" / "out")]) == 2
    heard = capsys.readouterr().err
    assert one_sentence(heard) and "--out" in heard


def no_names(folder: Path) -> None:
    """names.toml as cluster wrote it: no label in it."""


def broken_toml(folder: Path) -> None:
    (folder / "names.toml").write_text('[names]\nc00 = "approved\n')


def not_text(folder: Path) -> None:
    (folder / "names.toml").write_bytes(b"\xff\xfe[names]")


def unknown_label(folder: Path) -> None:
    text = (folder / "names.toml").read_text()
    (folder / "names.toml").write_text(text.replace('c02 = ""', 'c02 = "spam"'))


def number_as_label(folder: Path) -> None:
    text = (folder / "names.toml").read_text()
    (folder / "names.toml").write_text(text.replace('c02 = ""', "c02 = 7"))


def cluster_missing(folder: Path) -> None:
    text = (folder / "names.toml").read_text()
    (folder / "names.toml").write_text(text.replace("c02", "c22"))


def unknown_in_sample(folder: Path) -> None:
    with (folder / "sample.csv").open("a") as file:
        file.write("../../etc/passwd,approved\n")


def no_label_column(folder: Path) -> None:
    text = (folder / "sample.csv").read_text()
    (folder / "sample.csv").write_text(text.replace("label", "Label", 1))


def bad_label_in_sample(folder: Path) -> None:
    fill_in(folder / "sample.csv", {rows_of(folder / "sample.csv")[3]["path"]: "Risked"})


def record_cut_short(folder: Path) -> None:
    text = (folder / "clusters.json").read_text()
    (folder / "clusters.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (no_names, "No cluster has a label yet"),
        (broken_toml, "names.toml"),
        (not_text, "names.toml"),
        (unknown_label, "'spam'"),
        (number_as_label, "7"),
        (cluster_missing, "'c02'"),
        (unknown_in_sample, "sample.csv"),
        (no_label_column, "no column 'label'"),
        (bad_label_in_sample, "line 5"),
        (record_cut_short, "clusters.json"),
    ],
)
def test_files_that_are_not_filled_in_rightly_exit_4_and_write_nothing(
    spoil: Callable[[Path], None], word: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    assert run(["cluster", "--apply", str(folder / "names.toml"), "--out", str(tmp_path / "out")]) == 4
    heard = capsys.readouterr()
    assert one_sentence(heard.err) and word in heard.err
    assert not (tmp_path / "out").exists() and not (folder / "check.csv").exists()


def test_nobodys_work_is_replaced(
    folder: Path, pictures: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a filled-in cluster folder nor labelled folders: found out before the work."""
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != "names.toml"}
    assert run(arguments(pictures[0], folder)) == 2
    assert one_sentence(capsys.readouterr().err)
    name_clusters(folder, pictures[1])
    assert run(["cluster", "--apply", str(folder / "names.toml"), "--out", str(folder)]) == 2
    assert one_sentence(capsys.readouterr().err)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != "names.toml"} == before


def test_principal_components_of_a_long_table_are_those_of_a_short_one() -> None:
    """A table of several chunks is analysed chunk by chunk; what lies close together stays so."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 2_060)
    values = (rng.normal(size=(3, 40))[groups] * 3 + rng.normal(size=(2_060, 40))).astype(np.float32)
    values[:, 7] = 1.0
    points = cluster.reduce(values, 20)
    assert points.shape == (2_060, 20)
    found = cluster.by_kmeans(points, 3)
    shares = [np.bincount(groups[found.cluster == c]).max() / (found.cluster == c).sum() for c in range(3)]
    assert min(shares) > 0.99


def test_pictures_that_are_all_the_same_to_the_network_are_one_cluster() -> None:
    points = cluster.reduce(np.ones((12, 8), np.float32))
    assert set(cluster.by_kmeans(points, 2).cluster.tolist()) == {0}
