"""What was decided about every convolution, and why: text for people, plain data for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from binarize.preprocessing import Preprocessing


@dataclass(frozen=True)
class Decision:
    """One convolution's fate.

    Attributes:
        layer: module path in the user's model.
        action: `binarize` or `keep`.
        rule: short name of the rule that decided: `eligible`, `stem`, `classifier`, `gate`, `keep`, ...
        reason: that rule in words.
        kind: `1x1`, `3x3`, `depthwise`, `grouped`, ...
        in_channels, out_channels, kernel, stride, dilation, groups: of the conv.
        output_size: spatial size of its output for the example input, if known.
        macs: multiply-accumulates of one example (all call sites together).
        weight_bytes: of the float32 weight; a binary one packs to 1/32 of it.
        link: `identity`, `expand`, `squeeze` or `none`.
        residual: what became of the block shortcut around it: `replaced`, `kept` or `none`.
        block: module path of the smallest block around it, between a fork and an addition or concatenation.
        block_form: `identity` or `projection` (the block's shortcut), `concat`, or `none`.
        departures: where the recipe's method has no answer for this conv, and what it does instead.
    """

    layer: str
    action: str
    rule: str
    reason: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_size: tuple[int, ...]
    macs: int
    weight_bytes: int
    link: str = "none"
    residual: str = "none"
    block: str = ""
    block_form: str = "none"
    departures: tuple[str, ...] = ()

    @property
    def binarized(self) -> bool:
        return self.action == "binarize"

    @property
    def packed_bytes(self) -> int:
        """Of the binary weight: a bit for each of its values, channels padded to words of 64."""
        rows = self.out_channels // max(self.groups, 1)
        return rows * math.prod(self.kernel) * -(-self.in_channels // 64) * 8

    @property
    def link_ratio(self) -> float:
        """How many copies an expand makes of a channel, or how many channels a squeeze sums: 1 for an identity."""
        few, many = sorted((self.in_channels, self.out_channels))
        return many / max(few, 1)

    @property
    def line(self) -> str:
        """One line that says all of it, such as `layer2.0.conv1: binary 3x3 64->128 s2, expand`."""
        stride = "x".join(str(s) for s in dict.fromkeys(self.stride))
        what = f"{'binary' if self.binarized else self.rule} {self.kind} {self.in_channels}->{self.out_channels}"
        ends = [end for end in (self.link, self.residual) if end != "none"]
        return ", ".join([f"{self.layer}: {what} s{stride}", *ends])

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


@dataclass
class Report:
    """The record of a conversion; travels with the module as `.report` and inside the ONNX file.

    Attributes:
        model: class name of the user's model.
        config: the whole configuration as plain data.
        decisions: one per convolution, in order of execution; linear layers that count as convs among them.
        passes: names of the passes that ran, in order.
        untraced: the modules whose own code no graph holds, each with the reason and the source line; the
            convolutions they call are decided upon all the same.
        results: what later stations measured: accuracies, sizes, times, verification.
        float_linear_macs: multiply-accumulates of linear layers on feature maps that were not counted as convs.
    """

    model: str
    config: dict[str, Any]
    decisions: list[Decision]
    passes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    untraced: list[str] = field(default_factory=list)
    float_linear_macs: int = 0

    @property
    def binarized(self) -> list[Decision]:
        return [d for d in self.decisions if d.binarized]

    @property
    def kept(self) -> list[Decision]:
        return [d for d in self.decisions if not d.binarized]

    @property
    def binary_mac_share(self) -> float:
        """Share of the convolutions' multiply-accumulates that became binary, 0 to 1."""
        total = sum(d.macs for d in self.decisions)
        return sum(d.macs for d in self.binarized) / total if total else 0.0

    @property
    def float_linear_share(self) -> float:
        """Share of the uncounted linear layers in the multiply-accumulates of convs and linear layers, 0 to 1."""
        total = sum(d.macs for d in self.decisions) + self.float_linear_macs
        return self.float_linear_macs / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "config": self.config,
            "convs": len(self.decisions),
            "binarized": len(self.binarized),
            "binary_mac_share": round(self.binary_mac_share, 6),
            "float_linear_macs": self.float_linear_macs,
            "decisions": [d.to_dict() for d in self.decisions],
            "passes": self.passes,
            "untraced": self.untraced,
            "results": self.results,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def summary(self) -> str:
        """A few lines: how many convs were binarized, which stayed float and why."""
        lines = [
            f"{self.model}: {len(self.binarized)} of {len(self.decisions)} convs binarized "
            f"({self.binary_mac_share:.1%} of their multiply-accumulates)"
        ]
        if not self.binarized:
            lines.append("NOTHING IS BINARY; these are the reasons:")
        links = Counter(d.link for d in self.binarized)
        if links:
            lines.append("links: " + ", ".join(f"{count} {form}" for form, count in sorted(links.items())))
        kind = self.config.get("link", {}).get("kind")
        bare = [d.layer for d in self.binarized if d.link == "none" and d.residual != "projection"]
        if kind not in (None, "none") and bare:
            why = (  # elastic links fit everywhere
                "a weightless link that would start at 0 is none (link.gamma=one)"
                if kind == "elastic"
                else f"no {kind} link fits"
            )
            lines.append(f"{why}: {len(bare)} go without one: {_some(bare)}")
        for departure in dict.fromkeys(text for d in self.binarized for text in d.departures):
            layers = [d.layer for d in self.binarized if departure in d.departures]
            lines.append(f"{departure}: {len(layers)}: {_some(layers)}")
        for reason, count in Counter(d.reason for d in self.kept).items():
            lines.append(f"kept float: {count} ({reason}): {_some([d.layer for d in self.kept if d.reason == reason])}")
        if "preprocessing" in self.results:
            lines += Preprocessing.from_dict(self.results["preprocessing"]).lines()
        if self.untraced:
            lines.append(f"not traced as one graph, so a folder of parts holds it: {self.untraced[0]}")
        if self.float_linear_macs:
            lines.append(
                f"not counted: linear layers on feature maps, {self.float_linear_share:.1%} of all "
                "multiply-accumulates (--linear spatial makes them binary)"
            )
        return "\n".join(lines)


def _some(layers: list[str]) -> str:
    """The first of them."""
    return ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
