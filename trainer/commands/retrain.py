"""`retrain`: the whole job for cron, systemd timers or a Kubernetes CronJob, and what it tells Prometheus."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from trainer.commands.options import margin_option, weights_option
from trainer.commands.plan import plan_of, plan_options
from trainer.settings import load_settings, open_content, open_store
from worker.errors import UsageError


class _Reporting(click.Command):
    """A command whose metrics also tell of arguments that it did not understand."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        given = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError:
            from trainer.progress import Reporter
            from trainer.retrain_metrics import reported

            lenient = {"resilient_parsing": True, "ignore_unknown_options": True}
            named = super().make_context(info_name, given, parent, **extra, **lenient).params
            with reported(named["metrics_file"], named["pushgateway"], Reporter().say):
                raise


@click.command(cls=_Reporting)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The growing data set: DIR/train/interim/<label>, DIR/test/interim/<label>.",
)
@plan_options(base="champion")
@margin_option
@click.option(
    "--test-share",
    type=float,
    default=0.2,
    show_default=True,
    metavar="S",
    help="Share of new pictures that become test pictures, by a hash of their ID.",
)
@click.option("--always", is_flag=True, help="Fit although nothing is new, as after a change of these options.")
@click.option(
    "--metrics-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the outcome there for node_exporter's textfile collector (NAME.prom).",
)
@click.option("--pushgateway", metavar="URL", help="Push the outcome there, too.")
@weights_option
def retrain(
    data: Path,
    margin: float,
    test_share: float,
    always: bool,
    metrics_file: Path | None,
    pushgateway: str | None,
    weights: Path | None,
    **how: Any,
) -> None:
    """Collect what people decided, fit, and promote past the gate; prints the outcome and the champion's id.

    Corrections come from MODERATION_REDIS_URL, pictures from MODERATION_CONTENT_URL. May be killed and run again at any
    time.
    """
    from trainer.progress import Reporter
    from trainer.retrain import Job
    from trainer.retrain import retrain as run
    from trainer.retrain_metrics import reported
    from trainer.spots import label_folders
    from worker.client import Moderation

    reporter = Reporter()
    with _stopped_by_sigterm(), reported(metrics_file, pushgateway, reporter.say) as record:
        if not data.is_dir():  # made here, a mistyped one would be filled with every picture that was ever decided
            raise UsageError(
                f"There is no folder {str(data)!r} for --data: name the one that grows, or make one first."
            )
        settings = load_settings()
        plan = plan_of(label_folders(data, "train"), label_folders(data, "test"), settings, reporter, **how)
        job = Job(data, plan, margin, test_share, always, settings.fetch_threads)
        champion = run(job, open_store(weights), Moderation(), open_content(), reporter, record)
        click.echo(f"{record.outcome} {champion}")


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A scheduler's time limit ends the run as Ctrl-C does, so that its metrics are written."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
