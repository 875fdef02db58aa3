"""deploy/Dockerfile built, and its images run as compose.yaml says, by a real container engine: Podman.

The trainer's image fits on drawn pictures; the worker's judges others with the result, is stopped, and compiles an
engine. Needs Podman, an index that pip reaches, and the Dockerfile's base image or another one that IMAGE_BASE names.
IMAGE_BUILD_OPTIONS has more words for `podman build`, such as --isolation chroot or --build-arg TORCH_INDEX_URL=….
"""

import json
import os
import re
import shlex
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.demo.draw import draw_set
from tests.support.tools import missing, tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker
from worker.client import Moderation

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"
SERVICES: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]
BUILD_TIMEOUT_S = 3000.0
FIT_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 180.0
COMPILE_TIMEOUT_S = 1200.0
DEFAULTED = r"\$\{\w+:-([^}]*)\}"  # what the operator may set, and what it is where nobody does
ONLY_THE_TRAINERS = {"scikit-learn", "scipy", "matplotlib", "imagehash", "shap", "numba", "pandas", "threadpoolctl"}
TRAIN_PER_LABEL, TEST_PER_LABEL = 12, 6


def podman(*words: str, timeout_s: float = 120.0, code: int = 0) -> str:
    """What one command printed; fails with what it said where it ends otherwise than with `code`."""
    command = [tool("podman", "apt-get install podman"), *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == code, f"podman {words[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}"
    return done.stdout


def as_compose_says(service: str, folder: Path) -> list[str]:
    """The options of `podman run` for a service of compose.yaml: its named volumes are folders of `folder`."""
    given = SERVICES[service]
    assert given["read_only"] and given["init"]
    words = ["--read-only", "--init", "--network=host", "--pull=never", "--log-driver=k8s-file"]
    # What Docker forbids where nothing is said of it; Podman would let it run.
    words += [
        f"--tmpfs={mount}" if re.search(r"\bexec\b", mount) else f"--tmpfs={mount},noexec" for mount in given["tmpfs"]
    ]
    words += [f"--cap-drop={name}" for name in given["cap_drop"]]
    words += [f"--security-opt={option.removesuffix(':true')}" for option in given["security_opt"]]
    words += [f"--pids-limit={given['pids_limit']}"] if "pids_limit" in given else []
    words += ["--memory=" + re.sub(DEFAULTED, r"\1", given["mem_limit"])] if "mem_limit" in given else []
    words += [f"--volume={folder}/{volume}" for volume in given["volumes"]]
    # What holds a ${…} is the operator's, and given by the test.
    return words + [f"--env={name}={value}" for name, value in given["environment"].items() if "${" not in value]


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The name of each target's image, built."""
    default = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.M)
    assert default is not None
    base = os.environ.get("IMAGE_BASE", default[1])
    engine = tool("podman", "apt-get install podman")
    if subprocess.run([engine, "image", "exists", base]).returncode:
        pulled = subprocess.run([engine, "pull", base], capture_output=True, text=True, timeout=600)
        if pulled.returncode:
            missing(f"the base image {base} is not here and cannot be pulled: name one in IMAGE_BASE")
    words = ["--file", str(DOCKERFILE), "--format=docker", "--layers", "--build-arg", f"PYTHON_IMAGE={base}"]
    words += shlex.split(os.environ.get("IMAGE_BUILD_OPTIONS", ""))
    names = {target: f"localhost/moderation-{target}-test" for target in ("worker", "trainer")}
    for target, name in names.items():
        podman("build", *words, "--target", target, "--tag", name, ".", timeout_s=BUILD_TIMEOUT_S)
    return names


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a volume, which the images' user may write to as to a volume of its own; pictures in two of them."""
    folder = tmp_path_factory.mktemp("volumes")
    mounted = {volume.partition(":")[0] for name in ("worker-cpu", "retrain") for volume in SERVICES[name]["volumes"]}
    for name in mounted:
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    draw_set(folder / "data", TRAIN_PER_LABEL, TEST_PER_LABEL)
    for path in (folder / "data").rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    for number, picture in enumerate(sorted((folder / "data" / "test").rglob("*.*"))):
        (folder / "content" / f"c{number}").write_bytes(picture.read_bytes())
    return folder


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey server on loopback."""
    server = Broker(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def fitted(images: dict[str, str], volumes: Path, broker: Broker) -> str:
    """The version that the retraining service, as compose.yaml starts it, fitted and promoted."""
    options = [*as_compose_says("retrain", volumes), f"--env=MODERATION_REDIS_URL={broker.url}"]
    words = [*SERVICES["retrain"]["command"], "--base=random:0", "--explain=0", "--always"]
    podman("run", "--rm", *options, images["trainer"], *words, timeout_s=FIT_TIMEOUT_S)
    figures = (volumes / "textfiles" / "moderation_retrain.prom").read_text()
    assert 'moderation_retrain_outcome{outcome="promoted"} 1' in figures
    return (volumes / "weights" / "champion").read_text().strip()


@pytest.fixture
def worker(
    images: dict[str, str], volumes: Path, broker: Broker, fitted: str, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The name of a running container of the service `worker-cpu`, with one setting more where a test names it."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 9101)) != 0, "port 9101 is taken: stop the worker that runs there"
    name = f"moderation-test-{broker.port}"
    options = [*as_compose_says("worker-cpu", volumes), "--env=MODERATION_METRICS_HOST=127.0.0.1"]
    options += [f"--env={request.param}"] if hasattr(request, "param") else []
    podman("run", "--detach", f"--name={name}", *options, f"--env=MODERATION_REDIS_URL={broker.url}", images["worker"])
    yield name
    podman("rm", "--force", "--time=0", name)


def serves_with(worker: str, engine: str) -> bool:
    """Whether the container's worker names this engine; fails where it has given one up."""
    try:
        with urllib.request.urlopen("http://127.0.0.1:9101/metrics", timeout=5) as answer:
            figures = answer.read().decode()
    except OSError:  # not yet, or not again
        return False
    fallbacks = re.findall(r"^moderation_engine_fallbacks_total\{.*", figures, re.M)
    assert not fallbacks, f"{fallbacks}\n{podman('logs', worker)}"
    return f'engine="{engine}"' in figures


