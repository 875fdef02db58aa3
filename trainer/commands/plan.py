"""How to fit, as `fit` and `retrain` are asked it in the same words: options in, a plan out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from trainer.commands.options import Command, base_option, by_option, cache_option
from trainer.settings import Settings, cache_folder
from worker.errors import UsageError

if TYPE_CHECKING:
    from trainer.plan import Plan
    from trainer.progress import Reporter

OPTIONS: Final = (
    click.option(
        "--recipe",
        type=click.Choice(["default", "article"]),
        default="default",
        show_default=True,
        help="How the last layer is fitted.",
    ),
    click.option("--epochs", type=click.IntRange(min=1), help="Epochs of --recipe article [default: 10]."),
    click.option("--ban-threshold", type=float, metavar="X", help="Set the ban threshold by hand, unproven."),
    click.option(
        "--prevalence",
        metavar="LABEL=SHARE,…",
        help="Shares of uploads, such as risked=0.02: the ban precision is then to be shown at them; "
        "`training` asks for the training shares [default: the champion's, else the training shares].",
    ),
    click.option(
        "--ban-precision",
        type=float,
        metavar="P",
        help="Bans that must be right [default: the champion's, else 0.95].",
    ),
    click.option(
        "--review-recall",
        type=float,
        metavar="R",
        help="Risked that a person must see [default: the champion's, else 0.95].",
    ),
    click.option(
        "--uploads-per-day",
        type=click.IntRange(min=1),
        metavar="N",
        help="For the expected bans and reviews a day [default: the champion's, else 1000000].",
    ),
    click.option(
        "--explain",
        "explained",
        type=click.IntRange(0, 50),
        default=3,
        show_default=True,
        metavar="N",
        help="Test pictures with Shapley maps in the report; seconds each, 0 is none.",
    ),
    click.option(
        "--preprocessing",
        type=click.Choice(["champion", "default", "whole"]),
        default="champion",
        show_default=True,
        help="How pictures are prepared: as the champion does, for running workers to take the version up; as this "
        "release does; or the same, but judged from end to end, not by their middle, which takes three passes for a "
        "photograph. With another than the champion's, restart workers once the version is promoted.",
    ),
    cache_option,
    by_option,
)


def plan_options(base: str) -> Callable[[Command], Command]:
    """Gives a command the options that `plan_of` takes; `base` is where it starts from unless --base says so."""

    def given(command: Command) -> Command:
        for option in reversed((base_option(base), *OPTIONS)):
            command = option(command)
        return command

    return given


def plan_of(
    train: Path,
    test: Path,
    settings: Settings,
    reporter: "Reporter",
    *,
    base: str,
    recipe: Literal["article", "default"],
    epochs: int | None,
    ban_threshold: float | None,
    prevalence: str | None,
    ban_precision: float | None,
    review_recall: float | None,
    uploads_per_day: int | None,
    explained: int,
    preprocessing: Literal["champion", "default", "whole"],
    cache: Path | None,
    by: str | None,
) -> "Plan":
    """The plan for these folders. Raises UsageError for what cannot be meant."""
    from trainer import release
    from trainer.asked import Asked
    from trainer.plan import Plan
    from trainer.recipes import ARTICLE_EPOCHS

    if epochs is not None and recipe != "article":
        reporter.say("--epochs is for --recipe article only; the default recipe is solved to its end.")
    return Plan(
        train=train,
        test=test,
        by=by or release.whoami(),
        base=base,
        epochs=epochs or ARTICLE_EPOCHS,
        recipe=recipe,
        ban_threshold=ban_threshold,
        asked=Asked(
            None if prevalence is None else parse_prevalence(prevalence), ban_precision, review_recall, uploads_per_day
        ),
        device=settings.device,
        cache=cache_folder(cache),
        cache_max_bytes=settings.cache_max_mb * 2**20,
        explained=explained,
        preprocessing=preprocessing,
    )


def parse_prevalence(text: str) -> dict[str, float] | Literal["training"]:
    """`risked=0.02,approved=0.6` as shares by label, `training` as it is. Raises UsageError where it cannot be read."""
    if text.strip() == "training":
        return "training"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            raise UsageError(f"--prevalence {part[:40]!r} cannot be read: write it as risked=0.02.") from None
        if name in shares:
            raise UsageError(f"--prevalence names {name[:40]!r} twice: give each label once.")
        shares[name] = value
    return shares
