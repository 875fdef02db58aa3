"""What a training run is asked for, and what it starts from where a champion is in service already.

    plan, champion ─► start: base, preprocessing, what thresholds are fitted for

What the plan leaves open is the champion's, so that a schedule which names nothing goes on with what a person chose.
Knows nothing of pictures, features or publishing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from torch import Tensor

from trainer import asked, calibrate, recipes
from trainer.asked import Asked
from trainer.bases import CHAMPION, load_base, warn_of_trial
from trainer.cache import MAX_BYTES
from trainer.progress import Reporter
from worker.errors import UsageError, WeightsError
from worker.model import network as networks
from worker.model.manifest import BaseRef
from worker.model.network import Network
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

Recipe = Literal["article", "default"]

Prepares = Literal["champion", "default", "whole"]

WHOLE_FROM: Final = 1.1
"""Where whole pictures are asked for: the longer side, in times the shorter, from which more than the middle square is
judged. Below it that square shows four fifths of it, or more."""


@dataclass(frozen=True)
class Plan:
    """What a run is asked for. `base` is `imagenet`, `champion`, `random:SEED` or a file's path; `epochs` is the
    article's; `asked` says what thresholds are fitted for; `explained` is how many test pictures the report has Shapley
    maps of; `preprocessing` says whether pictures are prepared as the champion does, where there is one of this
    network, as this release does by default, or so that they are judged from end to end (`WHOLE_FROM`).

    `cache` is the folder that keeps features and takes large tables; with None nothing is kept, and all is in memory.
    """

    train: Path
    test: Path
    by: str
    base: str = "imagenet"
    recipe: Recipe = "default"
    epochs: int = recipes.ARTICLE_EPOCHS
    ban_threshold: float | None = None
    asked: Asked = field(default_factory=Asked)
    network: str = "vgg11"
    device: str = "auto"
    cache: Path | None = None
    cache_max_bytes: int = MAX_BYTES
    explained: int = 0
    preprocessing: Prepares = "champion"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"{self.epochs} epochs fit nothing: give 1 or more.")
        if self.ban_threshold is not None:
            calibrate.check_ban_threshold(self.ban_threshold)


@dataclass(frozen=True)
class Start:
    """What a run goes out from. `plan` leaves nothing open; `champion` is the id of the version in service; `source`
    says where the `base` comes from, and `kept` what the store has of it already."""

    plan: Plan
    champion: str | None
    network: Network
    base: Mapping[str, Tensor]
    source: str
    kept: BaseRef | None
    preprocessing: Preprocessing


def start_from(plan: Plan, store: WeightsStore, champion: str | None, reporter: Reporter) -> Start:
    """What `plan` names, and where it names nothing what the champion has, if there is one."""
    network = networks.get(plan.network)
    base, source, kept = _base_of(plan, store, champion, network, reporter)
    plan = replace(plan, asked=_asked_of(plan, store, champion, reporter))
    return Start(plan, champion, network, base, source, kept, _preprocessing_of(plan, store, champion))


def _base_of(
    plan: Plan, store: WeightsStore, champion: str | None, network: Network, reporter: Reporter
) -> tuple[dict[str, Tensor], str, BaseRef | None]:
    """The tensors to start from, where they come from, and what the store has of them already."""
    if plan.base != CHAMPION:
        return *load_base(plan.base, network, reporter), None
    manifest = None if champion is None else store.manifest(champion)
    if manifest is None or manifest.network != plan.network:
        return *load_base("imagenet", network, reporter), None
    warn_of_trial(manifest.base.source, reporter)
    try:
        tensors = store.read_base(manifest.base.sha256, manifest.base.bytes)
    except WeightsError as error:
        raise WeightsError(f"The champion's base cannot be had: {error}; or name another with --base.") from error
    return tensors, manifest.base.source, manifest.base


def _preprocessing_of(plan: Plan, store: WeightsStore, champion: str | None) -> Preprocessing:
    """As `Plan.preprocessing` says: running workers refuse a version that prepares pictures in another way than the
    one in service, and the gate can then pair its verdicts with the champion's of that time only."""
    if plan.preprocessing == "whole":
        return Preprocessing(long_from=WHOLE_FROM)
    if champion is None or plan.preprocessing == "default":
        return Preprocessing()
    manifest = store.manifest(champion)
    same_network = manifest.network == plan.network
    return Preprocessing.from_json(manifest.preprocessing) if same_network else Preprocessing()


def _asked_of(plan: Plan, store: WeightsStore, champion: str | None, reporter: Reporter) -> Asked:
    """What thresholds are fitted for: as planned, else as the champion's were, where it is of this network."""
    manifest = None if champion is None else store.manifest(champion)
    if manifest is not None and manifest.network != plan.network:
        manifest = None
    return asked.completed(plan.asked, manifest, reporter.say, threshold_given=plan.ban_threshold is not None)
