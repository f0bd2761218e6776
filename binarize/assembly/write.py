"""Export in parts: an ONNX file for every graph of a model, proved like a whole model's, and what joins them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize.assembly.calls import find_parts, record_calls
from binarize.assembly.folder import MANIFEST, REST, Manifest, PartFile, foreign_content
from binarize.assembly.part import BuiltPart, build_part, describe_sizes
from binarize.config import Config
from binarize.errors import BinarizeError, UnsupportedModelError, UsageError
from binarize.exporting import Verification, write_onnx
from binarize.exporting.metadata import set_metadata
from binarize.files import atomic_folder
from binarize.nn.materialise import let_go_of_history
from binarize.progress import Listener, ProgressEvent, silent
from binarize.report import Report


def write_parts(
    module: nn.Module,
    folder: str | Path,
    inputs: tuple[Any, ...],
    report: Report,
    *,
    check: bool = True,
    progress: Listener = silent,
) -> None:
    """Write `module`'s binary parts into `folder`, which appears whole or not at all.

    Args:
        module: a binarized module of several graphs.
        folder: a new or empty one, or one that holds nothing but what this function wrote, and is replaced.
        inputs: what `module` takes; the parts are exported and proved with what they get when it runs on them. Maps
            of every other size work, too, where the part does the same at all; otherwise it gets a file for each size.
        report: the module's; gets `results["size"]`, `results["verification"]` and `results["parts"]`.
        check: whether to prove each part equal, at each distinct shape that it gets.

    Raises:
        VerificationError, UnsupportedModelError: with the part's path; nothing is written.
        UsageError: the configuration asks for int8 ends, or `folder` holds other things.
    """
    config = Config().updated(report.config)
    if config.export.stem == "int8":
        raise UsageError("int8 ends need a model in one file", hint="leave out --stem int8")
    let_go_of_history(module)
    module = copy.deepcopy(module).cpu().float().eval()
    parts = find_parts(module)
    calls = record_calls(module, inputs, parts)
    done: list[_Written] = []
    with atomic_folder(folder, foreign_content) as temporary:
        progress(ProgressEvent("exporting", 0, len(parts)))
        for number, (path, part) in enumerate(parts.items(), 1):
            if not calls[path]:
                raise UnsupportedModelError("no example input reaches it", layer=path, hint="pass example_inputs")
            for form, examples in calls[path].items():
                try:
                    for built in build_part(path, part, form, examples, config, check=check):
                        done.append(_write(built, temporary, _file_name(path, [one.file for one in done]), report))
                except BinarizeError as error:
                    error.layer = ".".join(filter(None, (path, error.layer)))
                    raise
            progress(ProgressEvent("exporting", number, len(parts)))
        torch.save(rest_of(module, parts), temporary / REST)
        _note_results(report, done, (temporary / REST).stat().st_size)
        source = report.results.get("source", {})
        arch = None if source.get("arch_how") == "pickled" else source.get("arch")
        files = tuple(PartFile(one.part.path, one.file, one.part.takes, one.part.gives) for one in done)
        brief = {key: value for key, value in report.results.items() if key != "training"}
        record = report.to_dict() | {"results": brief}
        manifest = Manifest(type(module).__name__, arch, source.get("num_classes"), files, record)
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def rest_of(module: nn.Module, parts: dict[str, Any]) -> dict[str, Tensor]:
    """What `module`'s state holds outside of its `parts`."""
    inside = tuple(f"{path}." for path in parts)
    return {name: value for name, value in module.state_dict().items() if not name.startswith(inside)}


@dataclass(frozen=True)
class _Written:
    """A part's file in the folder; `size` says where its bytes go."""

    part: BuiltPart
    file: str
    size: dict[str, Any]


def _write(part: BuiltPart, folder: Path, file: str, report: Report) -> _Written:
    own = replace(report, decisions=[d for d in report.decisions if _lies_in(d.layer, part.path)], results={})
    if part.verification is not None:
        own.results["verification"] = part.verification.to_dict()
    set_metadata(part.model, own)
    write_onnx(part.model, folder / file)
    return _Written(part, file, own.results["size"])


def _lies_in(layer: str, path: str) -> bool:
    return layer == path or layer.startswith(f"{path}.")


def _file_name(path: str, taken: list[str]) -> str:
    name, number = f"{path}.onnx", 1
    while name in taken:
        number += 1
        name = f"{path}.{number}.onnx"
    return name


def _note_results(report: Report, done: list[_Written], rest_bytes: int) -> None:
    """Sums over the parts under the names that a whole model's results have, and each part's own."""
    sizes = [one.size for one in done]
    largest = {name: size for one in done for name, size in one.size["largest_float_layers"].items()}
    total = {key: sum(size[key] for size in sizes) for key in sizes[0] if key != "largest_float_layers"}
    total["file"] += rest_bytes
    total["float_layers"] += rest_bytes
    total["largest_float_layers"] = dict(sorted(largest.items(), key=lambda item: -item[1])[:3])
    report.results["size"] = total
    report.results["parts"] = {one.file: _record(one) for one in done}
    proofs = [one.part.verification for one in done if one.part.verification is not None]
    if proofs:
        report.results["verification"] = Verification.joined(proofs).to_dict()


def _record(one: _Written) -> dict[str, Any]:
    record = {"path": one.part.path, "bytes": one.size["file"], "maps": describe_sizes(one.part.sizes)}
    return record | ({"why_fixed": one.part.why_fixed} if one.part.why_fixed else {})
