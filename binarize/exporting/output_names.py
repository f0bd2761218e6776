"""Outputs of a file get the names that `binarize.lowering.output_names` finds for what the model returns."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper
from torch.export import ExportedProgram

from binarize.lowering.output_names import OUTPUT, leaf_names, numbered_names


def output_names(program: ExportedProgram, count: int) -> list[str]:
    """A name for each of the `count` outputs that a file of `program` has."""
    structure = program.call_spec.out_spec
    if structure is None or structure.num_leaves != count:
        return numbered_names(count)
    return leaf_names(structure)


def name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give the outputs of `model` these names, all different; inputs keep theirs: an output like one is `x_output`."""
    graph = model.graph
    inputs = {item.name for item in graph.input}
    made = {value for node in graph.node for value in node.output}
    names = [f"{name}_{OUTPUT}" if name in inputs else name for name in names]
    renamed: dict[str, str] = {}
    copies: list[tuple[str, str]] = []
    for output, name in zip(graph.output, names, strict=True):
        if output.name in made and output.name not in renamed:
            renamed[output.name] = name
        else:  # an input or a constant, or an output already: the value keeps the name it has
            copies.append((output.name, name))
        output.name = name
    for value in {*made, *(item.name for item in graph.initializer)} & set(names) - set(renamed):
        renamed[value] = f"{value}_inside"
    _rename(graph, renamed)
    for value, name in copies:
        graph.node.append(helper.make_node("Identity", [renamed.get(value, value)], [name], name=f"{name}_identity"))


def _rename(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """New names for values, in the graphs inside of nodes too; those of the outermost graph's ports are settled."""
    for item in graph.initializer:
        item.name = renamed.get(item.name, item.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(value, value) for value in values]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, renamed)
                for output in inner.output:
                    output.name = renamed.get(output.name, output.name)
