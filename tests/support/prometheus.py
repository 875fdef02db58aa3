"""A real Prometheus with the configuration of deploy/prometheus, and the programs beside it, on ports of their own."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, free_port

SHIPPED = REPOSITORY / "deploy" / "prometheus"
INTERVAL = "500ms"
APT = "apt-get install prometheus"


class Prometheus:
    """Scrapes `targets` (file name to addresses) with the shipped configuration and rules.

    Changed for a test: scrape and evaluation intervals, and the time that a condition must last before its alert
    fires. Expressions stay as they are.
    """

    def __init__(self, folder: Path, targets: dict[str, list[str]]) -> None:
        shutil.copytree(SHIPPED, folder)
        config = yaml.safe_load((folder / "prometheus.yml").read_text())
        config["global"] |= dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), INTERVAL)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        for file in (folder / "rules").glob("*.yml"):
            file.write_text(yaml.safe_dump(_impatient(yaml.safe_load(file.read_text()))))
        for name, addresses in targets.items():
            (folder / "targets" / f"{name}.yml").write_text(yaml.safe_dump([{"targets": addresses}]))
        self.port = free_port()
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                tool("prometheus", APT),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def wait_ready(self) -> Self:
        """Returns once it answers and every target was scraped."""
        wait_until(self._all_up, "Prometheus has scraped every target", 60)
        return self

    def _all_up(self) -> bool:
        try:
            found = self.ask("targets")["activeTargets"]
        except OSError:
            return False
        return len(found) >= 3 and all(target["health"] == "up" for target in found)

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of one answer of its HTTP API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series now."""
        found = self.ask("query", query=expression)
        assert found["resultType"] == "vector", expression
        return [(series["metric"], float(series["value"][1])) for series in found["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Each series over a time, as the API gives it."""
        found: list[dict[str, Any]] = self.ask("query_range", query=expression, start=start, end=end, step=step)[
            "result"
        ]
        return found

    def now(self) -> float:
        """Its time, in seconds since 1970."""
        return float(self.ask("query", query="time()")["result"][1])

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {a["labels"]["alertname"] for a in self.ask("alerts")["alerts"] if a["state"] == "firing"}

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _impatient(rules: dict[str, Any]) -> dict[str, Any]:
    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return rules
