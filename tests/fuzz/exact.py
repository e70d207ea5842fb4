"""What torch in float64 cannot judge: it rounds as much as what is compared with it.

The oracle of a float64 convolution or product are here the loops of `vector` in np.longdouble, rounded to float64.
"""

import numpy as np
import torch

from jitconv import shapes
from jitconv.cases import Case
from jitconv.variants import vector
from jitconv.verify import BOUND, MULTILINEAR, Expected

WIDE = np.longdouble
WIDER = np.finfo(WIDE).eps <= np.finfo(np.float64).eps / 2048  # so on Linux; not on Windows, nor on Apple's ARM


class Exact(Expected):
    """`Expected`, with an oracle that is rounded once; where torch has no number, torch's result stays."""

    def __init__(self, case: Case, dtype: str, seed: int) -> None:
        super().__init__(case, dtype, seed)
        if WIDER and dtype == "float64" and case.layer in MULTILINEAR:
            exact = self._exact()
            self.oracle = {name: torch.where(x.isfinite(), exact[name], x) for name, x in self.oracle.items()}
            self.bound = BOUND[torch.float32] + 0.5  # the oracle's rounding

    def _exact(self) -> dict[str, torch.Tensor]:
        layer, constants = self.case.layer, ()
        if layer == "conv2d":
            *constants, _ = shapes.conv2d(**self.inputs, **self.case.arguments)
        wide = {name: tensor.numpy().astype(WIDE) for name, tensor in (*self.inputs.items(), ("grad", self.grad))}
        x, weight, grad = wide["input"], wide["weight"], wide["grad"]
        wide.setdefault("bias", np.zeros(len(weight), WIDE))

        def run(kernel: str, *arrays: np.ndarray, like: np.ndarray) -> torch.Tensor:
            out = np.empty(like.shape, WIDE)
            with np.errstate(all="ignore"):
                getattr(vector, kernel)(*arrays, *(() if kernel.endswith("bias") else constants), out)
            return torch.from_numpy(out.astype(np.float64))

        exact = {
            "forward": run(layer, x, weight, wide["bias"], like=grad),
            "grad input": run(f"{layer}_grad_input", grad, weight, like=x),
            "grad weight": run(f"{layer}_grad_weight", grad, x, like=weight),
            "grad bias": run(f"{layer}_grad_bias", grad, like=wide["bias"]),
        }
        return {name: exact[name] for name in self.oracle}
