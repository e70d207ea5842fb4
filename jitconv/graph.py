"""A training step as one CUDA graph: recorded once, then launched as a whole on whatever its inputs hold.

A step of SimpleConvNet is dozens of launches of a few microseconds each, and Python takes longer to ask for them than
the GPU to do them. A replayed graph asks once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Work = Callable[[], Tensor]
WARM_UPS = 3  # steps before the recording, in which kernels are loaded and libraries choose their algorithms


def record(work: Work, device: torch.device) -> tuple[Callable[[], Any], Tensor]:
    """Return how to repeat on the GPU what `work` launches, and its result, which every repetition overwrites."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
    return graph.replay, result


class CapturedStep:
    """A training step (*inputs) → loss that replays its recording; inputs of other shapes take it eagerly.

    step must do the same work on the same memory each time, however often it is called: forward, loss, backward, and
    an optimizer of `model`. What it has changed by being called for the recording is undone. The recording reads its
    inputs where they are copied to before each replay: indices are a smaller copy than the images they choose.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *inputs: Tensor,
        record: Callable[[Work, torch.device], tuple[Callable[[], Any], Tensor]] = record,
    ) -> None:
        self.step, self.inputs = step, [given.clone() for given in inputs]
        before = {tensor: tensor.detach().clone() for tensor in _state(model, optimizer)}
        self.replay, self.loss = record(lambda: step(*self.inputs), self.inputs[0].device)
        with torch.no_grad():
            for tensor in _state(model, optimizer):  # one that is new, momentum say, began as nothing
                tensor.copy_(before.get(tensor, torch.zeros_like(tensor)))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take one step and return the loss before it."""
        if any(given.shape != own.shape for given, own in zip(inputs, self.inputs, strict=True)):
            return self.step(*inputs)
        for given, own in zip(inputs, self.inputs, strict=True):
            own.copy_(given)
        self.replay()
        return self.loss.clone()  # the next replay overwrites it


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that one step leaves to the next."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *kept]
