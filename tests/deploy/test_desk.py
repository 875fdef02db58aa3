"""deploy/README.md, "At the desk": what the page tells people to type works there, in the role that it names.

What the platforms start for it is in test_containers.py, test_kubernetes.py and test_systemd.py.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.deploy.test_runbook import RUNBOOK, blocks_of
from tests.support.commands import parsed
from tests.support.guarded import GuardedServer, debian_redis
from tests.support.pictures import picture
from tests.support.store import publish_colours
from tests.support.tools import tool
from tests.support.worker import REPOSITORY, WorkerProcess
from trainer.cli import run as moderation_trainer
from worker import bus
from worker.client import Moderation
from worker.model.weights import WeightsStore

TYPED = sorted(set(re.findall(r"`((?:moderation|moderation-trainer) (?!worker)[a-z][^`]*)`", RUNBOOK)))
COMPOSE, SYSTEMD, KUBERNETES, EXAMPLES, FIRST = blocks_of("At the desk")
NEEDS_PICTURES = {"moderation-trainer check"}


@dataclass
class Desk:
    """A server with every role, a worker, and a store whose second version serves."""

    server: GuardedServer
    content: Path
    store: WeightsStore

    def upload(self, name: str) -> str:
        """A picture under this ID."""
        (self.content / name).write_bytes(picture("approved"))
        return name


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Debian's Redis, the oldest server that is promised to do."""
    folder = tmp_path_factory.mktemp("desk")
    content, store = folder / "content", WeightsStore(folder / "weights")
    content.mkdir()
    for sharpness in (4.0, 5.0):
        store.promote(publish_colours(store, sharpness=sharpness), by="tests", why="to go back from")
    with GuardedServer(folder / "server", debian_redis()) as server:
        worker = WorkerProcess(server, store.root, content, folder)
        try:
            worker.wait_ready()
            yield Desk(server, content, store)
        finally:
            worker.kill()


@pytest.mark.parametrize("line", [line for line in TYPED if line not in NEEDS_PICTURES])
def test_what_the_page_tells_people_to_type_works_at_the_desk(
    line: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the moderator, with nothing else set but where the store is."""
    assert "where Redis knows you as `moderator`" in RUNBOOK
    environment = {
        "MODERATION_REDIS_URL": desk.server.url_of("moderator"),
        "MODERATION_WEIGHTS_DIR": str(desk.store.root),
    }
    admin = desk.server.client()
    letter = {"content_id": "buried", "reason": "killed_its_worker", "stream": bus.UPLOADS}
    (tmp_path / "ids").write_text("listed\n")
    ids = {
        "dead-letter": lambda: admin.xadd(bus.DEAD_LETTER, letter).decode(),
        "promote": lambda: publish_colours(desk.store, sharpness=6.0),
    }
    program, *words = line.split()
    here = {"ID": ids.get(words[0], lambda: desk.upload("an-id"))(), "LABEL": "approved", "NAME": "ann", "TEXT": "why"}
    words = [{**here, "FILE": str(tmp_path / "ids")}.get(word, word) for word in words]
    if program == "moderation":
        command = [sys.executable, "-m", "worker.cli", *words]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment | {"PATH": os.environ["PATH"]}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # The gate has nothing to compare here, and says no; whether it may be asked is what counts.
    assert moderation_trainer(words) == (3 if words[0] == "promote" else 0), capfd.readouterr().err


def test_the_examples_are_whole() -> None:
    """Nothing is missing, nothing unknown; a command that the page names in short stands here with all that it asks."""
    examples = [line.removeprefix("desk ").split() for line in EXAMPLES.splitlines()]
    for program, *words in examples:
        parsed(program, words)
    assert {" ".join(words[:2]) for words in examples} >= NEEDS_PICTURES


def test_the_moderator_reads_lists_of_ids_from_a_pipe(desk: Desk) -> None:
    """As the page has it, for no file of the machine is at the desk."""
    line = re.search(r"`desk (moderation submit [^`]*) < ids`", RUNBOOK)
    assert line is not None
    command = [sys.executable, "-m", "worker.cli", *line[1].split()[1:]]
    environment = {"MODERATION_REDIS_URL": desk.server.url_of("moderator"), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, input=b"one\ntwo\n", capture_output=True)
    assert done.returncode == 0 and b"2 submitted" in done.stderr, done.stderr


def test_uploaders_and_dashboards_could_not_do_it(desk: Desk) -> None:
    """Which is why the desk is the moderator's: the page once called the user `dashboard` enough."""
    for role in ("dashboard", "uploader"):
        with pytest.raises(Exception, match="may not do that"):
            Moderation(desk.server.url_of(role)).correct("x", "approved", by="ann")


def typed(block: str, folder: Path) -> list[list[str]]:
    """What a block and then `desk moderation status` start, as words; the machine's own programs stand aside."""
    said = folder / "said"
    for name in ("docker", "kubectl", "systemd-run"):
        note = f"import json, sys; open({str(said)!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')"
        (folder / name).write_text(f"#!{sys.executable}\n{note}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", f"{block}\ndesk moderation status"], env=environment, check=True, timeout=60)
    return [json.loads(line) for line in said.read_text().splitlines()]


