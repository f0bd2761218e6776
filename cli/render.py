"""A conversion's record as lines and tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from binarize.cli.output import Output
from binarize.report import Decision, Report

_SIZE_ROWS = {
    "packed_weights": "packed binary weights",
    "scales_links_thresholds": "scales, links, thresholds",
    "float_layers": "float layers",
    "graph_and_functions": "graph and functions",
}


def show_summary(output: Output, report: Report) -> None:
    """How many convs became binary, and one row per reason to keep one."""
    output.text(report.summary())


def show_decisions(output: Output, report: Report, *, wide: bool = False) -> None:
    """A row for every conv; `wide` has every fact and lines as long as they get."""
    macs = max(sum(d.macs for d in report.decisions), 1)
    if wide:
        rows = [{**_decision(d, macs), **_details(d)} for d in report.decisions]
    else:
        rows = [_decision(d, macs) for d in report.decisions]
    if rows:
        output.table("", tuple(rows[0]), [tuple(row.values()) for row in rows], width=_WIDE if wide else None)


_WIDE = 1000
"""Columns; more than any row needs."""


def _decision(d: Decision, macs: int) -> dict[str, str]:
    """What fits into 100 columns: what becomes of it, what it is, what it costs, its link."""
    stride = "x".join(str(s) for s in dict.fromkeys(d.stride))
    conv = f"{d.kind} {d.in_channels}>{d.out_channels}" + ("" if stride in ("1", "") else f" /{stride}")
    return {
        "layer": d.layer,
        "becomes": "binary" if d.binarized else d.rule,
        "conv": conv,
        "MACs": f"{d.macs / macs:.1%}",
        "float": human_bytes(d.weight_bytes),
        "packed": human_bytes(d.packed_bytes) if d.binarized else "",
        "link": link_text(d),
    }


def _details(d: Decision) -> dict[str, str]:
    """What `--wide` shows besides."""
    return {
        "map": "x".join(str(size) for size in d.output_size),
        "MMACs": f"{d.macs / 1e6:.2f}",
        "groups": str(d.groups),
        "dilation": "x".join(str(size) for size in d.dilation),
        "block": " ".join(part for part in (d.block, d.block_form) if part not in ("", "none")),
        "shortcut": d.residual if d.residual != "none" else "",
        "reason": d.reason,
    }


def link_text(d: Decision) -> str:
    """`identity`, or how many channels an expand makes of one or a squeeze sums."""
    if d.link in ("expand", "squeeze"):
        ratio = f"{d.link_ratio:.3g}"
        return f"expand 1:{ratio}" if d.link == "expand" else f"squeeze {ratio}:1"
    return "" if d.link == "none" else d.link


def show_accuracy(output: Output, results: dict[str, Any]) -> None:
    """Float and binary top-1 side by side, as far as they were measured."""
    training = results.get("training", {})
    rows = [
        ("float, as loaded", results.get("float_top1_before_adaptation")),
        ("float", results.get("float_top1")),
        ("binary", training.get("val_top1")),
    ]
    measured = [(name, f"{value:.2%}") for name, value in rows if value is not None]
    if measured:
        output.table("accuracy", ("model", "top-1"), measured)


def show_file(output: Output, report: Report, file: Path) -> None:
    """What became an ONNX `file` or folder: decisions, accuracy as far as it is known, size, and what was proved."""
    results = report.results
    show_summary(output, report)
    show_accuracy(output, results)
    show_size(output, results["size"], file)
    _show_parts(output, results.get("parts"))
    _show_verification(output, results["verification"])
    _show_fixed_batch(output, results.get("fixed_batch"))
    _show_int8(output, results.get("int8"))


def show_size(output: Output, size: dict[str, Any], file: Path) -> None:
    """Where the bytes of the ONNX `file` go, or of the files in that folder."""
    files = file.iterdir() if file.is_dir() else (file,)
    total = max(sum(found.stat().st_size for found in files), 1)
    parts = {name: size[key] for key, name in _SIZE_ROWS.items()}
    parts |= {"report and configuration": total - sum(parts.values()), "file": total}
    rows = [(name, human_bytes(count), f"{count / total:.1%}") for name, count in parts.items()]
    output.table("size", ("part", "bytes", "share"), rows)
    if size["packed_weights"]:
        ratio = size["float_weights_replaced"] / size["packed_weights"]
        replaced = human_bytes(size["float_weights_replaced"])
        output.text(f"The packed weights replace {replaced} of float32: 1/{ratio:.1f} of it.")


def _show_parts(output: Output, parts: dict[str, Any] | None) -> None:
    if parts:
        rows = [(part["path"], name, part["maps"], f"{part['bytes']:,}") for name, part in parts.items()]
        output.table("parts", ("module", "file", "maps", "bytes"), rows)
        for part in parts.values():
            if "why_fixed" in part:
                output.text(f"{part['path']} takes maps of {part['maps']} alone: {part['why_fixed']}")


def _show_verification(output: Output, found: dict[str, Any]) -> None:
    """What the proof of equality compared."""
    output.text(
        f"verified: {found['nodes']} outputs of binary layers equal the trained model's "
        f"({found['values']} values, {found['bits']} bits; worst {found['worst']:.2g} of allowed rounding)"
    )


def _show_fixed_batch(output: Output, size: int | None) -> None:
    """That a file takes one batch size only, if so."""
    if size is not None:
        output.warning(f"the model's code does not hold for every batch: the file takes {size} at a time")


def _show_int8(output: Output, found: dict[str, Any] | None) -> None:
    """Which layers became int8 after the proof, and what that did to the answers."""
    if found is None:
        return
    output.text(f"int8: {', '.join(found['layers'])}")
    if not found["images"]:
        output.warning("the int8 ranges come from random inputs; --data IMAGES sets them to what the model meets")
        return
    output.text(
        f"ranges from {found['images']} images; on {found['images_compared']} others the int8 file's top-1 answer is "
        f"the float one's in {found['top1_agreement']:.1%}"
    )


def show_notes(output: Output, source: dict[str, Any] | None) -> None:
    """What loading recognised, dropped or assumed."""
    for note in (source or {}).get("notes", ()):
        output.note(note)


def source_of(loaded: Any) -> dict[str, Any]:
    """A `Loaded` without its module, as plain data."""
    fields = ("source", "kind", "arch", "arch_how", "notes", "num_classes")
    return {name: getattr(loaded, name) for name in fields}


def human_bytes(count: float) -> str:
    """1234567 -> '1.23 MB' (1 MB = 10^6 bytes)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
