"""deploy/systemd against systemd's own checks, and against what the units start."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.commands import parsed
from tests.support.guarded import valkey
from tests.support.processes import stop_takes_s
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, free_port
from worker.settings import Settings

SHIPPED = REPOSITORY / "deploy" / "systemd"
UNITS = sorted(path.name for path in SHIPPED.iterdir() if path.suffix in (".service", ".timer"))
RUNBOOK = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")
SERVICES = [name for name in UNITS if name.endswith(".service")]
APT = "apt-get install systemd"
# systemd's exposure level, 0 (none) to 10: 2.0 and below it calls OK. What is left is the network, which they are for,
# and code made at run time.
EXPOSURE_MAX = 2.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as installed, their programs those of this Python: `verify` looks whether they can be started."""
    folder = tmp_path_factory.mktemp("units")
    for name in UNITS:
        text = (SHIPPED / name).read_text()
        (folder / name).write_text(text.replace("/opt/moderation/bin", str(Path(sys.executable).parent)))
    return folder


def analyse(*words: str) -> "subprocess.CompletedProcess[str]":
    """One run of systemd-analyze."""
    return subprocess.run([tool("systemd-analyze", APT), *words], capture_output=True, text=True, timeout=60)


def unit(name: str) -> configparser.SectionProxy:
    """The [Service] section; of options given more than once the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # systemd's names are case-sensitive
    parser.read(SHIPPED / name)
    return parser["Service"]


def environment() -> list[tuple[str, str]]:
    """The lines of the environment file."""
    lines = [line for line in (SHIPPED / "moderation.env").read_text().splitlines() if line and line[0] != "#"]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_every_unit(installed: Path, name: str) -> None:
    """`systemd-analyze verify` says nothing at all."""
    name = name.replace("@.", "@0.")
    if "@" in name:
        (installed / name).write_text((installed / name.replace("@0.", "@.")).read_text())
    done = analyse("verify", "--man=no", str(installed / name))
    said = [line for line in done.stderr.splitlines() if str(installed) in line or name in line]
    assert done.returncode == 0 and said == [], done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    """By systemd's own measure of exposure."""
    threshold = f"--threshold={10 * EXPOSURE_MAX:g}"
    done = analyse("security", "--offline=true", "--no-pager", threshold, str(SHIPPED / name))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert done.returncode == 0 and float(found[1]) <= EXPOSURE_MAX, done.stdout


@pytest.mark.parametrize("name", [name for name in SERVICES if "worker" in name or "retrain" in name])
def test_decoders_may_confine_themselves(name: str) -> None:
    """Landlock's calls are in none of systemd 252's groups: without a line of their own they are refused in silence.
    prctl, by which they filter their own, is in a part of @system-service."""
    allowed = re.findall(r"^SystemCallFilter=([^~].*)$", (SHIPPED / name).read_text(), re.M)
    assert {"landlock_create_ruleset", "landlock_restrict_self", "@system-service"} <= set(" ".join(allowed).split())
    assert "@process" in analyse("syscall-filter", "@system-service").stdout.split()
    assert "prctl" in analyse("syscall-filter", "@process").stdout.split()


@pytest.mark.parametrize("name", [name for name in SERVICES if "worker" in name or "retrain" in name])
def test_a_decoder_that_the_kernel_ends_for_want_of_memory_ends_nothing_else(name: str) -> None:
    """They ask to go first; systemd's own default is to stop the whole unit then."""
    assert unit(name).get("OOMPolicy") == "continue"


@pytest.mark.parametrize("name", [name for name in SERVICES if "worker" in name])
def test_a_worker_has_time_to_drain_before_it_is_killed(name: str) -> None:
    """SIGTERM to the main process only, and patience well above MODERATION_DRAIN_S."""
    service = unit(name)
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= stop_takes_s()


@pytest.mark.parametrize(
    ("name", "device"), [("moderation-worker@.service", "cuda"), ("moderation-worker-cpu.service", "cpu")]
)
def test_a_worker_runs_on_its_device_or_not_at_all(name: str, device: str) -> None:
    """Never in silence on the CPU; a GPU's worker starts after what makes the device files that it may not make."""
    text = (SHIPPED / name).read_text()
    assert re.findall(r"^Environment=MODERATION_DEVICE=(.*)$", text, re.M) == [device]
    assert ("nvidia-persistenced.service" in text) == (device == "cuda")


def started(name: str) -> dict[str, Any]:
    """What the command makes of the words of ExecStart."""
    program, *words = unit(name)["ExecStart"].replace("\\\n", " ").replace("%i", "0").split()
    return parsed(Path(program).name, words)


