"""The weights store: which of its versions is in service, and how that changes.

    champion, challenger         one line each: a version id
    history.jsonl                one line for each promotion and rollback, and where a champion's figures changed

The versions themselves are `versions`'. Replaces what it writes in one step. Knows nothing of accuracy, gates or
schedules: who may be promoted is for the caller to decide.
"""

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from worker.errors import UsageError, WeightsError
from worker.model import files as stored
from worker.model import history as histories
from worker.model import pointer
from worker.model.history import HistoryEntry
from worker.model.versions import VersionStore


class ChampionChangedError(WeightsError):
    """Another version came into service meanwhile."""


class WeightsStore(VersionStore):
    """The store in the folder `root`: its versions, and which of them is in service."""

    def champion(self) -> str | None:
        """The id of the version in service, None where none is. WeightsError where the file holds no version id."""
        return pointer.read(self.root, "champion")

    def champion_on_record(self) -> str | None:
        """The champion, or the version that a first promotion, which a crash cut short, was to make it; None only where
        there never was one. Changes nothing. WeightsError where a champion is on record and its file was lost: what
        followed would be compared with nothing, held to nothing, and could not be rolled back."""
        champion, history = self.champion(), self.history()
        if champion is not None or not history:
            return champion
        last = history[-1]
        if last.from_ is not None:
            raise WeightsError(
                f"The file champion is missing in {self.root}, where {last.to} served last by the history: put it back "
                f"with `echo {last.to} > {self.root / 'champion'}`"
            )
        return last.to

    def in_service(self) -> str | None:
        """As `champion_on_record`, for who goes on from it: a first promotion that was cut short takes effect."""
        with stored.locked(self.root):
            return self._in_service()

    def challenger(self) -> str | None:
        """The id of the version that waits to be promoted, if any; workers do not read it. Errors as `champion`."""
        return pointer.read(self.root, "challenger")

    def promote(
        self,
        version_id: str,
        *,
        by: str,
        why: str,
        gate: dict[str, Any] | None = None,
        forced: bool = False,
        compared_with: str | None = None,
    ) -> None:
        """Puts a version into service once all it needs has been verified; a challenger so promoted is none any
        more. `gate` and `forced` go into the history as they are. UsageError where it is in service already,
        WeightsError where it cannot be served, ChampionChangedError where another champion than `compared_with`
        serves by now."""
        with stored.locked(self.root):
            champion = self._in_service()
            if champion == version_id:
                raise UsageError(f"{version_id} is the champion already: name another version")
            if compared_with is not None and champion != compared_with:
                raise ChampionChangedError(
                    f"{version_id} was compared with {compared_with}, and {champion} serves by now: promote it again"
                )
            said = {"action": "promote", "from": champion, "by": by, "why": why, "gate": gate, "forced": forced}
            self._put_in_service(version_id, said)

    def set_challenger(self, version_id: str | None) -> None:
        """Names the version that waits to be promoted, None for none. Errors as `promote`."""
        with stored.locked(self.root):
            if version_id is None:
                (self.root / "challenger").unlink(missing_ok=True)
                return
            if version_id == self.champion():
                raise UsageError(f"{version_id} is the champion: name another version as its challenger")
            self.verify(version_id)
            stored.replace(self.root / "challenger", f"{version_id}\n".encode(), shared=True)

    def rollback(self, *, by: str, why: str) -> str:
        """Puts the champion before this one back into service and returns its id; again goes one further back.

        UsageError where there is none, WeightsError where it cannot be served any more, or as `champion_on_record`.
        """
        with stored.locked(self.root):
            champion = self.champion_on_record()
            trail = histories.trail(self.history(), champion)
            if champion is None or len(trail) < 2:
                raise UsageError(
                    f"the store {self.root.absolute()} has no earlier champion to go back to: promote a version instead"
                )
            self._put_in_service(trail[-2], {"action": "rollback", "from": champion, "by": by, "why": why})
            return trail[-2]

    def note_refit(self, version_id: str, *, by: str, why: str) -> None:
        """Puts on record what the version is held to from now on, or tested on, where it is the champion."""
        with stored.locked(self.root):
            if self.champion() == version_id:
                self._append({"action": "refit", "from": version_id, "to": version_id, "by": by, "why": why})

    def history(self) -> list[HistoryEntry]:
        """All promotions, rollbacks and refits, oldest first. WeightsError where a line of history.jsonl is damaged."""
        try:
            with stored.open_inside(self.root, "history.jsonl") as file:
                return histories.parse(file.read())
        except stored.AbsentError:
            return []

    def _in_service(self) -> str | None:
        champion = self.champion_on_record()
        if champion is not None and self.champion() is None:
            self.verify(champion)
            stored.replace(self.root / "champion", f"{champion}\n".encode(), shared=True)
        return champion

    def _put_in_service(self, to: str, said: Mapping[str, Any]) -> None:
        self.verify(to)
        # History first: a crash between the two leaves a line that `history.trail` sees never took effect, where the
        # other order would leave a champion that nobody promoted.
        self._append({"to": to, **said})
        stored.replace(self.root / "champion", f"{to}\n".encode(), shared=True)
        with contextlib.suppress(WeightsError):  # a damaged pointer is told where it is asked for, not after the fact
            if self.challenger() == to:
                (self.root / "challenger").unlink()

    def _append(self, said: Mapping[str, Any]) -> None:
        entry = HistoryEntry.model_validate({"at": datetime.now(UTC), **said})
        stored.append_line(self.root / "history.jsonl", entry.to_json())
