"""The `moderation` command: a client for people and shell scripts, and the way to start a worker or the exporter.

Words in, words out; everything else is in the rooms it calls. Errors are one sentence on stderr and exit 2.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from worker import cli_people, connection, exporter, logs, misspelt, settings
from worker import status as screen
from worker.client import Moderation
from worker.errors import ModerationError, WaitedError
from worker.health import HealthServer

logger = logging.getLogger(__name__)

EXIT_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT  # as shells say it
WAIT_TIMEOUT_S = 3600.0
# In a worker's environment, where it is this process's own: which GPU its variables have been set for.
PINNED = "_MODERATION_PINNED_TO_GPU"


class _Seconds(click.FloatRange):
    """A time that clocks can add to; click's own range takes nan for one within."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        return seconds if seconds == seconds else self.fail(f"{value!r} is no number of seconds.", param, ctx)


SECONDS = _Seconds(min=0, max=31_536_000)


class _Cli(click.Group):
    """Turns errors that are meant for the caller into one sentence and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except ModerationError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(EXIT_ERROR)
        except ModuleNotFoundError as error:  # a client's machine has a part of what this package asks for
            click.echo(
                f"error: {error.name} is not installed: pip install moderation-worker with all it needs.", err=True
            )
            sys.exit(EXIT_ERROR)

    def invoke(self, ctx: click.Context) -> Any:
        # Not in `main`, where click has made 1 of it by then, which says that there is no verdict.
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:  # the reader of our output, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moderation-worker")
@click.pass_context
def main(context: click.Context) -> None:
    """Image moderation: submit content IDs, read verdicts, run workers. Settings: MODERATION_* variables."""
    if context.invoked_subcommand not in ("worker", "exporter"):  # those have a log to say it in
        for sentence in misspelt.sentences():
            click.echo(f"warning: {sentence}", err=True)


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--gpu", type=click.IntRange(0, 63), help="Pin to this GPU: own node name, metrics port base + N.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(gpu: int | None, celery_options: tuple[str, ...]) -> None:
    """Run one worker process. Further options go to Celery's own `worker` command."""
    configured = settings.load()
    if {"-D", "--detach"} & set(celery_options):
        raise click.UsageError("A worker stays in the foreground: leave out --detach, systemd or a shell can do it.")
    logs.set_up(configured.log_level, configured.log_format)  # before Celery does: it warns first
    # A banner is no JSON, and would stand among the lines where a log store collects both outputs.
    quiet = ["--quiet"] if configured.log_format == "json" else []
    named: list[str] = []
    if gpu is not None:
        _pin(gpu, configured)
        named = ["--hostname", f"gpu{gpu}@%h"]
    from celery.bin.celery import celery

    # Celery's own command, which ends this process with the worker's exit code; its `worker_main` lets go of it.
    celery.main(["--app", "worker.app", *quiet, "worker", *named, *celery_options], prog_name="moderation")


def _pin(gpu: int, configured: settings.Settings) -> None:
    """This process's environment for one GPU; before torch is imported, or it has counted the devices already."""
    if os.environ.get(PINNED) == str(gpu):
        return  # Celery, told to by a HUP, has started this program anew in its own environment
    os.environ[PINNED] = str(gpu)
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    mine = given.split(",") if given else [str(number) for number in range(gpu + 1)]
    if gpu >= len(mine):
        raise click.UsageError(f"CUDA_VISIBLE_DEVICES={given} has no GPU {gpu}: count from 0, or unset it.")
    if given and configured.device != "cpu":
        # While all of them are named still: slices of one GPU share its cores, and no longer see each other from here.
        os.environ["MODERATION_DECODERS"] = str(configured.decoder_count(on_gpu=True))
    os.environ["CUDA_VISIBLE_DEVICES"] = mine[gpu].strip()
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts; CUDA itself puts the fastest first
    if configured.device == "auto":
        os.environ["MODERATION_DEVICE"] = "cuda"  # rather not at all than on the CPU under a GPU's name
    if configured.metrics_port:
        os.environ["MODERATION_METRICS_PORT"] = str(configured.metrics_port + gpu)


