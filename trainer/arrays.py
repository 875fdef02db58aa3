"""The types of the arrays that the trainer's modules hand to each other. Knows nothing else."""

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
