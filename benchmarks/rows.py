"""What is measured: a row of the results, and the helpers with which every file writes its table of rows."""

import importlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from jitconv import functional, machine, variants
from jitconv.cases import Case
from jitconv.op import Bound

# Given torch tensors, `interpreted` is the loop of the homework. On NumPy arrays the same loop is several times faster.
variants.add(replace(variants.get("interpreted"), name="interpreted-numpy", device="cpu", tensors=False))

ALL_CORES = int(os.environ.get("BENCHMARK_CORES", machine.cores()))  # of the machine; this process may have fewer
LANES = tuple(sorted({1, ALL_CORES}))  # one core is the primary lane: the one that other programs disturb least
PLAN = "jitconv plan"  # the variant of rows in which a whole network is one call,
WINOGRAD_PLAN = "jit-winograd plan"  # and one call of jit-winograd's kernels
TABLES = ("machine", "layers", "network", "products", "resnet", "models", "overhead", "scaling", "compiling", "ladder")
ONCE = ("machine", "products", "overhead", "scaling", "batches", "compiling", "ladder")  # groups, in a quick study
SLOWER = ("interpreted", "interpreted-numpy", "jit", "jit-parallel", "vector")  # variants that no answer rests on
ENGINES = ("jitconv", "torch.compile", "onnxruntime", "openvino", "jax")  # each is measured in processes of its own


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row measures. All fields but `case` are its extra_info, beside those that measure.py adds.

    group: the table it belongs to, named after the test file. work: what is computed, in words.
    layer: a function of jitconv.functional, "network" (SimpleConvNet), "model" (torchvision's), "machine" or "matmul".
    quantity: "forward", "call" (forward with grad), "backward" (all gradients), "weight gradient", "step", … flops,
    bytes: of one call; bytes are those of arguments and results. axis, size: in scaling rows, what varies and its
    value. again: the same thing a second time (A/A): how far the two differ is the noise of the machine.
    case: for rows of one layer, the call itself.
    """

    group: str
    work: str
    layer: str
    quantity: str
    variant: str
    threads: int
    device: str = "cpu"
    batch: int = 0
    flops: float = 0
    bytes: float = 0
    axis: str = ""
    size: int = 0
    again: bool = False
    case: Case | None = None

    @property
    def interpreted(self) -> bool:
        """Plain Python: nothing to compile, and so slow that it is timed once."""
        return self.variant.startswith("interpreted")

    def again_in(self, number: int, full: bool) -> bool:
        """Whether pass `number` measures it: the first measures all, and the others what the answer rests on.

        A quick study has no time for more. Interpreted rows take seconds a call, and are steady.
        """
        if number == 0 or full:
            return number == 0 or not self.interpreted
        return self.group not in ONCE and self.variant not in SLOWER

    @property
    def engine(self) -> str:
        """Which process measures it: jitconv's with torch, or that of another engine."""
        return self.variant if self.variant in ENGINES else "jitconv"

    @property
    def name(self) -> str:
        """The row's name, its own among those on as many cores; --row takes it."""
        return f"{self.work}, {self.quantity}, {self.variant}{', again' if self.again else ''}"

    @property
    def command(self) -> str:
        """What measures this row."""
        lane = "" if self.threads == 1 else f" --threads {self.threads}"
        engine = "" if self.engine == "jitconv" else f" --engine {self.engine}"
        return f"pytest benchmarks/test_{self.file}.py{lane}{engine} --row '{self.name}'"

    @property
    def file(self) -> str:
        """The test file, without test_ and .py: its group's, but for the network's batches."""
        return "network" if self.group == "batches" else self.group

    def info(self) -> dict[str, Any]:
        """Return the fields as the flat entries of extra_info."""
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "case"}
        return shown | {
            "borrows": borrows(self.variant, self.layer, self.case),
            "name": self.name,
            "command": self.command,
        }

    def __str__(self) -> str:
        return self.name


