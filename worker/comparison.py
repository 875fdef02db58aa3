"""Compares a candidate's features with fp32's: on the pictures kept with the version, then on what is being judged.

A version, a candidate and a reference go in, an `Agreement` comes out, and what it rests on is kept for the next
process and the next last layer. Knows no Redis, IDs or metrics, and puts nothing into service.
"""

import itertools
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from worker.classifier import Classifier, Version
from worker.evidence import Evidence
from worker.model import check_pictures
from worker.model.agreement import RULES, Agreement, Labels
from worker.model.compiled import EVIDENCE, EngineCache
from worker.model.engine import Engine, Frames, Head
from worker.model.graphed import GraphedEngine
from worker.model.manifest import Manifest
from worker.model.weights import WeightsStore

LOOK_EVERY_S: Final = 0.5
COMPARED_FRAMES: Final = 16
SAVE_EVERY: Final = 200
BATCHES_WAITING: Final = 2
"""Scored batches that may wait to be compared; more are let go, so that memory stays bounded."""


@dataclass(frozen=True)
class Candidate:
    """An engine that may come to serve `version`, in `precision`, and fp32 to compare it with."""

    version: Version
    precision: str
    engine: Engine
    reference: Engine


class Comparison:
    """One thread compares; batches are offered by the batcher's.

    Args:
        cache: in whose folder the evidence is kept, beside the engine that it is about.
        check_current: asked after each step, for it to raise where the comparison has lost its object.
    """

    def __init__(
        self,
        classifier: Classifier,
        store: WeightsStore,
        cache: EngineCache,
        check_current: Callable[[Version], None],
    ) -> None:
        self._classifier = classifier
        self._store = store
        self._cache = cache
        self._check_current = check_current
        self._judged: dict[tuple[str, str], Evidence] = {}
        self._offered: queue.Queue[tuple[Frames, Tensor | None]] = queue.Queue(BATCHES_WAITING)

    def forget_others(self, version: Version) -> None:
        """Lets go of what is about other bodies."""
        self._judged = {key: evidence for key, evidence in self._judged.items() if key[0] == version.body}

    def on_kept(self, candidate: Candidate) -> Agreement:
        """Compares on the pictures kept with the version."""
        version = candidate.version
        evidence = self._evidence(candidate)
        frames, labels = check_pictures.read(self._store, version.manifest)
        for part in _parts(len(frames), candidate.engine):
            _compare(candidate, evidence, frames[part], None, labels[part])
            self._check_current(version)
        agreement = _judge(candidate, evidence)
        evidence.save(self._path(candidate))
        return agreement

    def on_live(self, candidate: Candidate) -> Agreement:
        """Goes on with what is being judged until there is enough of it, or as much as is kept."""
        version, evidence = candidate.version, self._evidence(candidate)
        saved = len(evidence)

        def offer(scored: Version, frames: Frames, features: Tensor) -> None:
            if scored.body == version.body and not self._offered.full():
                self._offered.put_nowait((frames, features.cpu() if scored.runner is candidate.reference else None))

        while not self._offered.empty():
            self._offered.get_nowait()
        self._classifier.watcher = offer
        try:
            while True:
                self._check_current(version)
                try:
                    frames, features = self._offered.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    continue
                _compare(candidate, evidence, frames, features, None)
                agreement = _judge(candidate, evidence)
                enough = agreement.refusal != "too_few_pictures" or evidence.full
                if enough or len(evidence) >= saved + SAVE_EVERY:
                    evidence.save(self._path(candidate))
                    saved = len(evidence)
                if enough:
                    return agreement
        finally:
            self._classifier.watcher = None

    def accepts(self, engine: Engine, manifest: Manifest, head: Head) -> bool:
        """Whether the engine in service may serve a version with another last layer: judged anew, on what is kept."""
        serving = self._classifier.version
        precision = engine.name.rpartition("-")[2]
        evidence = self._judged.get((serving.body, engine.name)) if serving is not None else None
        if evidence is None or precision not in RULES:
            return False
        return evidence.judge(RULES[precision], head, manifest.ban_threshold).refusal is None

    def _evidence(self, candidate: Candidate) -> Evidence:
        key = (candidate.version.body, candidate.engine.name)
        if key not in self._judged:
            width = candidate.version.head.weight.shape[1]
            path = self._path(candidate)
            self._judged[key] = Evidence.load(path, width)
            self._cache.used(path)
        return self._judged[key]

    def _path(self, candidate: Candidate) -> Path:
        self._cache.check_folder()
        version, device = candidate.version, self._classifier.device
        key = self._cache.key(version.manifest, version.body, candidate.precision, device)
        return self._cache.folder / f"{key}.{device.type}{EVIDENCE}"


def _parts(count: int, engine: Engine) -> Iterator[slice]:
    """Slices of `count` pictures; on a GPU as long as each graph's own batch in turn, for every graph is a program."""
    lengths = itertools.cycle(engine.captured if isinstance(engine, GraphedEngine) else [COMPARED_FRAMES])
    end = 0
    while end < count:
        start, end = end, end + next(lengths)
        yield slice(start, end)


def _judge(candidate: Candidate, evidence: Evidence) -> Agreement:
    version = candidate.version
    return evidence.judge(RULES[candidate.precision], version.head, version.manifest.ban_threshold)


def _compare(
    candidate: Candidate, evidence: Evidence, frames: Frames, features: Tensor | None, labels: Labels | None
) -> None:
    """Adds what is new among the frames; `features` are the reference's where it has scored them already."""
    new = evidence.news(frames)
    if len(new) == 0:
        return
    fresh = np.ascontiguousarray(frames[new])
    with torch.inference_mode():
        if features is None:  # in small parts, for beside the graphs there may be no memory for more in fp32
            parts = range(0, len(fresh), COMPARED_FRAMES)
            expected = torch.cat([candidate.reference.features(fresh[at : at + COMPARED_FRAMES]).cpu() for at in parts])
        else:
            expected = features[torch.from_numpy(new)]
        given = candidate.engine.features(fresh).cpu()
    evidence.add(fresh, expected.numpy(), given.numpy(), None if labels is None else labels[new])
