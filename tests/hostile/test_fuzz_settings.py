"""Any text in any setting is a value or one sentence: of the worker, of the trainer, and what they are handed to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from trainer import settings as trainers
from worker import connection
from worker import settings as workers
from worker.content import ContentStore
from worker.errors import UsageError, WeightsError
from worker.health import HealthServer
from worker.model.weights import WeightsStore

# What an environment can hold: any bytes but NUL, those that are no UTF-8 as Python shows them, as lone surrogates.
TEXTS = st.one_of(
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
    st.from_regex(r"[-+]?[0-9]{1,30}(\.[0-9]+)?(e[0-9]+)?", fullmatch=True),
    st.sampled_from(["nan", "inf", "-inf", "true", "null", "[]", "{}", '""', "0x10", "1_000", "٣", " 1 ", "\x1b[2J"]),
    st.recursive(
        st.sampled_from(["1", "null", '"a"', "NaN"]), lambda inner: inner.map(lambda x: f'{{"a": [{x}]}}'), max_leaves=5
    ),
    st.sampled_from(["redis://", "rediss://", "unix://", "file:///", "s3://", "http://[", "x://{content_id}"]).flatmap(
        lambda start: st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40).map(
            lambda rest: start + rest
        )
    ),
)
DEEP = "[" * 100_000
NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
MANY = settings(NO_DEADLINE, max_examples=1000)


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """The variable is set inside, to the bytes that the text stands for."""
    raw = f"MODERATION_{name.upper()}".encode()
    os.environb[raw] = value.encode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        del os.environb[raw]


def is_a_sentence(error: Exception) -> None:
    """One line that ends with a full stop and can be printed."""
    text = str(error)
    assert text.endswith(".") and "\n" not in text and "Traceback" not in text, text


def check(name: str, value: str) -> None:
    """The rule for one setting of either side."""
    for module, load in ((workers, workers.load), (trainers, trainers.load_settings)):
        if name in module.Settings.model_fields:
            with variable(name, value):
                try:
                    load()
                except UsageError as error:
                    is_a_sentence(error)
                    assert str(error).startswith(("MODERATION_", "The file .env"))


NAMES = sorted({*workers.Settings.model_fields, *trainers.Settings.model_fields})


@pytest.mark.parametrize("name", NAMES)
@NO_DEADLINE
@given(value=TEXTS)
@example(value=DEEP)
@example(value="9" * 5000)
@example(value='{"a":' * 50_000)
def test_any_text_is_a_value_or_a_sentence(name: str, value: str) -> None:
    """Of every variable, and the sentence names it."""
    check(name, value)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@MANY
@given(value=TEXTS)
def test_any_text_is_a_value_or_a_sentence_long(name: str, value: str) -> None:
    """The same, a thousand times a variable."""
    check(name, value)


@NO_DEADLINE
@given(host=TEXTS)
@example(host="ä" * 70)
@example(host="\udcff")
def test_any_metrics_host_is_listened_on_or_refused(host: str) -> None:
    """A name that can be none included. Without a resolver: only what cannot leave this machine is tried."""
    if any(c.isalnum() for c in host) and host.isascii():
        host = f"127.0.0.1{host}" if "." not in host else "256." + host
    try:
        HealthServer(host, 0, CollectorRegistry(), healthy=lambda: None, ready=lambda: None).close()
    except UsageError as error:
        is_a_sentence(error)


@NO_DEADLINE
@given(url=TEXTS)
@example(url="redis://\udcff@localhost/0")
@example(url="redis://[::1")
@example(url="redis://localhost:99999/0")
def test_any_redis_url_is_a_client_or_a_sentence(url: str) -> None:
    """Nothing is sent; what Celery is told of it is made too."""
    for master in (None, "mymaster"):
        try:
            client = connection.connect(url, master)
            client.get_encoder().encode(url)  # as it would be sent: user and password are pieces of it
            connection.celery_broker(url, master)
            client.close()
        except UsageError as error:
            is_a_sentence(error)


LOCAL = st.sampled_from(["file", "local", "memory", "dir", "zip", "http", "nonsense", "simplecache", ""])


@NO_DEADLINE
@given(scheme=LOCAL, before=TEXTS, after=TEXTS)
@example(scheme="http", before="[", after="")
@example(scheme="file", before="/" + "a" * 5000 + "/", after="")
def test_any_content_url_is_a_store_or_a_sentence(scheme: str, before: str, after: str) -> None:
    """With schemes that connect to nothing when they are named."""
    try:
        ContentStore(f"{scheme}://{before}{{content_id}}{after}", max_bytes=10, timeout_s=1)
    except UsageError as error:
        assert "Traceback" not in str(error) and str(error).endswith(".")


@NO_DEADLINE
@given(folder=TEXTS)
@example(folder="a" * 5000)
def test_any_weights_folder_is_a_store_or_refused(folder: str) -> None:
    """Reading it makes no exception but ours, and nothing in it."""
    store = WeightsStore(Path(folder))
    for look in (store.champion, store.challenger, store.versions, store.history):
        try:
            look()
        except WeightsError as error:
            assert "Traceback" not in str(error)


def test_a_dotenv_file_that_is_no_text_is_refused_by_both_sides(tmp_path: Path) -> None:
    """Whatever it holds; `moderation` and `moderation-trainer` say the same."""
    (tmp_path / ".env").write_bytes(b"MODERATION_DEVICE=\xff\xfe")
    for load in (workers.load, trainers.load_settings):
        with pytest.raises(UsageError, match=r"^The file \.env cannot be read") as refused:
            load()
        is_a_sentence(refused.value)
