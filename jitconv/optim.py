"""Gradient descent as one compiled loop over each parameter, where torch's takes a pass for each term."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.sgd import sgd

from jitconv.variants.jit import DESCENT

LARGE = 1 << 17  # numbers, from which on a second core saves more time than it takes to wake up
RATES = ("lr", "weight_decay", "momentum", "dampening")


class SGD(torch.optim.SGD):
    """torch.optim.SGD, with its arguments, its state and its results, bit for bit where both may fuse multiply-adds.

    Loops take the step of contiguous float32 and float64 parameters on the CPU; what else there is, and groups with
    foreach, fused, differentiable or a tensor as a rate, torch takes. It raises what torch's raises. The formulas are
    those of torch.optim.SGD.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient; return the loss of `closure`, which is called first if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                looped = self._may_be_looped(group)
                rest = [param for param in group["params"] if not (looped and self._loop(param, group))]
                if rest:
                    self._leave_to_torch({**group, "params": rest})
        return loss

    def _may_be_looped(self, group: dict[str, Any]) -> bool:
        return not (
            torch.compiler.is_compiling()
            or group["foreach"]
            or group["fused"]
            or group["differentiable"]
            or any(isinstance(group[rate], Tensor) for rate in RATES)
            or getattr(self, "grad_scale", None) is not None  # a GradScaler's, for fused groups
            or getattr(self, "found_inf", None) is not None
        )

    def _loop(self, param: Tensor, group: dict[str, Any]) -> bool:
        """Take a parameter's step; False, and nothing done, where that is not for loops."""
        grad = param.grad
        if grad is None:
            return True
        if not (_loopable(param) and _loopable(grad) and param.dtype == grad.dtype):
            return False
        lr, weight_decay, momentum, _ = rates = tuple([float(group[rate]) for rate in RATES])
        if momentum == 0:
            _kernel("sgd", param)(_flat(param), _flat(grad), lr, weight_decay, group["maximize"])
            increment_version(param)  # autograd must know that what it may have saved has changed
            return True
        state = self.state[param]
        velocity = state.get("momentum_buffer")
        first = velocity is None
        if first:
            velocity = torch.empty_like(grad)
        elif not (_loopable(velocity) and velocity.dtype == param.dtype):
            return False
        flat = _flat(param), _flat(grad), _flat(velocity)
        _kernel("sgd_momentum", param)(*flat, rates, first, group["nesterov"], group["maximize"])
        increment_version((param, velocity))
        state["momentum_buffer"] = velocity
        return True

    def _leave_to_torch(self, group: dict[str, Any]) -> None:
        """What torch.optim.SGD.step does with a group; called as a method, it would run the hooks of a step again."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        velocities: list[Tensor | None] = []
        sparse = self._init_group(group, params, grads, velocities)
        sgd(
            params,
            grads,
            velocities,
            has_sparse_grad=sparse,
            foreach=group["foreach"],
            fused=group["fused"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            **{rate: group[rate] for rate in RATES},
        )
        if group["momentum"] != 0:
            for param, velocity in zip(params, velocities, strict=True):
                self.state[param]["momentum_buffer"] = velocity


def _loopable(tensor: Tensor) -> bool:
    """Whether the tensor is plain contiguous numbers that loops may change where they are."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_neg() or tensor.is_inference())
    )


def _kernel(step: str, param: Tensor) -> Callable[..., None]:
    return DESCENT[step] if param.numel() >= LARGE else DESCENT[step].serial


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().numpy().reshape(-1)
