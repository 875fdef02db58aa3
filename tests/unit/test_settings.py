"""Settings: read from the environment and `.env`, refused in one sentence that names the variable at fault."""

import math
import os
from pathlib import Path

import pytest

from tests.support.worker import REPOSITORY
from worker import cli, cores, settings
from worker.cores import gpus, memory_bytes, usable
from worker.errors import UsageError

OUT_OF_RANGE = {
    "redis_url": ["", "http://127.0.0.1", "127.0.0.1:6379", "amqp://guest@localhost"],
    "content_url": ["", "/srv/content/{content_id}", "file:///srv/content/", "file:///{content_id}/{content_id}"],
    "content_options": ["{", "[1]", "5", "endpoint=x"],
    "content_max_bytes": ["0", "-1", "1.5", "20 MB", "1073741825"],
    "fetch_timeout_s": ["0", "-1", "nan", "inf", "10s"],
    "fetch_threads": ["0", "1025", "many"],
    "not_found_retry_s": ["-1", "nan", "inf", ""],
    "fetch_failed_retry_s": ["-1", "nan", "inf", "an hour"],
    "weights_dir": [""],
    "metrics_host": [""],
    "device": ["gpu", "CPU", ""],
    "precision": ["fp16", "tf32", ""],
    "max_batch": ["0", "4097", "-1", ""],
    "torch_threads": ["-1", "1025", "all"],
    "decoders": ["-1", "1025", "all"],
    "decode_timeout_s": ["0", "-1", "nan", "inf"],
    "decode_memory_mb": ["0", "63", "-1", "1 GB"],
    "decode_max_pixels": ["0", "-1", "89478486"],
    "review_placement": ["removed", "collective", ""],
    "audit_share": ["-0.1", "1.1", "nan", "5%"],
    "intake_max": ["-1", "1", "255", "1000000001", "many"],
    "ban_quota_share": ["-0.1", "1.1", "nan", "20%"],
    "ban_quota_count": ["-1", "1000000001", "none"],
    "verdict_ttl_s": ["0", "-1", "inf", "315360001", "a week"],
    "claim_deadline_s": ["0", "-1", "nan", "inf"],
    "takeover_idle_s": ["0", "-1", "nan", "inf"],
    "forward_timeout_s": ["0", "-1", "nan", "inf"],
    "drain_s": ["-1", "nan", "inf"],
    "metrics_port": ["-1", "65536", "http", ""],
    "exporter_port": ["0", "-1", "65536"],
    "log_format": ["xml", ""],
    "log_level": ["debug", "ALL", ""],
}
# Any text is a good value: what it names is looked for by whoever uses it.
ANY_TEXT = {"sentinel_master", "engines_dir"}


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` but the one a test writes."""
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_values_to_refuse() -> None:
    """The list above forgets no setting."""
    assert set(settings.Settings.model_fields) == OUT_OF_RANGE.keys() | ANY_TEXT


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """UsageError: one line, one sentence, with the variable's name in it."""
    variable = f"MODERATION_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=rf"^{variable}[ :].*[^.]\.$") as raised:
        settings.load()
    assert "\n" not in str(raised.value)


def test_a_refused_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL may hold a password, and a sentence ends in logs."""
    monkeypatch.setenv("MODERATION_REDIS_URL", "reddis://:geheim@127.0.0.1/0")
    with pytest.raises(UsageError) as raised:
        settings.load()
    assert "geheim" not in str(raised.value)


def test_refused_options_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage options may hold keys."""
    monkeypatch.setenv("MODERATION_CONTENT_OPTIONS", "{'secret': 'geheim'}")
    with pytest.raises(UsageError, match="must be JSON") as raised:
        settings.load()
    assert "geheim" not in str(raised.value)


def test_a_deadline_shorter_than_a_slow_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names all three variables that do not fit together."""
    monkeypatch.setenv("MODERATION_DECODE_TIMEOUT_S", "60")
    with pytest.raises(UsageError, match=r"CLAIM_DEADLINE_S .*FETCH_TIMEOUT_S .*DECODE_TIMEOUT_S"):
        settings.load()


def test_the_contracts_defaults() -> None:
    """What others rely on where nothing is set."""
    defaults = settings.load()
    assert defaults.redis_url == "redis://127.0.0.1:6379/0"
    assert defaults.content_url == "file:///var/lib/moderation/content/{content_id}"
    assert defaults.weights_dir == Path("./weights")
    assert (defaults.device, defaults.precision, defaults.max_batch) == ("auto", "auto", 64)
    assert defaults.verdict_ttl_s == 604800
    assert (defaults.metrics_host, defaults.metrics_port) == ("127.0.0.1", 9101)
    assert (defaults.review_placement, defaults.sentinel_master) == ("held", None)


def test_a_dotenv_file_is_read_and_the_environment_goes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.env` in the working folder; what is in it for other programs does not disturb."""
    (tmp_path / ".env").write_text(
        "MODERATION_MAX_BATCH=7\nMODERATION_AUDIT_SHARE=0.5\nMODERATION_NONSENSE=1\nPOSTGRES_PASSWORD=x\n"
    )
    monkeypatch.setenv("MODERATION_AUDIT_SHARE", "0.25")
    loaded = settings.load()
    assert (loaded.max_batch, loaded.audit_share) == (7, 0.25)


def test_a_dotenv_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """One sentence that names the file."""
    (tmp_path / ".env").write_bytes(b"MODERATION_MAX_BATCH=\xff\xfe")
    with pytest.raises(UsageError, match=r"\.env"):
        settings.load()


@pytest.mark.parametrize("name", ["sentinel_master", "engines_dir"])
def test_an_empty_text_is_none_where_none_may_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass on what is not set as an empty text."""
    monkeypatch.setenv(f"MODERATION_{name.upper()}", "")
    assert settings.load().model_dump()[name] is None


