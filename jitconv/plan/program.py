"""A lowered graph made ready to run: the memory, the weights as they are now, and one call after the other."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter, getitem, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from jitconv.memory import empty_like, memory_of, prefer_huge_pages
from jitconv.packing import cached
from jitconv.plan import nodes
from jitconv.plan.buffers import ALIGNMENT, Array
from jitconv.plan.capture import Source
from jitconv.plan.lower import Lowering, Step
from jitconv.plan.nodes import Node
from jitconv.variants.recording import RUN, Recording, record, table
from jitconv.variants.threads import count


class Weights:
    """The weights' tensors as they were when what follows from them was computed; `stale` once one is another."""

    def __init__(self, program: "Program", inputs: Sequence[Tensor]) -> None:
        sources = [source for _, source in program.weights]
        self.owners = [inputs if source.owner is None else source.owner for source in sources]
        self.from_inputs = any(source.owner is None for source in sources)
        self.sources, self.names = sources, [source.name for source in sources]
        self.read = [source.of(inputs) for source in sources]
        for (node, _), tensor in zip(program.weights, self.read, strict=True):
            _same_form(node, tensor)
        self.untracked = any(tensor.is_inference() for tensor in self.read)  # made under inference_mode: no versions
        if not self.untracked:
            self.versions, self.addresses = [*map(_version, self.read)], [*map(_address, self.read)]
        self.tensors: dict[Any, Tensor] = {
            node: tensor.detach() for (node, _), tensor in zip(program.weights, self.read, strict=True)
        }
        for key, prepared in program.prepared.items():
            args, kwargs = fx.node.map_aggregate((prepared.args, prepared.kwargs), self._value)
            make = partial(prepared.target, *args, **kwargs)
            formula, of = program.formulas.get(key, (None, []))
            self.tensors[key] = cached([self.tensors[node] for node in of], formula, make) if of else make()
        self.contiguous = {key: self.tensors[key].contiguous() for key in program.weight_arrays}

    def _value(self, arg: Any) -> Any:
        return self.tensors[arg] if isinstance(arg, fx.Node) else arg

    def stale(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a weight has been replaced, moved, or changed in place since. (Loops in C: each call asks.)"""
        if self.untracked:
            return True
        owners = self.owners
        if self.from_inputs:
            owners = [inputs if source.owner is None else source.owner for source in self.sources]
        return not (
            all(map(is_, map(getitem, owners, self.names), self.read))
            and [*map(_version, self.read)] == self.versions
            and [*map(_address, self.read)] == self.addresses
        )


_version, _address = attrgetter("_version"), Tensor.data_ptr


def _same_form(node: Node, tensor: Any) -> None:
    planned = node.meta["val"]
    if not isinstance(tensor, Tensor) or tensor.shape != planned.shape or tensor.dtype != planned.dtype:
        got = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else repr(tensor)
        raise ValueError(
            f"{node.name} must stay {tuple(planned.shape)} {planned.dtype} as planned, got {got}: plan again"
        )
    if not tensor.is_cpu:
        raise ValueError(f"{node.name} must stay on the CPU, got {tensor.device}: a plan runs on the CPU")


class Program:
    """A graph for inputs of certain shapes: program(inputs) returns the list of its flat outputs.

    Several threads may call it: each call has a Frame of its own, and frames are kept for later calls.
    """

    def __init__(self, low: Lowering, mutated: Sequence[Source] = ()) -> None:
        self.steps, self.prepared, self.outputs, self.mutated = low.steps, low.prepared, low.outputs, mutated
        self.arena, self.arrays, self.shares = low.arena, low.arrays, low.shares
        self.weights = [(node, source) for node, source in low.sources.items() if node in low.static]
        self.inputs = [(node, source.name) for node, source in low.sources.items() if node not in low.static]
        self.weight_arrays = {array.buffer.key for array in low.arrays.values() if array.buffer.kind == "weight"}
        self.torch_reads = {node for step in self.steps if step.is_torch for node in step.node.all_input_nodes}
        self.torch_reads |= {node for node in self.outputs if isinstance(node, fx.Node)}
        self.formulas = {key: formula for key in self.prepared if (formula := self._formula(key))}
        self.has_torch = any(step.is_torch for step in self.steps)
        self.now: Weights | None = None
        self.frames: list[Frame] = []
        self.lock = threading.Lock()

    def _formula(self, key: Any) -> tuple[Any, list[Node]] | None:
        """How something is folded or packed, and of which weights: equal for all programs of the model."""
        sources: list[Node] = []

        def spelled(arg: Any) -> Any:
            if not isinstance(arg, fx.Node) and arg is not key:
                return arg
            prepared = self.prepared.get(arg)
            if prepared is None:
                sources.append(arg)
                return "weight", tuple(arg.meta["val"].shape), arg.meta["val"].dtype
            if prepared.target not in nodes.FOLDED:
                raise LookupError
            return prepared.target, *map(spelled, prepared.args)

        try:
            return spelled(key), sources
        except LookupError:
            return None

    def timer(self, inputs: Sequence[Any]) -> Callable[[], list[float]]:
        """Return what runs once on these inputs, as a call does, and returns the seconds of each step."""
        frame, weights = Frame(self, separate=True), self._refresh(inputs)
        frame.bind(weights)
        times: list[float] = []

        def timed(function: Any) -> Any:
            def run(*args: Any) -> None:
                start = time.perf_counter()
                function(*args)
                times.append(time.perf_counter() - start)

            return run

        dropped = [function == frame._drop for function, _ in frame.calls]
        for calls in (frame.calls, frame.alone):
            calls[:] = [(f if drop else timed(f), args) for (f, args), drop in zip(calls, dropped, strict=True)]

        def run() -> list[float]:
            times.clear()
            with torch.no_grad(), _without_autocast():
                frame.run(weights, inputs)
            return times[:]

        return run

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        weights = self.now
        if weights is None or weights.stale(inputs):
            weights = self._refresh(inputs)
        try:
            frame = self.frames.pop()
        except IndexError:
            frame = Frame(self)
        if self.has_torch:
            with torch.no_grad(), _without_autocast():
                results = frame.run(weights, inputs)
        else:
            results = frame.run(weights, inputs)
        self.frames.append(frame)  # not after an error or Ctrl-C, which may have left it half bound
        if self.mutated:
            with torch.no_grad():
                for source, result in zip(self.mutated, results, strict=False):
                    source.of(inputs).copy_(result)
            return results[len(self.mutated) :]
        return results

    def _refresh(self, inputs: Sequence[Any]) -> Weights:
        with self.lock, torch.no_grad():
            if self.now is None or self.now.stale(inputs):
                self.now = Weights(self, inputs)
            return self.now


def _without_autocast() -> Any:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


class Frame:
    """The memory of one call at a time, and the steps bound to it: all that need not be done again is done here.

    calls: functions and their argument lists, run one after the other; steps that can be recorded are one call with
    the recorded ones beside them, or with `separate` one each.
    For what lies elsewhere at each call, by the key of its buffer: patches: the positions in argument lists that get a
    view of it; addresses: the numbers in recordings that are its address; views: the nodes whose value it is.
    """

    def __init__(self, program: Program, separate: bool = False) -> None:
        self.program, self.separate = program, separate
        self.weights: Weights | None = None
        memory = torch.empty(program.arena + ALIGNMENT, dtype=torch.uint8)
        self.memory, self.start = prefer_huge_pages(memory).numpy(), -memory.data_ptr() % ALIGNMENT
        self.values: dict[Any, Any] = {}  # what torch steps and the caller read
        self.patches: dict[Any, list[tuple[list[Any], int, Array, Any]]] = {}
        self.addresses: dict[Any, list[tuple[Any, int, int]]] = {}
        self.views: dict[Any, list[tuple[Node, Array]]] = {}
        self.calls: list[tuple[Any, list[Any]]] = []
        self.alone: list[tuple[Any, list[Any]]] = []  # the same on one core
        self.recorded: list[Recording] = []
        for node in program.torch_reads & program.arrays.keys():
            array = program.arrays[node]
            if array.buffer.kind == "arena":
                self.values[node] = torch.from_numpy(self._in_arena(array))
            elif array.buffer.key is not node or array.buffer.kind == "output":
                self.views.setdefault(array.buffer.key, []).append((node, array))
        keys = {array.buffer.key for array in program.arrays.values() if array.buffer.kind == "output"}
        filled = {key: array for key, array in program.arrays.items() if key in keys}
        like = {key: torch.empty((), dtype=key.meta["val"].dtype).expand(each.shape) for key, each in filled.items()}
        self.prototypes = [(key, prototype, empty_like(prototype)) for key, prototype in like.items()]
        self.simple = program.outputs == [*filled] and all(len(self.views[key]) == 1 for key in filled)
        if self.simple:  # the results are what kernels fill, and nothing else looks at them
            for key in filled:
                del self.views[key]
        read = {a.buffer.key for step in program.steps for a in step.args if isinstance(a, Array)} | self.views.keys()
        self.kernel_inputs = [(node, index) for node, index in program.inputs if node in read]
        self.torch_inputs = [(node, index) for node, index in program.inputs if node in program.torch_reads]

    def _last_reads(self) -> dict[int, list[Node]]:
        """The torch steps' results that nobody needs any more, by the step that is the last to read them."""
        program, last = self.program, {}
        for i, step in enumerate(program.steps):
            read = step.node.all_input_nodes if step.is_torch else [a.buffer.key for a in step.args if _result(a)]
            if step.is_torch:
                last[step.node] = i
            last.update((node, i) for node in read if node in last)
        outputs = {node for node in program.outputs if isinstance(node, fx.Node)}
        dropped: dict[int, list[Node]] = {}
        for node, i in last.items():
            if node not in outputs:
                dropped.setdefault(i, []).append(node)
        return dropped

    def bind(self, weights: Weights) -> None:
        """Make the calls with these weights."""
        self.weights = weights  # which keeps the tensors alive
        storages = (tensor.untyped_storage() for tensor in weights.tensors.values())
        self.own = {self.memory.ctypes.data, *(storage.data_ptr() for storage in storages)}
        self.values.update((node, weights.tensors[node]) for node in self.program.torch_reads & weights.tensors.keys())
        for collected in (self.patches, self.addresses, self.calls, self.alone, self.recorded):
            collected.clear()
        stand_ins, last = self._stand_ins(), self._last_reads()
        recorded: list[tuple[Recording, bool]] = []
        dropped: list[Node] = []
        for i, step in enumerate(self.program.steps):
            own = self._recorded(step, stand_ins)
            if recorded and (not own or self.separate):
                self._run(recorded)
                recorded = []
            recorded += own
            if step.is_torch:
                self._add(self._torch, [step, *_arguments_of(step.node)])
            elif not own:
                self._add(step.kernel, self._arguments(step), step.small)
            dropped += last.get(i, ())
            if dropped and not recorded:  # those that recorded steps read stay until these have run
                self._add(self._drop, dropped)
                dropped = []
        if recorded:
            self._run(recorded)
        if dropped:
            self._add(self._drop, dropped)
        for key, tensor in weights.contiguous.items():
            self._bind(key, tensor)

    def _stand_ins(self) -> dict[Any, Any]:
        """Memory in the place of what lies elsewhere at each call, while calls are recorded."""
        arrays = [array for step in self.program.steps for array in step.args if isinstance(array, Array)]
        elsewhere = {a.buffer.key: a.buffer for a in arrays if a.buffer.kind not in ("arena", "weight")}
        return {key: np.empty(buffer.nbytes + ALIGNMENT, np.uint8) for key, buffer in elsewhere.items()}

    def _recorded(self, step: Step, stand_ins: dict[Any, Any]) -> list[tuple[Recording, bool]]:
        """A step's recordings, with whether each is small; none if it cannot be recorded."""
        if not step.recordable:
            return []
        args = [self._at(arg, stand_ins) if isinstance(arg, Array) else arg for arg in step.args]
        recordings = []
        for call in step.kernel.calls(*args):
            recording = record(*call)
            if recording is None:
                return []
            recordings.append(recording)
            for key, memory in stand_ins.items():
                distance = recording.arguments - memory.ctypes.data
                for place in np.flatnonzero((distance >= 0) & (distance <= memory.nbytes - ALIGNMENT)).tolist():
                    entry = recording.numbers, place, int(distance[place])
                    self.addresses.setdefault(key, []).append(entry)
        self.recorded += recordings
        return [(recording, step.small) for recording in recordings]

    def _arguments(self, step: Step) -> list[Any]:
        args: list[Any] = []
        for i, arg in enumerate(step.args):
            if isinstance(arg, Array) and arg.buffer.kind not in ("arena", "weight"):
                self.patches.setdefault(arg.buffer.key, []).append((args, i, arg, memory_of(arg.nbytes)))
                args.append(None)
            else:
                args.append(self._at(arg, {}) if isinstance(arg, Array) else arg)
        return args

    def _at(self, array: Array, stand_ins: dict[Any, Any]) -> Any:
        kind, key = array.buffer.kind, array.buffer.key
        if kind == "arena":
            return self._in_arena(array)
        if kind == "weight" and self.weights is not None:
            address = self.weights.contiguous[key].data_ptr() + array.offset
            return np.ndarray(array.shape, array.dtype, memory_of(array.nbytes)(address))
        return np.ndarray(array.shape, array.dtype, stand_ins[key], array.offset)

    def _in_arena(self, array: Array) -> Any:
        return np.ndarray(array.shape, array.dtype, self.memory, self.start + array.buffer.offset + array.offset)

    def _run(self, recorded: list[tuple[Recording, bool]]) -> None:
        self._add(RUN, [table(recorded)], small=all(small for _, small in recorded))

    def _add(self, function: Any, args: list[Any], small: bool = False) -> None:
        alone = getattr(function, "alone", function)
        self.calls.append((alone if small else function, args))
        self.alone.append((alone, args))

    def run(self, weights: Weights, inputs: Sequence[Any]) -> list[Any]:
        """Compute the outputs of these inputs."""
        if self.weights is not weights:
            self.bind(weights)
        copies = []  # held until the end of the call
        for node, index in self.kernel_inputs:
            tensor = inputs[index]
            if not tensor.is_contiguous():
                tensor = tensor.contiguous()
                copies.append(tensor)
            self._bind(node, tensor)
        for node, index in self.torch_inputs:
            self.values[node] = inputs[index]
        filled = []
        for key, prototype, new in self.prototypes:
            tensor = new(prototype)
            self._bind(key, tensor)
            filled.append(tensor)
        for function, args in self.calls if count() > 1 else self.alone:
            function(*args)
        return filled if self.simple else self._results()

    def _bind(self, key: Any, tensor: Tensor) -> None:
        """Let the steps find in this tensor what lies in the buffer of this key."""
        address = tensor.data_ptr()
        for numbers, place, distance in self.addresses.get(key, ()):
            numbers[place] = address + distance
        for args, i, array, memory_at in self.patches.get(key, ()):
            args[i] = np.ndarray(array.shape, array.dtype, memory_at(address + array.offset))
        for node, array in self.views.get(key, ()):
            if array.shape != tensor.shape:
                first = array.offset // array.dtype.itemsize
                self.values[node] = tensor.view(-1)[first : first + math.prod(array.shape)].view(array.shape)
            else:
                self.values[node] = tensor

    def _torch(self, step: Step, flat: bool, arguments: list[tuple[bool, Any]]) -> None:
        """Run a torch step; kernels that read its result get it as it now lies in memory. See _arguments_of."""
        node, values = step.node, self.values
        if flat:
            args, kwargs = [values[arg] if is_node else arg for is_node, arg in arguments], node.kwargs
        else:
            args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), self._value)
        try:
            result = node.target(*args, **kwargs)
        except Exception as error:
            error.add_note(f"jitconv: in the step {step.name} of a plan{source_line(node)}")
            raise
        if node in self.patches or node in self.addresses or node in self.views:
            result = result.contiguous()
            self._bind(node, result)
        self.values[node] = result

    def _value(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, fx.Node) else arg

    def _drop(self, *nodes: Node) -> None:
        for node in nodes:
            self.values[node] = None

    def _results(self) -> list[Any]:
        results, seen = list[Any](), set[int]()
        for node in self.program.outputs:
            value = self.values[node] if isinstance(node, fx.Node) else node
            if isinstance(value, Tensor):
                if node in self.program.shares and value.untyped_storage().data_ptr() in self.own:
                    value = value.clone()  # a view of memory that the next call overwrites
                elif id(value) in seen and node.op != "placeholder":
                    value = value.clone()
            seen.add(id(value))
            results.append(value)
        for node in self.program.torch_reads:
            if node in self.program.shares or node in self.views:
                self.values[node] = None
        return results


def _arguments_of(node: Node) -> tuple[bool, list[tuple[bool, Any]]]:
    """Whether all nodes among a call's arguments are arguments themselves, not parts of them; which ones are nodes."""
    arguments = [(isinstance(arg, fx.Node), arg) for arg in node.args]
    return len(node.all_input_nodes) == len({arg for is_node, arg in arguments if is_node}), arguments


def _result(arg: Any) -> bool:
    return isinstance(arg, Array) and arg.buffer.kind == "result"


def source_line(node: Node) -> str:
    """Where in the model's source a node comes from: the innermost line that is not torch's."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    own = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    return f" ({own[-1].removeprefix('File ')})" if own else ""
