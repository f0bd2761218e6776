"""Export in parts: an ONNX file for every graph of a model, proved like a whole model's, and what joins them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize.assembly.calls import FlatPart, Form, find_parts, record_calls
from binarize.assembly.folder import MANIFEST, REST, Manifest, PartFile
from binarize.config import Config
from binarize.errors import BinarizeError, UnsupportedModelError, UsageError
from binarize.exporting import Verification, emit, verify, write_onnx
from binarize.exporting.metadata import set_metadata
from binarize.files import atomic_folder
from binarize.lowering import lower
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
        folder: a new folder, or one that this function wrote before and now replaces.
        inputs: what `module` takes; the parts are exported and proved with what they get when it runs on them. Maps
            of every other size work, too, as far as the part's own code lets them.
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
    done: list[_Part] = []
    with atomic_folder(folder, MANIFEST) as temporary:
        progress(ProgressEvent("exporting", 0, len(parts)))
        for path, part in parts.items():
            if not calls[path]:
                raise UnsupportedModelError("no example input reaches it", layer=path, hint="pass example_inputs")
            for form, examples in calls[path].items():
                file = _file_name(path, [other.file for other in done])
                done.append(_Part(path, part, form, examples, file))
                try:
                    done[-1].write(temporary, config, report, check)
                except BinarizeError as error:
                    error.layer = ".".join(filter(None, (path, error.layer)))
                    raise
            progress(ProgressEvent("exporting", len({one.path for one in done}), len(parts)))
        torch.save(rest_of(module, parts), temporary / REST)
        _note_results(report, done, (temporary / REST).stat().st_size)
        source = report.results.get("source", {})
        arch = None if source.get("arch_how") == "pickled" else source.get("arch")
        files = tuple(PartFile(one.path, one.file, one.form, one.gives) for one in done)
        brief = {key: value for key, value in report.results.items() if key != "training"}
        record = report.to_dict() | {"results": brief}
        manifest = Manifest(type(module).__name__, arch, source.get("num_classes"), files, record)
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def rest_of(module: nn.Module, parts: dict[str, Any]) -> dict[str, Tensor]:
    """What `module`'s state holds outside of its `parts`."""
    inside = tuple(f"{path}." for path in parts)
    return {name: value for name, value in module.state_dict().items() if not name.startswith(inside)}


class _Part:
    """A part on its way into a file."""

    def __init__(self, path: str, part: nn.Module, form: Form, examples: list[tuple[Tensor, ...]], file: str) -> None:
        self.path, self.form, self.file = path, form, file
        full = [tensors for tensors in examples if all(tensor.numel() for tensor in tensors)]
        self.examples = [_at_least_two(tensors) for tensors in full or examples]
        self.flat = FlatPart(path, part, form).eval()
        self.gives = form
        self.size: dict[str, Any] = {}
        self.verification: Verification | None = None

    def write(self, folder: Path, config: Config, report: Report, check: bool) -> None:
        example = self.examples[0]
        with torch.no_grad():
            self.gives = Form.of(self.flat.call(example))[0]
        lowered = lower(self.flat, example, config, any_size=True)
        model = emit(lowered, example)
        own = replace(report, decisions=[d for d in report.decisions if _lies_in(d.layer, self.path)], results={})
        if check:
            self.verification = Verification.joined(verify(lowered, model, tensors) for tensors in self.examples)
            own.results["verification"] = self.verification.to_dict()
        set_metadata(model, own)
        self.size = own.results["size"]
        write_onnx(model, folder / self.file)


def _at_least_two(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`tensors` with a batch of two or more: `torch.export` takes an extent of one or none for a constant.

    A detector that finds nothing gives its later heads no boxes; they get two of random features.
    """
    if all(tensor.dim() and tensor.shape[0] == 1 for tensor in tensors):
        return tuple(torch.cat([tensor, tensor]) for tensor in tensors)
    if all(tensor.dim() and tensor.shape[0] == 0 for tensor in tensors):
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(2, *tensor.shape[1:], generator=generator).to(tensor.dtype) for tensor in tensors)
    return tensors


def _lies_in(layer: str, path: str) -> bool:
    return layer == path or layer.startswith(f"{path}.")


def _file_name(path: str, taken: list[str]) -> str:
    name, number = f"{path}.onnx", 1
    while name in taken:
        number += 1
        name = f"{path}.{number}.onnx"
    return name


def _note_results(report: Report, done: list[_Part], rest_bytes: int) -> None:
    """Sums over the parts under the names that a whole model's results have, and each part's own."""
    sizes = [one.size for one in done]
    largest = {name: size for one in done for name, size in one.size["largest_float_layers"].items()}
    total = {key: sum(size[key] for size in sizes) for key in sizes[0] if key != "largest_float_layers"}
    total["file"] += rest_bytes
    total["float_layers"] += rest_bytes
    total["largest_float_layers"] = dict(sorted(largest.items(), key=lambda item: -item[1])[:3])
    report.results["size"] = total
    report.results["parts"] = {one.file: {"path": one.path, "bytes": one.size["file"]} for one in done}
    proofs = [one.verification for one in done if one.verification is not None]
    if proofs:
        report.results["verification"] = Verification.joined(proofs).to_dict()