def test_settings_are_frozen() -> None:
    """Read once: nothing changes them afterwards."""
    with pytest.raises(ValueError, match="frozen"):
        settings.load().max_batch = 1


def test_there_is_always_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 decoders means as many as fit the machine, and at least two."""
    assert settings.load().decoder_count() >= 2
    monkeypatch.setenv("MODERATION_DECODERS", "5")
    assert settings.load().decoder_count() == 5


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("150000 100000\n", 2),
        ("100 100000\n", 1),
        ("max 100000\n", None),
        ("", None),
        ("1 0", None),
        ("100000000 100000\n", 1000),
        (None, None),
    ],
)
def test_cores_are_those_that_the_container_is_given(tmp_path: Path, limit: str | None, cores: int | None) -> None:
    """A share of a core counts as one; without a limit, or with one that is no number, the process's own count."""
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit)
    own = len(os.sched_getaffinity(0))
    assert usable(file) == min(own, cores or own)


def test_cores_are_those_that_the_process_is_pinned_to(tmp_path: Path) -> None:
    """Not all that the machine has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable(tmp_path / "no limit") == 1
    finally:
        os.sched_setaffinity(0, before)


def test_beside_a_gpu_the_cores_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network leaves them free, to as many workers as there are GPUs; what was asked for stands on both."""
    monkeypatch.setattr(cores, "usable", lambda: 24)
    for machine, decoders in ((1, 23), (4, 5), (16, 2)):
        monkeypatch.setattr(cores, "gpus", lambda machine=machine: machine)
        assert settings.load().decoder_count(on_gpu=True) == decoders
    assert (settings.load().torch_thread_count(on_gpu=True), settings.load().torch_thread_count()) == (1, 24)
    monkeypatch.setenv("MODERATION_DECODERS", "3")
    assert settings.load().decoder_count(on_gpu=True) == settings.load().decoder_count() == 3


@pytest.mark.parametrize(
    ("limit", "gib"), [(str(16 * 2**30), 16), ("max\n", math.inf), ("", math.inf), (None, math.inf)]
)
def test_decoders_fit_into_the_containers_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, gib: float
) -> None:
    """Half of them, each with the largest picture: with many more the kernel ends them. What was asked for stands."""
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    assert memory_bytes(file) == gib * 2**30
    monkeypatch.setattr(cores, "usable", lambda: 64)
    monkeypatch.setattr(cores, "memory_bytes", lambda: memory_bytes(file))
    counts = settings.load().decoder_count(on_gpu=True), settings.load().decoder_count()
    assert counts == ((63, 16) if gib == math.inf else (10, 16))
    monkeypatch.setenv("MODERATION_DECODERS", "30")
    assert settings.load().decoder_count(on_gpu=True) == 30