def test_the_redis_unit_starts_a_server_with_the_services_users(tmp_path: Path) -> None:
    """Its command line, with folders of the test's own in the place of the machine's, where the runbook's commands
    put what it reads."""
    service, port = unit("moderation-redis.service"), free_port()
    folders = {
        "/etc/moderation/redis": REPOSITORY / "deploy" / "redis",
        "/etc/moderation/secrets": tmp_path / "secrets",
        f"/var/lib/{service['StateDirectory']}": tmp_path / "data",
        f"/run/{service['RuntimeDirectory']}": tmp_path / "run",
    }

    def here(text: str) -> str:
        for folder, mine in folders.items():
            text = text.replace(folder, str(mine))
        return text

    (tmp_path / "data").mkdir()
    (tmp_path / "secrets").mkdir()
    for role in ("worker", "admin"):
        (tmp_path / "secrets" / role).write_text("a long password\n")
    given = dict(part.split("=", 1) for part in here(service["Environment"]).split())
    command = [*here(service["ExecStart"]).split(), "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | given | {"REDIS_SERVER": valkey()}, stdout=log, stderr=log)
    try:
        client = redis.Redis(port=port, username="worker", password="a long password")
        wait_until(lambda: answers(client), f"the server to answer; see {tmp_path / 'log'}", 20)
        assert client.acl_whoami() == "worker"
        assert list((tmp_path / "data").glob("appendonlydir/*"))
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=port).ping()
        admin = redis.Redis(port=port, username="admin", password="a long password", decode_responses=True)
        assert admin.config_get("save") == {"save": ""}, "a snapshot that fails would stop every write"
    finally:
        server.terminate()
        assert server.wait(20) == 0
    made = re.findall(r"^install .*?(/etc/moderation/\w+)/?(?: .*)?$", RUNBOOK, re.M)
    assert {"/etc/moderation/redis", "/etc/moderation/secrets"} <= set(made)


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "moderation-redis.service"])
def test_a_command_takes_what_a_service_starts_it_with(name: str) -> None:
    """Nothing is missing, nothing unknown."""
    started(name)


def test_retraining_may_write_what_it_is_told_to_write_and_others_read_its_figures() -> None:
    """Under a root that is read-only else; node_exporter is another user."""
    service, given = unit("moderation-retrain.service"), started("moderation-retrain.service")
    writable = service["ReadWritePaths"].split()
    assert {str(given["data"]), str(given["metrics_file"].parent)} <= set(writable)
    assert dict(environment())["MODERATION_WEIGHTS_DIR"] in writable
    assert int(service["UMask"], 8) & 0o044 == 0
    made = re.search(r"^install -d .*/var/lib/moderation/\{(\S+)\}$", RUNBOOK, re.M)
    assert made is not None
    assert {Path(folder).name for folder in writable} <= set(made[1].split(","))


def test_workers_cannot_write_what_the_trainer_computed() -> None:
    """The next version is fitted on it. One user runs both, so it is the folder that a unit may write that counts."""
    folders = {name: unit(name)["CacheDirectory"] for name in SERVICES if "CacheDirectory" in unit(name)}
    trainers = folders.pop("moderation-retrain.service")
    assert len(folders) == 2 and trainers not in folders.values()
    assert f"XDG_CACHE_HOME=%C/{trainers} " in unit("moderation-retrain.service")["Environment"]


def test_the_environment_file_names_settings_that_exist() -> None:
    """And its own values are accepted."""
    fields = {name.removeprefix("MODERATION_").lower(): value for name, value in environment()}
    assert fields.keys() <= Settings.model_fields.keys()
    Settings(_env_file=None, **fields)


def test_a_process_stays_with_the_release_that_it_was_started_from(tmp_path: Path) -> None:
    """The runbook's venv a release and its link: what a process starts anew is of its own release, not of the next."""
    block = next(b for b in re.findall(r"^```\n(.*?)^```$", RUNBOOK, re.M | re.S) if b.startswith("release="))
    assert "/opt/moderation-$release/bin/pip" in block
    # Without pip, which takes seconds; a command's first line is what pip writes.
    link = next(line for line in block.splitlines() if line.startswith("ln "))
    made = next(line for line in block.splitlines() if " -m venv " in line).replace("venv", "venv --without-pip")
    command = "import sys; print(sys.executable, flush=True); input(); print(sys.executable, sys.prefix)"

    def install(release: str) -> None:
        script = f"release={release}\n{made}\n{link}".replace("/opt/", f"{tmp_path}/").replace(
            "python3", sys.executable
        )
        subprocess.run(["bash", "-euc", script], check=True, timeout=60)
        program = tmp_path / f"moderation-{release}" / "bin" / "moderation"
        program.write_text(f"#!{program.parent}/python\n{command}\n")
        program.chmod(0o755)

    def start() -> "subprocess.Popen[str]":
        program = str(tmp_path / "moderation" / "bin" / "moderation")
        return subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    install("1")
    old = start()
    assert old.stdout is not None and old.stdout.readline().startswith(f"{tmp_path}/moderation-1/")
    install("2")
    assert old.communicate("\n", timeout=30)[0].split() == [
        f"{tmp_path}/moderation-1/bin/python",
        f"{tmp_path}/moderation-1",
    ]
    assert start().communicate("\n", timeout=30)[0].splitlines()[0] == f"{tmp_path}/moderation-2/bin/python"
