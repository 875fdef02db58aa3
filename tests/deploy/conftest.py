"""One watched deployment for all tests of this folder: worker, exporter, retraining figures and a real Prometheus."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.place import Place
from tests.support.prometheus import APT, Prometheus
from tests.support.store import publish_colours
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, WorkerProcess, free_port

# What the drift reference is made of: as `moderation-trainer fit` writes it into a manifest.
EXPECTED = {
    "held_out": {
        "confusion": [[90, 10, 0], [10, 88, 2], [0, 10, 90]],
        "risked_probability": [[100] + [0] * 19, [98] + [0] * 18 + [2], [10] + [0] * 18 + [90]],
    },
    "operating": {"prevalence": {"approved": 0.7, "not_suitable": 0.28, "risked": 0.02}},
}
LABELS = ("approved",) * 12 + ("not_suitable",) * 6 + ("risked",) * 2
RETRAINED = """\
# HELP moderation_retrain_last_run_timestamp_seconds When retraining last ran.
# TYPE moderation_retrain_last_run_timestamp_seconds gauge
moderation_retrain_last_run_timestamp_seconds {now}
# HELP moderation_retrain_last_success_timestamp_seconds When it last promoted a version or found nothing new.
# TYPE moderation_retrain_last_success_timestamp_seconds gauge
moderation_retrain_last_success_timestamp_seconds {now}
# HELP moderation_retrain_outcome 1 for what became of the last run.
# TYPE moderation_retrain_outcome gauge
moderation_retrain_outcome{{outcome="promoted"}} 1
moderation_retrain_outcome{{outcome="nothing_new"}} 0
moderation_retrain_outcome{{outcome="refused"}} 0
moderation_retrain_outcome{{outcome="failed"}} 0
"""


@dataclass
class Watched:
    """A place whose worker and exporter a Prometheus scrapes; `node_exporter` serves the retraining figures."""

    place: Place
    worker: WorkerProcess
    prometheus: Prometheus
    exporter_port: int
    exporter: "subprocess.Popen[bytes]"
    began: float
    """By Prometheus's clock, before any traffic; other files may be run between that and a test."""

    def start_exporter(self) -> None:
        """On the port that Prometheus knows."""
        self.exporter = start_exporter(self.place, self.exporter_port)

    def traffic(self) -> None:
        """Pictures of every kind, by one version and then by the next, so that every counter grows before its eyes."""
        self.wave()
        second = publish_colours(self.place.store, sharpness=5.0, metrics=EXPECTED)
        self.place.store.promote(second, by="tests", why="the nightly run")
        wait_until(lambda: self.worker.metric("moderation_weights_info", weights=second) == 1, "the swap")
        for number in (1, 2):
            self.wave()
            decided = f'sum(moderation_verdicts_total{{weights="{second}"}}) == {number * len(LABELS)}'
            wait_until(lambda query=decided: self.prometheus.query(query), "a scrape of it")
        # Groups of rules are evaluated one by one, in no order: each must have seen it.
        decided = [f"sum(moderation:decided:{over}) > 0" for over in ("increase1h", "rate5m", "increase6h")]
        for seen in (*decided, "moderation:label_drift:psi6h"):
            wait_until(lambda query=seen: self.prometheus.query(query), f"the rules to have seen it: {seen}")

    def wave(self) -> None:
        """One of each: labels, a file that is no picture, an ID without one, what is known, a rescan that agrees."""
        ids = [self.place.add(label=label) for label in LABELS]
        self.place.judge([*ids, self.place.add(b"no picture"), f"absent-{ids[0]}"])
        self.place.client.submit(ids[:3])
        self.place.client.submit(ids[3:6], rescan=True)
        unfinished = self.place.broker.client().xlen
        wait_until(lambda: unfinished("moderation:uploads") == 0, "all to be finished")


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Everything running, and some traffic behind it."""
    with running(tmp_path_factory.mktemp("watched")) as made:
        yield made


@contextmanager
def running(folder: Path) -> Iterator[Watched]:
    """A watched deployment in a folder, for as long as the block lasts."""
    tool("prometheus", APT)
    with Place(folder) as place, ExitStack() as stack:
        place.store.promote(publish_colours(place.store, sharpness=4.5, metrics=EXPECTED), by="tests", why="the first")
        worker = place.start_worker(not_found_retry_s="0", fetch_failed_retry_s="0")
        exporter_port, node_port = free_port(), free_port()
        node = start_node_exporter(folder / "textfiles", node_port)
        stack.callback(_end, node)
        exporter = start_exporter(place, exporter_port)
        stack.callback(_end, exporter)
        worker.wait_ready()
        targets = {"workers": worker.metrics_port, "exporter": exporter_port, "retraining": node_port}
        addresses = {name: [f"127.0.0.1:{port}"] for name, port in targets.items()}
        prometheus = stack.enter_context(Prometheus(folder / "prometheus", addresses))
        prometheus.wait_ready()
        made = Watched(place, worker, prometheus, exporter_port, exporter, prometheus.now())
        stack.callback(lambda: _end(made.exporter))  # a test may have started another
        made.traffic()
        yield made


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(30)


def start_exporter(place: Place, port: int) -> "subprocess.Popen[bytes]":
    """`moderation exporter`."""
    environment = os.environ | {"MODERATION_REDIS_URL": place.broker.url, "MODERATION_EXPORTER_PORT": str(port)}
    with (place.folder / "exporter.log").open("ab") as log:
        command = [sys.executable, "-m", "worker.cli", "exporter"]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)


def start_node_exporter(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """Debian's node_exporter with nothing but its textfile collector."""
    program = tool("prometheus-node-exporter", "apt-get install prometheus-node-exporter")
    folder.mkdir()
    (folder / "moderation_retrain.prom").write_text(RETRAINED.format(now=int(time.time()) - 3 * 86400))
    options = ["--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}"]
    with (folder.parent / "node-exporter.log").open("wb") as log:
        return subprocess.Popen([program, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
