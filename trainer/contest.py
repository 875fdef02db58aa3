"""Two versions of a store in, the gate's decision about them out: this gathers what the gate is to judge.

    manifests ─► standards ─┐
    outcomes of both ───────┼─► gate ─► decision
    history ─► the anchor ──┘

Changes nothing in the store, and knows nothing of what becomes of the decision.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from trainer import gate, outcomes, standards
from trainer.checks import Check, Decision
from trainer.outcomes import Outcomes, Thresholds
from worker.errors import WeightsError
from worker.model import history as histories
from worker.model.history import HistoryEntry
from worker.model.manifest import ManifestDraft
from worker.model.weights import WeightsStore

CHOSE_ON_TEST: Final = (
    "The article's recipe chose its epoch on these test pictures, which flatters it: judge it on others."
)


def compare(store: WeightsStore, version_id: str, champion: str, margin: float = gate.MARGIN) -> Decision:
    """What the gate says of a stored version against `champion`. Raises WeightsError where either is damaged."""
    return decide(store, version_id, store.manifest(version_id), read_outcomes(store, version_id), champion, margin)


def decide(
    store: WeightsStore,
    version_id: str,
    draft: ManifestDraft,
    own: Outcomes | None,
    champion: str,
    margin: float = gate.MARGIN,
) -> Decision:
    """As `compare`, of a version that need not be stored yet: its `draft`, and its `own` outcomes where it keeps any.

    The champion's verdicts are those that the version's own run noted down, for they are of all its pictures, else
    those that the champion keeps; which pictures the champion was tested on, it keeps itself.
    """
    manifest, of_champion = store.manifest(champion), read_outcomes(store, champion)
    notes = [] if own else [f"{version_id} keeps no outcomes of its test pictures."]
    judged: gate.Judged = own.verdicts() if own else {}
    kept: gate.Judged = of_champion.verdicts() if of_champion else {}
    if not of_champion:
        notes.append(
            f"The champion {champion} keeps no outcomes of its test pictures: whether they are still among the "
            "challenger's is not known."
        )
    if draft.provenance.get("recipe") == "article":
        notes.append(CHOSE_ON_TEST)
    others = _noted(own, kept) if own and own.parent and own.parent[0] == champion else kept
    decision = gate.judge(judged, others, margin=margin, held_to=standards.stricter(draft, manifest))
    there = gate.kept(judged, kept, (training_counts(draft), training_counts(manifest)))
    anchor = anchor_of(store.history(), champion)
    slid, said = _since(store, judged, anchor, margin) if anchor not in (champion, version_id) else ([], [])
    return replace(decision, checks=(*there, *decision.checks, *slid), notes=(*decision.notes, *notes, *said))


def anchor_of(history: Sequence[HistoryEntry], champion: str | None) -> str | None:
    """The last version in line for the champion, itself included, that came into service by somebody's own decision:
    the first one, or one that was forced. None where none did."""
    own = {entry.to for entry in history if entry.action == "promote" and (entry.gate is None or entry.forced)}
    line = histories.trail(list(history), champion)
    return next((version for version in reversed(line) if version in own), None)


def read_outcomes(store: WeightsStore, version_id: str) -> Outcomes | None:
    """What a version made of its test pictures; None where it keeps no such file. WeightsError where it is damaged."""
    content = store.read_extra(version_id, outcomes.FILE, outcomes.FILE_MAX_BYTES)
    if content is None:
        return None
    return outcomes.parse(content, version_id).knowing(thresholds_of(store.manifest(version_id)))


def thresholds_of(draft: ManifestDraft) -> Thresholds:
    """The version's thresholds."""
    return draft.ban_threshold, draft.review_threshold


def training_counts(draft: ManifestDraft) -> Mapping[str, int]:
    """How many training pictures of each label a version was made of, the held-out ones among them; empty where its
    manifest does not say."""
    counts = draft.data.get("counts", {})
    return Counter(counts.get("fitted_on", {})) + Counter(counts.get("held_out", {}))


def _noted(own: Outcomes, kept: gate.Judged) -> gate.Judged:
    """The parent's verdicts; what a person sees, where an earlier release did not note that, from what it `kept`."""
    return {
        key: (label, kept[key][1] if verdict.reviewed is None and key in kept else verdict)
        for key, (label, verdict) in own.of_parent().items()
    }


def _since(
    store: WeightsStore, judged: gate.Judged, anchor: str | None, margin: float
) -> tuple[list[Check], list[str]]:
    """What the gate says of a version against the anchor, and what a person should know of it."""
    if anchor is None:
        return [], []
    try:
        kept = read_outcomes(store, anchor)
    except WeightsError:  # the comparison with the champion stands all the same
        kept = None
    if kept is None:
        return [], [
            f"The anchor {anchor} keeps no outcomes that can be read, so small steps since it are not added up."
        ]
    said = f"The anchor is {anchor}, the last in line that came into service without the gate."
    if not (checks := gate.not_slid(judged, kept.verdicts(), margin)):
        said += " It has no test picture in common with the challenger, so small steps since it are not added up."
    return checks, [said]
