"""What happens to a version once it exists: published, listed, promoted past the gate, rolled back; one run at a time.

Files and their verification are the store's (`worker.model.weights`), whether a version is good enough is the gate's
to say; this module says which version plays which part. Knows nothing of pictures or of how a version was made.
"""

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator
from typing import Final, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer import contest, costs, gate, locks
from trainer.checks import Decision
from trainer.errors import OvertakenError, RefusedError
from worker.errors import UsageError, WeightsError
from worker.model import history as histories
from worker.model.manifest import Manifest
from worker.model.weights import ChampionChangedError, WeightsStore

Role = Literal["champion", "challenger"]

FIRST_WHY: Final = "first version of the store"


@contextlib.contextmanager
def one_run(store: WeightsStore) -> Iterator[None]:
    """Hold the store's run lock, and remove what killed runs left there. Raises LockedError where another run holds it,
    WeightsError where the store's folder cannot be written to."""
    with locks.one_run(store.root, "weights store", "--weights", WeightsError):
        store.remove_abandoned()
        yield


def take_its_place(store: WeightsStore, version_id: str, *, by: str) -> Role:
    """Make the store's first version its champion, a later one the challenger; a champion fitted again stays it."""
    champion = store.in_service()
    if champion == version_id:
        return "champion"
    if champion is None:
        store.promote(version_id, by=by, why=FIRST_WHY)
        return "champion"
    store.set_challenger(version_id)
    return "challenger"


