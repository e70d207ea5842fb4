"""Proof: every layer of every variant beside torch, in its own dtype and in float64, values and gradients.

The oracle is torch in float64. max_pool2d, relu and flatten must agree with torch bit for bit. conv2d and linear may
be wrong by at most 4·eps·op(|x|, |w|), the sum of the magnitudes that each element adds up: a bound that needs no
tuning for a shape. The softmax family has 4·eps times the largest exponent and result. A variant may have a bound
of its own instead (`Variant.bounds`), as jit-winograd has where it computes in tiles; adversary.py tries it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from jitconv import functional, shapes, variants
from jitconv.cases import Case
from jitconv.model import SimpleConvNet

MULTILINEAR = ("conv2d", "linear")
BOUND = {torch.float32: 4.0, torch.float64: 8.0}  # in units of eps; in float64 the oracle itself rounds as much
BLOCK = 1 << 16  # elements compared at a time, which a cache holds

Tensors = Mapping[str, torch.Tensor]


def diff_mse(x: Any, y: Any) -> float:
    """Return the mean squared difference of two arrays or tensors, computed in float64; 0 for empty ones.

    Raises ValueError where the shapes differ, even if they would broadcast.
    """
    a, b = (np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, np.float64) for v in (x, y))
    if a.shape != b.shape:
        raise ValueError(f"x and y must have the same shape, got {a.shape} and {b.shape}")
    return float(np.mean((a - b) ** 2)) if a.size else 0.0


@dataclass(frozen=True)
class Check:
    """How one result of one layer compares with torch's; all errors are absolute.

    quantity: "forward", "indices" or "grad ARGUMENT". mse, max_error: against torch in the same dtype. error: the
    largest against torch in float64, and torch_error torch's own. bound_used: the largest share of the allowed error
    that an element used; above 1 it is wrong.
    """

    layer: str
    case: str
    variant: str
    dtype: str
    quantity: str
    mse: float
    max_error: float
    error: float
    torch_error: float
    bound_used: float

    @property
    def ok(self) -> bool:
        return self.bound_used <= 1


def check(case: Case, variant: str, dtype: str = "float32", seed: int = 0, device: str = "cpu") -> list[Check]:
    """Run a case through `variant` and through torch, forward and backward, and compare every result."""
    expected = Expected(case, dtype, seed, device)
    ours = results(partial(getattr(functional, case.layer), variant=variant), case, expected.inputs, expected.grad)
    return expected.compare(variant, ours)


class Expected:
    """What a case must give: torch's results in the case's own dtype and in float64, for the same random inputs.

    inputs: the array arguments, in `dtype`. grad: the gradient of the result that backward starts from, in float64.
    bound: in units of eps, how wrong a sum may be, for each unit of its magnitude.
    """

    def __init__(self, case: Case, dtype: str = "float32", seed: int = 0, device: str = "cpu") -> None:
        self.case, self.dtype, self.bound = case, dtype, BOUND[getattr(torch, dtype)]
        self.inputs = tensors(case, dtype, seed, device)
        wide = {name: value.double() if value.is_floating_point() else value for name, value in self.inputs.items()}
        layer = variants.get("torch").ops[case.layer]
        self.grad = _grad_like(layer(**wide, **case.arguments), case, seed)

        self.oracle = results(layer, case, wide, self.grad)
        self.reference = results(layer, case, self.inputs, self.grad)
        self.magnitudes = _magnitudes(layer, case, wide, self.grad, self.oracle)

    def compare(self, variant: str, ours: Tensors) -> list[Check]:
        """Return how each of these results, named as `results` names them, compares with torch's."""
        return [self._check(variant, quantity, value) for quantity, value in ours.items()]

    def _check(self, variant: str, quantity: str, ours: torch.Tensor) -> Check:
        oracle, reference = self.oracle[quantity], self.reference[quantity]
        return Check(
            self.case.layer,
            self.case.name,
            variant,
            self.dtype,
            quantity,
            mse=_mse(ours, reference),
            max_error=_largest(ours, reference),
            error=_largest(ours, oracle),
            torch_error=_largest(reference, oracle),
            bound_used=self.bound_used(variant, quantity, ours),
        )

    def bound_used(self, variant: str, quantity: str, ours: torch.Tensor) -> float:
        """Return the largest share of the allowed error that an element of this result uses; inf if it is no number."""
        reference = self.reference[quantity]
        if ours.shape != reference.shape or ours.dtype != reference.dtype:
            return np.inf
        if self.case.layer in variants.EXACT_OPS:
            return 0.0 if _same_bits(ours, reference) else np.inf
        compared = ours, self.oracle[quantity], self._allowed(variant, quantity)
        return max(map(_bound_used, *(tensor.flatten().split(BLOCK) for tensor in compared)))

    def _allowed(self, variant: str, quantity: str) -> torch.Tensor:
        """How wrong each element may be, in units of eps."""
        usual = self.bound * self.magnitudes[quantity] + self._underflow()
        own = self._own_bound(variant, quantity)
        if own is None:
            return usual
        allowed = torch.from_numpy(own).reshape(usual.shape).to(usual.device)
        return torch.where(allowed.isfinite(), allowed, usual)  # what is not finite is computed the direct way

    def _underflow(self) -> float:
        """What may be lost below the smallest normal number, where every rounding is as coarse as at that number.

        A sum has at most as many terms as there are numbers.
        """
        limits = torch.finfo(getattr(torch, self.dtype))
        return limits.tiny * max(tensor.numel() for tensor in (*self.inputs.values(), self.grad))

    def _own_bound(self, variant: str, quantity: str) -> Any:
        """The variant's own bound for this result, an array; None where it has none."""
        op = {"forward": "conv2d", "grad input": "conv2d_grad_input"}.get(quantity)
        bound = variants.get(variant).bounds.get(op) if op is not None and self.case.layer == "conv2d" else None
        if bound is None:
            return None
        *constants, _ = shapes.conv2d(**self.inputs, **self.case.arguments)
        arrays = {name: tensor.cpu().numpy() for name, tensor in self.inputs.items()}
        x, weight, grad = arrays["input"], arrays["weight"], self.grad.cpu().numpy().astype(self.dtype)
        x, grad = (array[None] if array.ndim == 3 else array for array in (x, grad))
        if op == "conv2d":
            return bound(x, weight, arrays.get("bias", np.zeros(len(weight))), *constants, grad.shape)
        return bound(grad, weight, *constants, x.shape)

    def own(self, variant: str) -> list[str]:
        """The results for which the variant has a bound of its own."""
        return [quantity for quantity in self.oracle if self._own_bound(variant, quantity) is not None]