def test_the_workers_of_several_gpus_share_the_containers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GiB each of four has 20, 8 of them for itself; one alone has 72 for its decoders."""
    monkeypatch.setattr(cores, "usable", lambda: 256)
    monkeypatch.setattr(cores, "memory_bytes", lambda: 80 * settings.GIB)
    for machine, decoders in ((4, 16), (1, 96)):
        monkeypatch.setattr(cores, "gpus", lambda machine=machine: machine)
        assert settings.load().decoder_count(on_gpu=True) == decoders


def test_a_claim_outlives_one_fetch_and_two_attempts_at_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default 10 s and 8 s: a deadline of 26 would leave the slowest picture to another in its last moment."""
    monkeypatch.setenv("MODERATION_CLAIM_DEADLINE_S", "26")
    with pytest.raises(UsageError, match="CLAIM_DEADLINE_S"):
        settings.load()
    monkeypatch.setenv("MODERATION_CLAIM_DEADLINE_S", "26.5")
    assert settings.load().claim_deadline_s == 26.5


@pytest.mark.parametrize("url", ["redis://127.0.0.1/1", "rediss://127.0.0.1", "unix:///run/redis.sock?db=1"])
def test_a_redis_is_named_by_each_kind_of_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MODERATION_REDIS_URL", url)
    assert settings.load().redis_url == url


def test_gpus_are_counted_by_their_device_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by what a process is pinned to; none counts as one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpus(tmp_path) == 1
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null"):
        (tmp_path / name).touch()
    assert gpus(tmp_path) == 3


@pytest.mark.parametrize(("names", "count"), [("", 2), ("MIG-a, MIG-b,MIG-c", 3), ("4", 2), (",", 2)])
def test_slices_of_a_gpu_are_counted_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, count: int
) -> None:
    """They share a device file; and a scheduler may give fewer GPUs than there are files of."""
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert gpus(tmp_path) == count


@pytest.mark.parametrize(("device", "asked", "decoders"), [("auto", "0", 7), ("cuda", "5", 5), ("cpu", "0", 6)])
def test_a_worker_pinned_to_a_slice_shares_the_cores_with_the_others(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: str, decoders: int
) -> None:
    """Though it sees none of them once it is pinned; what was asked for stands, and a worker on the CPU has its own."""
    monkeypatch.setattr(cores, "usable", lambda: 24)
    for name, value in {
        "CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b,MIG-c", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "MODERATION_DEVICE": device, "MODERATION_DECODERS": asked, "MODERATION_METRICS_PORT": "9101",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(cli.PINNED, "")
    for _ in range(2):  # the second time as after a HUP, upon which Celery starts the program anew
        cli._pin(1, settings.load())
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["MODERATION_METRICS_PORT"]) == ("MIG-b", "9102")
    assert settings.load().decoder_count(on_gpu=device != "cpu") == decoders


def test_a_gpu_that_is_named_again_gets_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name and a port of its own, and its part of the cores: where one process's Python is slower than them."""
    monkeypatch.setattr(cores, "usable", lambda: 96)
    monkeypatch.setattr(cores, "memory_bytes", lambda: math.inf)
    for name, value in {
        "CUDA_VISIBLE_DEVICES": "0,0,1,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "MODERATION_DEVICE": "cuda",
        "MODERATION_DECODERS": "0", "MODERATION_METRICS_PORT": "9101", cli.PINNED: "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    cli._pin(3, settings.load())
    pinned = settings.load()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert (pinned.metrics_port, pinned.decoder_count(on_gpu=True)) == (9104, 23)


def test_the_readmes_table_is_the_generated_one() -> None:
    """README.md says of every setting what the code says; `python -m worker.settings` prints the table."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]
    assert table.strip() == settings.markdown_table().strip()
