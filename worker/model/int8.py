"""int8 for the CPU: the ranges that activations take, measured on pictures, and a body quantised with them.

    calibration, in the trainer:  frames ─► float32 body ─► a range for each layer's output, kept in the manifest
    quantisation, in the worker:  exported body + those ranges ─► torchao's PT2E ─► int8, still to be compiled

Ranges are plain numbers by layer name, so that a version carries no pickled observer, and each processor makes its own
scales of them: without VNNI, products of 8-bit numbers saturate, and activations get 7 bits there.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from worker.errors import WeightsError
from worker.model import network as networks
from worker.model.engine import Frames
from worker.model.preprocessing import Preprocessing

INPUT: Final = "input"
"""Under this name stands the range of what goes into the body; all other names are layers."""

BATCH_FRAMES: Final = 16
VALUES_OF_A_BATCH: Final = 100_000
"""Values of a layer's output, drawn at random, that its histogram is made of: all of them take longer than the pass."""

Ranges = Mapping[str, tuple[float, float]]


@torch.inference_mode()
def calibrate(
    body: nn.Module,
    frames: Frames,
    preprocessing: Preprocessing,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, tuple[float, float]]:
    """The range of the body's input and of each layer's output over uint8 frames [N, crop, crop, 3].

    `body` is in float32 on the CPU. `advance` hears of the frames of each batch. A range is the part of a histogram
    that loses least when cut into 255 steps.
    """
    # Imported here, and from torch, for torchao's copy of it takes seconds to import.
    from torch.ao.quantization.observer import HistogramObserver

    layers = {name: layer for name, layer in body.named_modules() if not list(layer.children())}
    observers = {name: HistogramObserver(quant_min=0, quant_max=255) for name in (INPUT, *layers)}
    generator = torch.Generator().manual_seed(0)

    def observe(name: str, values: Tensor) -> None:
        flat = values.reshape(-1)
        if len(flat) > VALUES_OF_A_BATCH:
            flat = flat[torch.randint(len(flat), (VALUES_OF_A_BATCH,), generator=generator)]
        observers[name](flat.clone())

    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: observe(name, output))
        for name, layer in layers.items()
    ]
    try:
        for batch in torch.split(torch.from_numpy(frames), BATCH_FRAMES):
            pixels = networks.normalise(batch, preprocessing, torch.float32)
            observe(INPUT, pixels)
            body(pixels)
            advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
    return {name: _range(observer) for name, observer in observers.items()}


def _range(observer: Any) -> tuple[float, float]:
    scale, zero_point = (float(value) for value in observer.calculate_qparams())
    return -zero_point * scale, (255 - zero_point) * scale


def quantised(body: nn.Module, example: Tensor, shapes: Any, ranges: Ranges) -> nn.Module:
    """The float32 `body` with int8 weights and activations, for torch.compile or torch.export.

    `example` and `shapes` are what torch.export traces it with. Raises WeightsError where a range is missing.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    seven_bits = not any("vnni" in name or "int8" in name for name, has in torch.cpu.get_capabilities().items() if has)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=seven_bits))
    prepared = prepare_pt2e(torch.export.export(body, (example,), dynamic_shapes=shapes).module(), quantizer)
    _set_ranges(prepared, ranges)
    prepared(example)  # the observers of weights see them here
    converted: nn.Module = convert_pt2e(prepared)
    _spell_out_pools(converted)
    return converted


def _set_ranges(prepared: Any, ranges: Ranges) -> None:
    """Puts fixed scales in the place of the observers of activations."""
    from torchao.quantization.pt2e.observer import FixedQParamsObserver, PerChannelMinMaxObserver

    fixed: dict[int, nn.Module] = {}  # by the observer they replace: a pooling shares its input's
    for node in prepared.graph.nodes:
        observer = getattr(prepared, node.target, None) if node.op == "call_module" else None
        if observer is None or not hasattr(observer, "calculate_qparams"):
            continue
        if isinstance(observer, PerChannelMinMaxObserver):
            continue  # weights
        if id(observer) not in fixed:
            low, high = _range_of(node.args[0], ranges)
            steps = observer.quant_max - observer.quant_min
            scale = max((high - low) / steps, 2**-12)
            zero_point = observer.quant_min + min(max(round(-low / scale), 0), steps)
            fixed[id(observer)] = FixedQParamsObserver(
                scale,
                zero_point,
                dtype=observer.dtype,
                qscheme=observer.qscheme,
                quant_min=observer.quant_min,
                quant_max=observer.quant_max,
            )
            fixed[id(observer)].replaced = observer  # keeps the id from being given to another
        setattr(prepared, node.target, fixed[id(observer)])


def _range_of(value: Any, ranges: Ranges) -> tuple[float, float]:
    """The range of the layer whose output `value`, a node of an exported graph, is."""
    stack = list(value.meta.get("nn_module_stack", {}).values())
    name = INPUT if value.op == "placeholder" or not stack else stack[-1][0]
    name = name.removeprefix("L['self'].").removeprefix("L__self___")
    try:
        return ranges[name]
    except KeyError:
        raise WeightsError(f"the version keeps no int8 range for {name}: fit it again") from None


def _spell_out_pools(converted: Any) -> None:
    """Puts the largest of shifted views in the place of every max_pool2d: the same numbers, as quickly.

    A quantised pool would be compiled to an operator that has no C interface (`aoti`); this is fused into a loop.
    """
    graph, aten = converted.graph, torch.ops.aten
    for pool in graph.find_nodes(op="call_function", target=aten.max_pool2d.default):
        pixels, (height, width), (down, right) = pool.args  # a pool with padding or dilation has more
        rows, columns = pool.meta["val"].shape[2:]
        most = None
        with graph.inserting_before(pool):
            for top, left in itertools.product(range(height), range(width)):
                lines = (pixels, 2, top, top + (rows - 1) * down + 1, down)
                view = graph.call_function(aten.slice.Tensor, lines)
                view = graph.call_function(aten.slice.Tensor, (view, 3, left, left + (columns - 1) * right + 1, right))
                most = view if most is None else graph.call_function(aten.maximum.default, (most, view))
        pool.replace_all_uses_with(most)
        graph.erase_node(pool)
    converted.recompile()
