"""What the worker is compared with, as programs without a queue; each prints one JSON object.

folder STORE FOLDER COUNT [CACHE PRECISION]   decodes and classifies a folder in batches: seconds, after one warm
                            picture; with the compiled engine of that precision from CACHE where it is named
single STORE FOLDER COUNT   fetch + decode + forward, one picture after the other: seconds of each
weights STORE               imports torch and reads the champion's base: nothing more
resident STORE BATCH        one process with the network, after a batch: its resident KB
"""

import importlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def _weights(store_root: Path) -> dict[str, object]:
    import safetensors.torch

    importlib.import_module("torch")  # its import is what is measured
    document = json.loads(
        (store_root / "versions" / (store_root / "champion").read_text().strip() / "manifest.json").read_text()
    )
    data = (store_root / "base" / f"{document['base']['sha256']}.safetensors").read_bytes()
    return {"tensors": len(safetensors.torch.load(data))}


def _resident(store_root: Path, batch: int) -> dict[str, object]:
    import numpy as np

    from worker.classifier import Classifier
    from worker.model.weights import WeightsStore

    store = WeightsStore(store_root)
    classifier = Classifier(store, device="cpu", precision="auto")
    classifier.load(str(store.champion()))
    classifier.score(np.zeros((batch, 224, 224, 3), np.uint8))
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"kb": next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))}


def _pictures(
    what: str, store_root: Path, folder: Path, count: int, cache: str = "", precision: str = ""
) -> dict[str, object]:
    import numpy as np

    from worker.classifier import Classifier
    from worker.model.compiled import EngineCache
    from worker.model.preprocessing import DecodeLimits, Preprocessing, decode
    from worker.model.weights import WeightsStore

    store = WeightsStore(store_root)
    classifier = Classifier(store, device="cpu", precision="auto")
    version = classifier.load(str(store.champion()))
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
        for at in range(0, count, 64):
            classifier.score(np.concatenate(list(pool.map(frames, files[at : at + 64]))))
    return {"seconds": time.perf_counter() - started_s}


if __name__ == "__main__":
    what, root, *rest = sys.argv[1:]
    if what == "weights":
        result = _weights(Path(root))
    elif what == "resident":
        result = _resident(Path(root), int(rest[0]))
    else:
        result = _pictures(what, Path(root), Path(rest[0]), int(rest[1]), *rest[2:])
    print(json.dumps(result))