@main.command(cls=cli_people.TakesIds)
@click.argument("ids", nargs=-1)
@click.option(
    "--from", "source", type=click.Path(path_type=Path, allow_dash=True), help="File of IDs, a line each; - is stdin."
)
@click.option("--backfill", is_flag=True, help="Wait until no upload waits.")
@click.option("--rescan", is_flag=True, help="Judge again what already has a verdict.")
@click.option("--durable", is_flag=True, help="Return only when the entries are on the server's disk.")
@click.option(
    "--patience",
    type=SECONDS,
    default=0.0,
    show_default=True,
    help="Seconds for room in a full intake.",
)
@click.option("--wait", is_flag=True, help="Wait for the verdicts and print them, a line of JSON each.")
@click.option("--timeout", type=SECONDS, default=WAIT_TIMEOUT_S, show_default=True, help="Seconds for --wait.")
def submit(
    ids: tuple[str, ...],
    source: Path | None,
    backfill: bool,
    rescan: bool,
    durable: bool,
    patience: float,
    wait: bool,
    timeout: float,
) -> None:
    """Enqueue content IDs."""
    wanted = [*ids, *(_lines(source) if source else ())]
    if not wanted:
        raise click.UsageError("There is no content ID to submit: name some, or give --from FILE.")
    if rescan and wait:
        raise click.UsageError("A rescan that changes nothing writes nothing to wait for: leave out --wait.")
    client = Moderation()
    try:
        count = client.submit(wanted, backfill=backfill, rescan=rescan, durable=durable, patience_s=patience)
    except KeyboardInterrupt:
        click.echo("A part may be enqueued: submit all of them again.", err=True)
        raise
    click.echo(f"{count} submitted", err=True)
    if wait:
        found: Mapping[str, Any] = {}
        try:
            found = client.wait(wanted, timeout)
        except WaitedError as error:
            found = error.found
            raise
        finally:
            for content_id in filter(found.__contains__, wanted):
                click.echo(found[content_id].to_json())


@main.command(cls=cli_people.TakesIds)
@click.argument("content_id")
def verdict(content_id: str) -> None:
    """Print the verdict on one content ID as JSON; exit 1 where there is none."""
    found = Moderation().verdict(content_id)
    if found is None:
        click.echo(f"{content_id} has no verdict (yet, or any more)", err=True)
        sys.exit(1)
    click.echo(found.to_json())


@main.command()
@click.option("--after", default="0", show_default=True, help="Entry ID to go on from; $ is the end.")
@click.option("--follow", is_flag=True, help="Wait for new ones; never ends.")
def verdicts(after: str, follow: bool) -> None:
    """Print verdicts in order, as `ENTRY_ID JSON` lines."""
    for entry_id, document in Moderation().verdicts(after, follow=follow):
        click.echo(f"{entry_id} {document.to_json()}")


for command in cli_people.COMMANDS:
    main.add_command(command)


@main.command("exporter")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: MODERATION_EXPORTER_PORT.")
def run_exporter(port: int | None) -> None:
    """Serve the whole service's figures for Prometheus; needs no worker."""
    configured = settings.load()
    logs.set_up(configured.log_level, configured.log_format)
    for sentence in misspelt.sentences():
        logger.warning(sentence)
    client = connection.connect(configured.redis_url, configured.sentinel_master)
    server = HealthServer(
        configured.metrics_host,
        port or configured.exporter_port,
        exporter.registry(client),
        healthy=lambda: None,
        ready=lambda: exporter.problem(client),
        advice="MODERATION_EXPORTER_PORT (or --port) to a free port",
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    host = f"[{configured.metrics_host}]" if ":" in configured.metrics_host else configured.metrics_host
    logger.info("serving http://%s:%d/metrics", host, port or configured.exporter_port)
    stopped.wait()
    server.close()


@main.command()
def status() -> None:
    """One screen: what is wrong, backlog, workers, last promotion, circuit breaker."""
    figures = exporter.read(Moderation().redis)
    promotion = screen.last_promotion(settings.load().weights_dir)
    width = None if sys.stdout.isatty() else screen.WIDTH
    Console(highlight=False, width=width).print(screen.draw(figures, promotion, datetime.now(UTC)))


def _lines(source: Path) -> Iterator[str]:
    try:
        with click.open_file(str(source), encoding="utf-8-sig") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(
            f"{source} cannot be read ({error}): name a text file with one content ID a line."
        ) from None


if __name__ == "__main__":
    main()
