"""In the way: what happens between layers. Each is checked, bound and called, and gets memory for its result.

The plan is the whole network as one call: fused, its buffers assigned, its kernels' arguments made ready beforehand.
"""

import torch
from rung import main

import jitconv

LAYERS = ("network",)
FLOPS = 2 * (20 * 24 * 24 * 25 + 500 * 2880 + 10 * 500)
cache = {}


def networks(x, weight, bias):
    """SimpleConvNet with these filters, as layers and as a plan."""
    if not cache:
        torch.manual_seed(0)
        model = jitconv.SimpleConvNet().requires_grad_(False).eval()
        model.conv.weight.copy_(torch.from_numpy(weight))
        model.conv.bias.copy_(torch.from_numpy(bias))
        plan = jitconv.plan(model, torch.from_numpy(x))
        cache.update(layers=model, plan=plan)
    return cache


def before(x, weight, bias, out):
    """One layer after the other."""
    return networks(x, weight, bias)["layers"](torch.from_numpy(x)).numpy()


def conv2d(x, weight, bias, out):
    return networks(x, weight, bias)["plan"](torch.from_numpy(x)).numpy()


def exact(x, weight, bias):
    torchs = jitconv.SimpleConvNet("torch").double()
    torchs.load_state_dict(networks(x, weight, bias)["layers"].state_dict())
    return torchs(torch.from_numpy(x).double()).detach().numpy()


def allowed(x, weight, bias, out):
    """Of a network: a hundred-thousandth of its largest result."""
    return abs(out).max() / 100_000


if __name__ == "__main__":
    main(__file__)
