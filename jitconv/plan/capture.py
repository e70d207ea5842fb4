"""From a module to a graph of aten's operations without in-place ones, by torch.export, and where its tensors are."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from jitconv.compat import tables_of


@dataclass(frozen=True)
class Source:
    """Where a placeholder's tensor is found at each call: `owner[name]`, or among the inputs if owner is None."""

    owner: dict[str, Any] | None
    name: Any

    def of(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[self.name] if self.owner is None else self.owner[self.name]


@dataclass
class Captured:
    """A graph whose output is a flat tuple, the source of each placeholder, and what becomes of the outputs.

    mutated: the first outputs are written back to these sources; the rest have the structure `outputs`.
    same: pairs (owner, name, value): while owner[name] is that value for each, the graph is still the model's.
    """

    graph: fx.GraphModule
    sources: list[Source]
    mutated: list[Source]
    outputs: Any
    same: list[tuple[dict[str, Any], str, Any]]


def capture(model: nn.Module, example: tuple[Any, ...]) -> Captured:
    """Capture model(*example). Raises what the model raises, and ValueError where torch.export cannot follow it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own, about its copies of tree specs
        try:
            exported = torch.export.export(model, example, strict=False)
            exported = exported.run_decompositions({})  # nothing decomposed: in-place operations become others
        except Exception as error:
            raise ValueError(
                f"model cannot be captured by torch.export: {_first_line(error)}{_place(error)}; "
                'torch.compile(model, backend="jitconv") plans the parts that can be'
            ) from error
    signature = exported.graph_signature
    sources: list[Source] = []
    for spec in signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            sources.append(Source(None, sum(source.owner is None for source in sources)))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            sources.append(_state(model, str(spec.target)))
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            sources.append(Source(exported.constants, spec.target))
        else:
            raise ValueError(f"model must take and hold tensors only, but {spec.arg} is a {spec.kind.name}")
    names = [node.name for node in exported.graph.nodes if node.op == "placeholder"]
    mutated = []
    for out in signature.output_specs:
        if out.kind == OutputKind.BUFFER_MUTATION or out.kind.name == "PARAMETER_MUTATION":
            mutated.append(_state(model, str(out.target)))
        elif out.kind == OutputKind.USER_INPUT_MUTATION:
            mutated.append(sources[names.index(str(out.target))])
        elif out.kind != OutputKind.USER_OUTPUT:
            raise ValueError(f"model must return tensors, but its output {out.arg} is a {out.kind.name}")
    return Captured(exported.graph_module, sources, mutated, exported.call_spec.out_spec, _structure(model))


def _state(model: nn.Module, path: str) -> Source:
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    parameters, buffers, _ = tables_of(module)
    return Source(parameters if name in parameters else buffers, name)


def _structure(model: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """Which module holds which: and, where one tensor has several names, each of the names."""
    same: list[tuple[dict[str, Any], str, Any]] = []
    names: dict[int, list[tuple[dict[str, Any], str, Any]]] = {}
    for module in model.modules():
        parameters, buffers, modules = tables_of(module)
        same += [(modules, name, child) for name, child in modules.items()]
        for owner in (parameters, buffers):
            for name, tensor in owner.items():
                if tensor is None:
                    same.append((owner, name, None))  # a bias that was left out, and is set later
                else:
                    names.setdefault(id(tensor), []).append((owner, name, tensor))
    return same + [entry for entries in names.values() if len(entries) > 1 for entry in entries]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _place(error: BaseException) -> str:
    """The last line of the traceback that is neither torch's nor ours: the model's own."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if "/torch/" not in file and "jitconv/plan/" not in file:
            place = f" ({file}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place
