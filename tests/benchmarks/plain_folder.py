"""What the worker is compared with, as programs without a queue; each prints one JSON object.

folder STORE FOLDER COUNT DEVICE [CACHE PRECISION]   decodes and classifies a folder in batches: seconds, after one
                                   warm picture; with the compiled engine of that precision from CACHE where it is named
single STORE FOLDER COUNT DEVICE   fetch + decode + forward, one picture after the other: seconds of each
weights STORE                      imports torch and reads the champion's base: nothing more
resident STORE BATCH DEVICE        one process with the network, after a batch: its resident KB

On `cuda` the engine is what a worker serves with there: bf16 in captured graphs.
"""

import importlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.classifier import Classifier, Version

BATCH = 64


def _weights(store_root: Path) -> dict[str, object]:
    import safetensors.torch

    importlib.import_module("torch")  # its import is what is measured
    document = json.loads(
        (store_root / "versions" / (store_root / "champion").read_text().strip() / "manifest.json").read_text()
    )
    data = (store_root / "base" / f"{document['base']['sha256']}.safetensors").read_bytes()
    return {"tensors": len(safetensors.torch.load(data))}


def _loaded(store_root: Path, device: str) -> "tuple[Classifier, Version]":
    from worker.classifier import Classifier
    from worker.model.weights import WeightsStore

    store = WeightsStore(store_root)
    classifier = Classifier(store, device=device, precision="bf16" if device == "cuda" else "auto")
    version = classifier.load(str(store.champion()))
    if device == "cuda":
        classifier.use(classifier.graphed(version, "bf16", BATCH), version.id)
    return classifier, version


def _resident(store_root: Path, batch: int, device: str) -> dict[str, object]:
    import numpy as np

    classifier, _ = _loaded(store_root, device)
    classifier.score(np.zeros((batch, 224, 224, 3), np.uint8))
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"kb": next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))}


def _pictures(
    what: str, store_root: Path, folder: Path, count: int, device: str, cache: str = "", precision: str = ""
) -> dict[str, object]:
    import numpy as np

    from worker.model.compiled import EngineCache
    from worker.model.preprocessing import Preprocessing
    from worker.model.reading import DecodeLimits, decode

    classifier, version = _loaded(store_root, device)
    if cache:
        engine = EngineCache(Path(cache), store_root).engine(version.manifest, version.body, precision)
        classifier.use(engine, version.id)
    preprocessing, limits = Preprocessing(), DecodeLimits()

    def frames(path: Path) -> np.ndarray:
        return decode(path.read_bytes(), preprocessing, limits).frames

    files = sorted(folder.iterdir())[:count]
    classifier.score(frames(files[0]))
    if what == "single":
        seconds = []
        for path in files:
            started_s = time.perf_counter()
            classifier.score(frames(path))
            seconds.append(time.perf_counter() - started_s)
        return {"seconds": seconds}
    started_s = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        for at in range(0, count, BATCH):
            classifier.score(np.concatenate(list(pool.map(frames, files[at : at + BATCH]))))
    return {"seconds": time.perf_counter() - started_s}


if __name__ == "__main__":
    what, root, *rest = sys.argv[1:]
    if what == "weights":
        result = _weights(Path(root))
    elif what == "resident":
        result = _resident(Path(root), int(rest[0]), rest[1])
    else:
        result = _pictures(what, Path(root), Path(rest[0]), int(rest[1]), *rest[2:])
    print(json.dumps(result))