def over_variants(row: Row, skip: Iterable[str] = ()) -> Iterator[Row]:
    """Yield the row for every variant of its device but those to skip.

    Interpreted ones come for one image only, those that have no use for a second core on one core only, and
    jit-winograd where there is a 3×3 convolution: elsewhere it is jit-tiled.
    """
    for variant in variants.available(row.device):
        each = replace(row, variant=variant)
        serial = each.interpreted or variant == "jit"
        left_out = (each.interpreted and row.batch != 1) or (serial and row.threads != 1)
        if variant not in skip and not left_out and (variant != "jit-winograd" or _has_3x3(row)):
            yield each


def _has_3x3(row: Row) -> bool:
    if row.case is None or row.case.layer != "conv2d":
        return False
    stride = row.case.arguments.get("stride", 1)
    return tuple(row.case.arrays["weight"][2:]) == (3, 3) and stride in (1, (1, 1))


def layer_rows(
    group: str,
    case: Case,
    skip: Iterable[str] = (),
    lanes: Iterable[int] = LANES,
    quantities: Iterable[str] = ("forward", "backward"),
    **axis: Any,
) -> list[Row]:
    """Return the rows of one layer's call: quantities × threads × variants. `axis` may set axis and size."""
    batch = next(iter(case.arrays.values()))[0]
    rows: list[Row] = []
    for quantity in quantities:
        flops, moved = cost(case, quantity)
        for threads in lanes:
            row = Row(
                group=group, work=case.name, layer=case.layer, quantity=quantity, variant="", threads=threads,
                batch=batch, flops=flops, bytes=moved, case=case, **axis,
            )  # fmt: skip
            rows += over_variants(row, skip)
    return rows


def cost(case: Case, quantity: str) -> tuple[float, float]:
    """Return the floating-point operations of a call (conv2d and linear only) and the bytes of its arrays in float32.

    Backward computes one product of the forward's size for each of the two factors, and moves two gradients more.
    """
    out = _output(case)
    sizes = [math.prod(shape) for shape in case.arrays.values()]
    taps = math.prod(case.arrays["weight"][1:]) if case.layer in ("conv2d", "linear") else 0
    twice = 2 if quantity == "backward" else 1
    return 2 * out.numel() * taps * twice, 4.0 * (sum(sizes) + out.numel()) * twice


def _output(case: Case) -> torch.Tensor:
    """The result without its values."""
    inputs = {name: torch.empty(shape, device="meta") for name, shape in case.arrays.items()}
    fixed = {name: torch.from_numpy(value).to("meta") for name, value in case.fixed.items()}
    return variants.get("torch").ops[case.layer](**inputs, **fixed, **case.arguments)


def borrows(variant: str, layer: str, case: Case | None = None) -> str:
    """Return the variant whose kernel this one runs for a layer, because it is the same object; "" if its own.

    What the kernel is can depend on shapes: it is the one that a call of the case is bound to.
    """
    if variant not in variants.names():
        return ""
    chosen = variants.get(variant)
    kernel = _kernel(chosen, layer, case)
    for name in variants.available():
        if name == variant:
            break
        other = variants.get(name)
        if other.tensors == chosen.tensors and kernel is not None and _kernel(other, layer, case) is kernel:
            return name
    return ""


def _kernel(variant: variants.Variant, layer: str, case: Case | None) -> Any:
    """The kernel of a layer, as it is bound to the shapes of a case where it depends on them; None without one."""
    kernel = variant.ops.get(layer)
    if case is None or not hasattr(kernel, "bind"):
        return kernel
    inputs = {name: torch.empty(shape) for name, shape in case.arrays.items()}
    request = getattr(functional, layer).__wrapped__(**inputs, **case.arguments, variant=variant)
    return Bound(request.compute, variant, request.args, request.results).kernel


def twice(rows: Iterable[Row]) -> list[Row]:
    """Add A/A rows: torch and the default variant, 64 images, a second time."""
    found = list(rows)
    repeated = {variants.BEST["cpu"], "torch"}
    return found + [replace(row, again=True) for row in found if row.batch == 64 and row.variant in repeated]


def powers(base: int, low: int, high: int) -> list[int]:
    """Return low, low·base, … up to high."""
    return [low * base**k for k in range(int(math.log(high / low, base) + 1.001))]


def table(full: bool) -> list[Row]:
    """Return every row of every CPU benchmark: what a study measures."""
    found: list[Row] = []
    for name in TABLES:
        found += importlib.import_module(f"benchmarks.test_{name}").rows(full)
    return found