def promote(
    store: WeightsStore,
    version_id: str,
    *,
    by: str,
    why: str,
    margin: float = gate.MARGIN,
    force: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Put a version into service after verifying all its files and, where one is in service, passing the gate.

    `say` is told the gate's figures, and where workers must be restarted to follow. With `force` they are recorded, and
    it goes ahead against them. Raises UsageError where there is none of that id, RefusedError where the gate says no,
    OvertakenError where another version came into service meanwhile.
    """
    champion = store.in_service()
    _check_asked(store, version_id, champion, margin)
    if champion is None:
        store.promote(version_id, by=by, why=why, forced=force)
        return
    try:
        decision = _compared(store, version_id, champion, margin, say)
    except WeightsError as error:  # what they were tested on is damaged
        if not force:
            raise
        decision = Decision((), margin, 0, (f"Nothing was compared: {error}",), refused=True)
        say(decision.notes[0])
    if not decision.passed and not force:
        raise RefusedError(decision.refusal(version_id, champion))
    forced = force and not decision.passed
    try:
        store.promote(version_id, by=by, why=why, gate=decision.to_json(), forced=forced, compared_with=champion)
    except ChampionChangedError as error:  # a person's rollback, most likely, which this must not undo unseen
        raise OvertakenError(f"{error}.") from error
    _say_restart(store, champion, version_id, say)


def preview(store: WeightsStore, version_id: str, *, margin: float = gate.MARGIN, say: Callable[[str], None]) -> None:
    """Tell `say` what the gate makes of a version today; writes nothing, so it needs no lock. Raises as `promote`."""
    champion = store.champion_on_record()
    _check_asked(store, version_id, champion, margin)
    store.verify(version_id)
    if champion is None:
        say(f"{version_id} would be the store's first champion, which is compared with none.")
        return
    decision = _compared(store, version_id, champion, margin, say)
    if not decision.passed:
        raise RefusedError(decision.refusal(version_id, champion))
    say(f"{version_id} would be promoted in the place of {champion}.")
    if why := after_a_rollback(store, version_id):
        say(f"Only by a person; a scheduled run would say: {why}")


def after_a_rollback(store: WeightsStore, version_id: str) -> str | None:
    """Why no schedule puts a version into service, for a person rolled back; None where nothing is in its way."""
    history = histories.in_effect(store.history(), store.champion())
    last = next((entry for entry in reversed(history) if version_id in (entry.from_, entry.to)), None)
    if last is not None and last.action == "rollback" and last.from_ == version_id:
        return (
            f"The version {version_id} is not promoted, for {last.by} took it out of service "
            f"({last.why.rstrip('.')}): correct what it was fitted on, or promote it by hand."
        )
    if history and history[-1].action == "rollback":
        # The gate compares with what a person went back to, which is easily surpassed by what they went back from: one
        # more correction would bring its successor into service, with the same fault.
        return (
            f"The version {version_id} is left as challenger, for {history[-1].by} rolled back from "
            f"{history[-1].from_} to {history[-1].to} ({history[-1].why.rstrip('.')}): `moderation-trainer promote "
            f"{version_id}` puts it into service, and once a person has promoted a version, retraining does so again."
        )
    return None


def _check_asked(store: WeightsStore, version_id: str, champion: str | None, margin: float) -> None:
    """Raises UsageError where the version is not there, or the champion already, or the margin is none."""
    known(store, version_id)
    if champion == version_id:
        raise UsageError(f"{version_id} is the champion already: nothing to promote.")
    gate.check_margin(margin)


def _compared(
    store: WeightsStore, version_id: str, champion: str, margin: float, say: Callable[[str], None]
) -> Decision:
    """The gate's decision, told with its figures and with what it would cost in service."""
    decision = contest.compare(store, version_id, champion, margin)
    told = [costs.sentence(row) for row in costs.comparison(store.manifest(version_id), store.manifest(champion))]
    for sentence in (*decision.sentences(), *told):
        say(sentence)
    return decision


def rollback(store: WeightsStore, *, by: str, why: str, say: Callable[[str], None] = lambda sentence: None) -> str:
    """Put the champion before this one back into service; returns its id. Raises what `WeightsStore.rollback` does."""
    left = store.champion()
    back = store.rollback(by=by, why=why)
    _say_restart(store, left, back, say)
    return back


def _say_restart(store: WeightsStore, left: str | None, champion: str, say: Callable[[str], None]) -> None:
    """Tell where running workers refuse the new champion, for it prepares pictures in another way than the last."""
    with contextlib.suppress(WeightsError):  # a damaged one is told where it matters
        if left is not None and store.manifest(left).preprocessing != store.manifest(champion).preprocessing:
            say(f"{champion} prepares pictures in another way than {left}, with which workers go on: restart them.")


def known(store: WeightsStore, version_id: str) -> Manifest:
    """The verified manifest of a published version. Raises UsageError where there is none of that id."""
    if version_id not in store.versions():
        raise UsageError(
            f"There is no version {version_id[:80]!r} in the store {store.root.absolute()}: name one that "
            "`moderation-trainer list` shows."
        )
    return store.manifest(version_id)


def show_versions(store: WeightsStore, console: Console, say: Callable[[str], None] = lambda sentence: None) -> None:
    """Print the versions, oldest first: a table on a terminal, tab-separated lines elsewhere; `say` hears what is wrong
    with what names the champion. UsageError where there is no store: an empty list would say that nothing serves."""
    if not store.root.is_dir():
        raise UsageError(f"There is no weights store {store.root.absolute()}: name the one that workers serve from.")
    champion, challenger = _named(store.champion_on_record, say), _named(store.challenger, say)
    if champion is not None and champion not in store.versions():
        say(f"The champion {champion} is not among them: copy it into the store again, or promote another.")
    header = ("version", "role", "test accuracy", "ban threshold", "recipe", "base", "created", "by")
    manifests, damaged = [], []
    for version_id in store.versions():
        try:
            manifests.append(store.manifest(version_id))
        except WeightsError:  # of one of them; the others are still to be seen
            damaged.append((version_id, _role(version_id, champion, challenger), "damaged", *[""] * (len(header) - 3)))
    manifests.sort(key=lambda manifest: str(manifest.provenance.get("created_at", "")))
    rows = [_row(manifest, champion, challenger) for manifest in manifests] + damaged
    if not console.is_terminal:
        for row in (header, *rows):
            print("\t".join(row), file=console.file)  # rich would turn the tabs into spaces
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, no_wrap=name == "version")
    for row in rows:
        table.add_row(*map(escape, row), style="bold" if row[1] == "champion" else "")
    console.print(table)


def _named(read: Callable[[], str | None], say: Callable[[str], None]) -> str | None:
    """The version that a file names; where that is damaged or lost, the list is what one looks into for what to do."""
    try:
        return read()
    except WeightsError as error:
        say(str(error))
        return None


def _role(version_id: str, champion: str | None, challenger: str | None) -> str:
    return {challenger: "challenger", champion: "champion"}.get(version_id, "")


def _row(manifest: Manifest, champion: str | None, challenger: str | None) -> tuple[str, ...]:
    accuracy = manifest.metrics.get("test", {}).get("accuracy")
    threshold = manifest.ban_threshold
    proven = "" if manifest.ban_threshold_proven else " (unproven)"
    return (
        manifest.id,
        _role(manifest.id, champion, challenger),
        f"{accuracy:.3f}" if isinstance(accuracy, float) else "unknown",
        "never bans" if threshold is None else f"{threshold:g}{proven}",
        str(manifest.provenance.get("recipe", "")),
        manifest.base.source,
        str(manifest.provenance.get("created_at", "")),
        str(manifest.provenance.get("by", "")),
    )


def whoami() -> str:
    """The name of the user that runs this, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