def network_cases(images: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> list[Case]:
    """Return SimpleConvNet's layers on these digits, (N, 1, 28, 28), as cases: each is fed torch's output before it."""
    torch.manual_seed(seed)
    network = SimpleConvNet("torch").double()
    cases: list[Case] = []

    def add(
        layer: str, name: str, x: torch.Tensor, arguments: Mapping[str, Any], **others: torch.Tensor
    ) -> torch.Tensor:
        named = {"input": x, **others}
        cases.append(Case(layer, name, {}, arguments, fixed={key: value.numpy() for key, value in named.items()}))
        return variants.get("torch").ops[layer](**named, **arguments)

    with torch.no_grad():
        conv, fc1, fc2 = (dict(layer.named_parameters()) for layer in (network.conv, network.fc1, network.fc2))
        x = add("conv2d", "conv", images.double(), {}, **conv)
        x = add("max_pool2d", "pool", x, {"kernel_size": 2})
        x = add("flatten", "flatten", x, {"start_dim": 1})
        x = add("relu", "relu", add("linear", "fc1", x, {}, **fc1), {})
        x = add("linear", "fc2", x, {}, **fc2)
        add("softmax", "softmax", x, {"dim": 1})
        add("log_softmax", "log_softmax", x, {"dim": 1})
        add("cross_entropy", "loss", x, {}, target=labels)
    return cases


def results(layer: Callable[..., Any], case: Case, inputs: Tensors, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the layer's result and, for the gradient `grad` of it, the gradient of every differentiable argument."""
    leaves = differentiable(case, inputs)
    pooling = {"return_indices": True} if case.layer == "max_pool2d" else {}
    out = layer(**{**inputs, **leaves}, **case.arguments, **pooling)
    named = {"forward": out[0], "indices": out[1]} if pooling else {"forward": out}
    grads = torch.autograd.grad(named["forward"], list(leaves.values()), grad.to(named["forward"].dtype))
    named |= {f"grad {name}": value for name, value in zip(leaves, grads, strict=True)}
    return {name: value.detach() for name, value in named.items()}


def tensors(case: Case, dtype: str = "float32", seed: int = 0, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return a case's array arguments, at random."""
    return {name: _tensor(value).to(device) for name, value in case.inputs(dtype, seed).items()}


def differentiable(case: Case, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Return the arguments that have a gradient, as leaves of a new graph."""
    return {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if value.is_floating_point() and not (case.layer == "cross_entropy" and name == "weight")
    }


def _magnitudes(
    layer: Callable[..., Any], case: Case, wide: Tensors, grad: torch.Tensor, oracle: Tensors
) -> dict[str, torch.Tensor]:
    """For every element of every result: the size of what is added up to make it; of none where no bound is used."""
    if case.layer in variants.EXACT_OPS:
        return {}
    if case.layer in MULTILINEAR:
        return results(layer, case, {name: value.abs() for name, value in wide.items()}, grad.abs())
    span = 1 + _finite_max(wide["input"])  # exp(x) of a rounded x is wrong by |x|·eps/2 already
    return {
        quantity: torch.full_like(exact, span * max(1, _finite_max(exact), _finite_max(grad)), dtype=torch.float64)
        for quantity, exact in oracle.items()
    }


def _bound_used(ours: torch.Tensor, oracle: torch.Tensor, allowed: torch.Tensor) -> float:
    finite = oracle.isfinite()
    if not finite.all():
        if not torch.equal(_kinds(ours)[~finite], _kinds(oracle)[~finite]):
            return np.inf
        ours, oracle, allowed = ours[finite], oracle[finite], allowed[finite]
    error = (ours.double() - oracle).abs()
    share = torch.where(error == 0, 0.0, error / (torch.finfo(ours.dtype).eps * allowed))
    return float(share.nan_to_num(nan=np.inf).max()) if share.numel() else 0.0


def _kinds(x: torch.Tensor) -> torch.Tensor:
    """NaN as 2, ±inf as ±1, numbers as 0."""
    return torch.where(x.isnan(), 2, torch.where(x.isinf(), x.sign(), 0)).nan_to_num(2).int()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal values with equal signs of zero; one NaN is as good as another."""
    same = (a == b) & (torch.signbit(a) == torch.signbit(b)) | ((a != a) & (b != b))
    return bool(same.all())


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a − b in float64, 0 where both are the same infinity or NaN."""
    a, b = a.double(), b.double()
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b)


def _mse(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((_difference(a, b) ** 2).mean()) if a.numel() else 0.0


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(_difference(a, b).abs().nan_to_num(nan=np.inf).max()) if a.numel() else 0.0


def _finite_max(x: torch.Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _grad_like(x: torch.Tensor, case: Case, seed: int) -> torch.Tensor:
    """What backward starts from, in float64."""
    return torch.from_numpy(np.asarray(case.fill_grad(np.random.default_rng(seed), tuple(x.shape)))).to(x.device)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor in the array's memory layout, in its memory where that may be written."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
