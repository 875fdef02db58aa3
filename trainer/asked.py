"""What a version's thresholds are to be fitted for: what the run says, else what the champion was fitted for.

    options ─► where one was not given, the champion's ─► where it has none, the defaults

A champion that was calibrated for the shares of a real stream is else followed by one that was calibrated for those
of the training pictures, as soon as a run leaves an option out. Rules only: reads no file and changes no store.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

from trainer import operating
from trainer.calibrate import Aims
from worker.model.manifest import Manifest

GIVEN: Final = "prevalence_given"
"""In a manifest's `metrics.operating`: the shares as they were given. Labels that were left out shared the rest as in
training, and are to do so in the next version, too: bounds of labels weighted as they were counted are narrower."""


@dataclass(frozen=True)
class Asked:
    """What a run says of prevalence and aims; None of one leaves it to the champion.

    `prevalence` has shares of uploads by label, or asks for those of the training pictures, whatever the champion was
    fitted for; the others are those of `calibrate.Aims`. Raises UsageError for what cannot be meant.
    """

    prevalence: Mapping[str, float] | Literal["training"] | None = None
    ban_precision: float | None = None
    review_recall: float | None = None
    uploads_per_day: int | None = None

    def __post_init__(self) -> None:
        self.aims()
        if given := self.given():
            operating.check_given(given)

    def aims(self) -> Aims:
        """The aims, with the defaults in the place of those that are not said."""
        said = {one.name: getattr(self, one.name) for one in fields(Aims)}
        return Aims(**{name: value for name, value in said.items() if value is not None})

    def given(self) -> Mapping[str, float] | None:
        """The shares of uploads that were given; None for the training shares."""
        return self.prevalence if isinstance(self.prevalence, Mapping) else None

    def noted(self) -> dict[str, Any]:
        """What a manifest's `metrics.operating` keeps of it beside prevalence and aims as they were applied."""
        given = self.given()
        return {GIVEN: dict(given)} if given else {}


def fitted_for(metrics: Mapping[str, Any]) -> Asked:
    """What a manifest's metrics say that the version was fitted for; nothing where it was made by hand."""
    operated = metrics.get("operating", {})
    aims = operated.get("aims", {})
    # Versions from before the shares were kept as given have those of all three labels.
    shares = operated.get(GIVEN, operated.get("prevalence")) if operated.get("prevalence_from") == "given" else None
    return Asked(shares, aims.get("ban_precision"), aims.get("review_recall"), operated.get("uploads_per_day"))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Where two manifests' metrics differ in what the gate holds a version to, `name old -> new` each."""
    old, new = fitted_for(before), fitted_for(after)
    held_to = ("prevalence", "ban_precision", "review_recall")
    return [
        f"{name.replace('_', ' ')} {_shown(was)} -> {_shown(now)}"
        for name in held_to
        if (was := getattr(old, name)) != (now := getattr(new, name))
    ]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={share:g}" for name, share in value.items())
    return "not given" if value is None else str(value)


def completed(
    asked: Asked, champion: Manifest | None, say: Callable[[str], None], *, threshold_given: bool = False
) -> Asked:
    """`asked`, with what the `champion` was fitted for where it says nothing; None: there is none of this network.

    Tells in one sentence what was taken over, where that is not the default anyway, and in another that a ban
    threshold which was set by hand is not: it says nothing of other weights.
    """
    if champion is None:
        return asked
    before = fitted_for(champion.metrics)
    taken = {
        one.name: getattr(before, one.name)
        for one in fields(Asked)
        if getattr(asked, one.name) is None and getattr(before, one.name) is not None
    }
    if told := _told(Asked(**taken)):
        say(f"Fitted for what the champion {champion.id} was, for no option says otherwise: {', '.join(told)}.")
    if champion.ban_threshold is not None and not champion.ban_threshold_proven and not threshold_given:
        say(
            f"The ban threshold {champion.ban_threshold:g} of the champion {champion.id} was set by hand, which shows "
            "nothing of other weights: this version's is calibrated, unless --ban-threshold sets it."
        )
    return replace(asked, **taken)


def _told(taken: Asked) -> list[str]:
    """The options that would ask for the same, without those that are the defaults."""
    aims, default = taken.aims(), Aims()
    told = []
    if given := taken.given():
        told.append("--prevalence " + ",".join(f"{name}={share:g}" for name, share in given.items()))
    for one in fields(Aims):
        if (value := getattr(aims, one.name)) != getattr(default, one.name):
            told.append(f"--{one.name.replace('_', '-')} {value}")
    return told
