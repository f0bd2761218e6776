"""What an ONNX file says about itself: every decision, the configuration, versions, results."""

from __future__ import annotations

import json

import onnx

from binarize.config import Config
from binarize.exporting.size import size_report
from binarize.machine import versions
from binarize.report import Report


def set_metadata(model: onnx.ModelProto, report: Report) -> None:
    """Put `report` into `model`'s `metadata_props`, and the file's size into `report`.

    The size counts the metadata that names it, so this goes round until the number stands.
    """
    size = None
    while size != (size := model.ByteSize()) or "size" not in report.results:
        report.results["size"] = size_report(model, report)
        _write(model, _metadata(report))


def _metadata(report: Report) -> dict[str, str]:
    brief = {key: value for key, value in report.results.items() if key != "training"}
    return {
        "binarize.report": json.dumps({**report.to_dict(), "results": brief}),
        "binarize.config": Config().updated(report.config).to_toml(),
        "binarize.versions": json.dumps(versions()),
    }


def _write(model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
