"""The pictures that a version names so that any worker can compare its engines with fp32 on its own processor.

Frames and labels to the content of one safetensors file and back: JPEGs of the frames as the network sees them, about
15 KB a picture. Both engines see what comes out of the JPEG, so that its losses are nobody's advantage.
"""

import io
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image

from worker.errors import WeightsError
from worker.model.agreement import Labels
from worker.model.engine import Frames
from worker.model.manifest import Manifest
from worker.model.weights import WeightsStore

JPEG_QUALITY: Final = 92


def encode(frames: Frames, labels: Labels) -> bytes:
    """uint8 frames [N, crop, crop, 3], one a picture, and their labels [N], as `WeightsStore.add_check_pictures` keeps
    them."""
    jpegs = [_jpeg(frame) for frame in frames]
    return safetensors.numpy.save(
        {
            "labels": labels.astype(np.int64),
            "ends": np.cumsum([len(jpeg) for jpeg in jpegs]).astype(np.int64),
            "jpegs": np.frombuffer(b"".join(jpegs), np.uint8),
        }
    )


def read(store: WeightsStore, manifest: Manifest) -> tuple[Frames, Labels]:
    """The check pictures of a version: uint8 [N, crop, crop, 3] and labels [N]; N is 0 where it names none.

    Raises WeightsError where the file is not the one that the manifest names.
    """
    crop = int(manifest.preprocessing["crop"])
    kept = manifest.check_pictures
    if kept is None:
        return np.zeros((0, crop, crop, 3), np.uint8), np.zeros(0, np.int64)
    try:
        tensors = safetensors.numpy.load(store.read_check_pictures(kept))
        ends, jpegs = tensors["ends"].tolist(), tensors["jpegs"].tobytes()
        starts = [0, *ends[:-1]]
        frames = [_frame(jpegs[start:end], crop) for start, end in zip(starts, ends, strict=True)]
        return np.stack(frames), tensors["labels"].astype(np.int64)
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise WeightsError(f"the check pictures of {manifest.id} are none ({error}): fit the version again") from error


def _jpeg(frame: Frames) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _frame(jpeg: bytes, crop: int) -> Frames:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        if image.size != (crop, crop):
            raise ValueError(f"a picture of {image.size[0]} x {image.size[1]}")
        return np.asarray(image.convert("RGB"))
