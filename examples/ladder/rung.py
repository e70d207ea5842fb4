"""What every rung shares: the layers, the check against torch, the time, and the core's peak.

A rung is a file here with a function conv2d(x, weight, bias, out) and `LAYERS`, the names of the layers it is timed on.
Images come with the zeros around them already in place, so no rung has to ask where an image ends. The last one is the
whole network, which says itself what is `exact`, how many `FLOPS` an image has, and what came `before`.
"""

import importlib.util
import math
import time
from pathlib import Path

import numpy as np
import torch

import jitconv
from jitconv import speed

torch.set_num_threads(1)
FOLDER = Path(__file__).parent
SIZES = {  # of x, of the weights, of the windows of the pooling that follows
    "digits": ((64, 1, 28, 28), (20, 1, 5, 5), 1),
    "pooled": ((64, 1, 28, 28), (20, 1, 5, 5), 2),
    "resnet": ((8, 64, 58, 58), (64, 64, 3, 3), 1),
    "network": ((1, 1, 28, 28), (20, 1, 5, 5), 2),
}
NAMES = {
    "digits": "1→20, 5×5, 64 images of 28×28",
    "pooled": "the same and 2×2 pooling",
    "resnet": "64→64, 3×3, 8 images of 56×56",
    "network": "SimpleConvNet, one image",
}


def load(file):
    """Return the module of a rung."""
    spec = importlib.util.spec_from_file_location(f"rung_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rungs():
    return sorted(FOLDER.glob("[0-9]*_*.py"), key=lambda file: int(file.name.partition("_")[0]))


def arrays(layer, images=None):
    """Return x, weight, bias and an empty out of a layer, the same numbers every time."""
    random = np.random.default_rng(0)
    (N, *image), weight, window = SIZES[layer]
    x, w, b = (random.standard_normal(s, np.float32) for s in ((images or N, *image), weight, weight[:1]))
    rows, columns = image[1] - weight[2] + 1, image[2] - weight[3] + 1
    return x, w, b, np.empty((len(x), weight[0], rows // window, columns // window), np.float32)


def error(module, layer, x, weight, bias, out):
    """The largest error as a share of 4·eps·Σ|x·w|, what it may be at most, or of the rung's own bound."""
    exact, allowed = (
        torch.max_pool2d(torch.conv2d(*(torch.from_numpy(a).double() for a in given)), SIZES[layer][2]).numpy()
        for given in ((x, weight, bias), (abs(x), abs(weight), abs(bias)))
    )
    exact = module.exact(x, weight, bias) if hasattr(module, "exact") else exact
    allowed = module.allowed(x, weight, bias, out) if hasattr(module, "allowed") else 4 * np.finfo("f4").eps * allowed
    return float((abs(out - exact) / np.asarray(allowed)).max())


def flops(module, layer):
    """What a rung computes of a layer, as the equation has it."""
    (N, *image), (F, *taps), _ = SIZES[layer]
    places = (image[1] - taps[1] + 1) * (image[2] - taps[2] + 1)
    return N * getattr(module, "FLOPS", 2 * F * places * math.prod(taps))


def seconds(call, patience=0.4):
    """The least of several calls, after one that compiles."""
    call()
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < patience:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak():
    """Multiply-adds of one core, in flops a second, on numbers that never leave its registers and nearest cache."""
    return 1e9 * speed.peak()


def torch_seconds(layer):
    """torch's own time for a layer, without gradients."""
    x, weight, bias, _ = map(torch.from_numpy, arrays(layer))
    windows, network = SIZES[layer][2], jitconv.SimpleConvNet("torch").eval()

    def call():
        if layer == "network":
            return network(x)
        z = torch.conv2d(x, weight, bias)
        return z if windows == 1 else torch.max_pool2d(z, windows)

    with torch.inference_mode():
        return seconds(call)


def measure(module, layer):
    """Check and time a rung on a layer; a rung may take fewer images, whose time is scaled up."""
    images = getattr(module, "IMAGES", SIZES[layer][0][0])
    given = arrays(layer, images)
    x, weight, bias, out = given
    result = module.conv2d(*given)
    used = error(module, layer, x, weight, bias, out if result is None else result)
    assert used <= 1, f"wrong: {used:.3g} times the allowed error"
    spent = seconds(lambda: module.conv2d(*given), getattr(module, "PATIENCE", 0.4))
    scale = SIZES[layer][0][0] / images
    found = {"bound_used": used, "seconds": spent * scale, "flops": flops(module, layer)}
    if hasattr(module, "before"):
        found["before"] = {"seconds": seconds(lambda: module.before(*given)), "flops": found["flops"]}
    return found


def main(file):
    """Print check, time, GFLOP/s, share of the peak and the factor over the rung before, for each of the layers."""
    module, top = load(file), peak()
    below = [load(other) for other in rungs() if rungs().index(other) < rungs().index(FOLDER / Path(file).name)]
    print(module.__doc__.strip())
    for layer in module.LAYERS:
        found = measure(module, layer)
        rate = found["flops"] / found["seconds"]
        line = (
            f"{NAMES[layer]}: right (error {found['bound_used']:.0%} of the bound), {found['seconds'] * 1e3:.3g} ms, "
        )
        line += f"{rate / 1e9:.3g} GFLOP/s, {rate / top:.1%} of the core's peak"
        rung = next((other for other in reversed(below) if layer in other.LAYERS), None)
        before = found.get("before") or (measure(rung, layer) if rung else None)
        if before is not None:
            line += f", {before['seconds'] / found['seconds']:.3g} times the rung before"
        print(line)