@pytest.mark.parametrize("target", ["worker", "trainer"])
def test_an_image_is_nobodys_root_and_complete(images: dict[str, str], target: str) -> None:
    """A number as its user, its program for a command, and no package that another one misses."""
    config = json.loads(podman("image", "inspect", images[target]))[0]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == [{"worker": "moderation", "trainer": "moderation-trainer"}[target]]
    assert podman("run", "--rm", "--network=none", "--entrypoint=id", images[target], "-u").strip() == "10001"
    podman("run", "--rm", "--network=none", "--entrypoint=pip", images[target], "check")
    assert "Usage" in podman("run", "--rm", "--network=none", "--read-only", images[target], "--help")


def test_the_worker_image_holds_nothing_of_the_trainer(images: dict[str, str]) -> None:
    """Neither its code nor its command nor what only it depends on, all of which the trainer's image has."""
    listed = "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})"
    found = {
        target: set(podman("run", "--rm", "--entrypoint=python", name, "-c", listed).split())
        for target, name in images.items()
    }
    assert found["trainer"] >= ONLY_THE_TRAINERS
    assert not found["worker"] & ONLY_THE_TRAINERS
    podman("run", "--rm", "--entrypoint=python", images["worker"], "-c", "import trainer", code=1)
    podman("run", "--rm", "--entrypoint=ls", images["worker"], "/opt/moderation/bin/moderation-trainer", code=2)


def test_a_container_judges_is_healthy_and_stops_cleanly(
    worker: str, volumes: Path, broker: Broker, fitted: str
) -> None:
    """Every picture gets its verdict; told to stop with more in work, it loses none of that, and exits 0."""
    health = [tool("podman", "apt-get install podman"), "healthcheck", "run", worker]
    wait_until(lambda: subprocess.run(health, capture_output=True).returncode == 0, "health", READY_TIMEOUT_S)
    ids = sorted(path.name for path in (volumes / "content").iterdir())
    first, second = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    client = Moderation(broker.url)
    client.submit(first)
    verdicts = client.wait(first, READY_TIMEOUT_S).values()
    assert {verdict.status for verdict in verdicts} == {"decided"}
    assert {verdict.weights for verdict in verdicts} == {fitted}
    client.submit(second)
    podman("stop", "--time=60", worker)
    state = json.loads(podman("inspect", worker))[0]["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), podman("logs", worker)
    judged = [document.content_id for _, document in client.verdicts()]
    waiting = broker.client().xlen("moderation:uploads")
    assert len(judged) == len(set(judged)) and len(judged) + waiting == len(ids)
    client.close()


@pytest.mark.parametrize("worker", ["MODERATION_PRECISION=int8"], indirect=True)
def test_a_container_compiles_an_engine_and_its_next_start_finds_it(worker: str) -> None:
    """On a root that is read-only: the compiler and its headers are there, and somewhere to write to and to run from.
    The folder is its user's alone, and nothing half done stays in it, nor compiled headers in /tmp."""
    wait_until(lambda: serves_with(worker, "cpu-int8"), "the engine", COMPILE_TIMEOUT_S)
    folder = "/var/cache/moderation/moderation-worker"
    assert podman("exec", worker, "stat", "--format=%a %u", folder).split() == ["700", "10001"]
    kept = podman("exec", worker, "find", folder, "-type", "f", "-printf", "%i %f\n")
    assert re.fullmatch(r"\d+ vgg11-int8-[0-9a-f]{24}\.so\n", kept), kept
    assert podman("exec", worker, "find", "/tmp", "-name", "*.gch") == ""
    podman("restart", "--time=60", worker)
    wait_until(lambda: serves_with(worker, "cpu-int8"), "the engine again", READY_TIMEOUT_S)
    assert podman("exec", worker, "find", folder, "-type", "f", "-printf", "%i %f\n") == kept