def test_the_desk_of_compose_is_a_service_of_its_own(tmp_path: Path) -> None:
    [words] = typed(COMPOSE, tmp_path)
    assert words == ["docker", "compose", "run", "--rm", "-T", "desk", "moderation", "status"]


def test_the_desk_of_systemd_has_the_services_settings_user_and_programs(tmp_path: Path) -> None:
    """Its options are known to systemd-run, and the page makes each file that it reads."""
    [words] = typed(SYSTEMD, tmp_path)
    options = words[1 : words.index("/usr/bin/env")]
    assert words[-3:] == ["/usr/bin/env", "moderation", "status"]
    assert {"--uid=moderation", "--gid=moderation", "--wait", "--pty", "--pipe"} <= set(options)
    assert any(option.startswith("--setenv=PATH=/opt/moderation/bin:") for option in options)
    files = [option.partition("=")[2] for option in options if option.startswith("EnvironmentFile=")]
    assert len(files) == 2
    helped = subprocess.run([tool("systemd-run", "apt-get install systemd"), "--help"], capture_output=True, text=True)
    assert {option.partition("=")[0] for option in options if option.startswith("-")} <= set(
        re.findall(r"--?[a-z][a-z-]*", helped.stdout)
    )
    for file in files:
        assert re.search(rf"^install .* {file}(?: .*)?$", RUNBOOK, re.M), file


def test_the_desk_of_kubernetes_is_a_job_in_the_services_namespace(tmp_path: Path) -> None:
    create, wait, execute = typed(KUBERNETES, tmp_path)
    assert create[-2:] == ["--from=cronjob/moderation-desk", "desk"]
    assert wait[-1] == "job/desk"
    assert execute[-4:] == ["job/desk", "--", "moderation", "status"]


def test_every_kubectl_command_of_the_page_names_the_namespace() -> None:
    """But those that make it, and that apply files which name it themselves."""
    commands = re.findall(r"(?:^|`|\{ )(kubectl [^`\n]*)", RUNBOOK, re.M)
    assert len(commands) > 8
    for command in commands:
        whole = ("kubectl create namespace moderation", "kubectl apply --kustomize")
        assert command.startswith(("kubectl --namespace moderation ", *whole)), command


@pytest.fixture
def machine() -> Iterator[Path]:
    """A folder that every user may look into, in the place of the machine's root; pytest's own are its user's alone."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_first_store_and_pictures_get_to_where_they_belong(machine: Path) -> None:
    """The page's own lines. The folders are root's, as those of volumes may be, and whoever types at the desk may write
    into them and no more."""
    for file in ("srv/store/champion", "srv/pictures/train/interim/risked/a.jpg", "srv/pictures/test/none"):
        (machine / file).parent.mkdir(parents=True)
        (machine / file).write_text("here")
    for name in ("weights", "data"):
        (machine / "var/lib/moderation" / name).mkdir(parents=True)
        (machine / "var/lib/moderation" / name).chmod(0o777)
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups" if os.getuid() == 0 else ""
    script = re.sub(r"(/srv/|/var/lib/)", rf"{machine}\1", FIRST)
    command = ["bash", "-euo", "pipefail", "-c", f'desk() {{ {nobody} "$@"; }}\n{script}']
    subprocess.run(command, cwd="/", check=True, timeout=60)
    assert (machine / "var/lib/moderation/weights/champion").read_text() == "here"
    assert (machine / "var/lib/moderation/data/train/interim/risked/a.jpg").read_text() == "here"
