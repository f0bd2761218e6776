"""The picture as SVG text: columns of boxes and wires under a title and a legend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from binarize.drawing.layout import HEIGHT, Place, place
from binarize.drawing.sketch import Box, Sketch
from binarize.report import Decision, Report

WIDTH = 196
"""Of a box, in pixels."""
LANE = 252
MARGIN = 28
HEAD = 118
COLUMN_GAP = 56
FONT = "font-family='Inter, Segoe UI, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Ink:
    """Colours of a kind of layer: inside, border, and what the legend says."""

    fill: str
    line: str
    legend: str


BINARY = Ink("#d5f2ec", "#0d8577", "binary")
INKS: Mapping[str, Ink] = {
    "stem": Ink("#fdeccb", "#c77d0a", "first or last conv"),
    "classifier": Ink("#fdeccb", "#c77d0a", "first or last conv"),
    "gate": Ink("#e9e3fa", "#6d4bc4", "gate"),
    "attention": Ink("#e9e3fa", "#6d4bc4", "gate"),
    "keep": Ink("#dce9fb", "#2f6fc6", "kept by choice"),
    "only": Ink("#dce9fb", "#2f6fc6", "kept by choice"),
}
OTHER = Ink("#fbdcdc", "#c03434", "no binary form, or another rule")
PLAIN = Ink("#eef0f3", "#7b8494", "not counted")
WIRE, SHORTCUT, LINK = "#a3abb8", "#5b6472", "#0d8577"


@dataclass(frozen=True)
class Column:
    """A graph with a heading; its layers carry their share of the arithmetic, or their link or rule."""

    heading: str
    sketch: Sketch
    notes: Literal["macs", "links"]


def draw(report: Report, columns: Sequence[Column]) -> str:
    """An SVG document of `columns` side by side, equal layers in equal rows, layers coloured by decision.

    Shortcuts are arcs on the right of their lane, Elastic Links on the left. A bar in a layer shows its share of the
    multiply-accumulates; a tooltip has the whole decision.
    """
    places = place([column.sketch for column in columns])
    widths = [(max((p.lane for p in places_.values()), default=0) + 1) * LANE for places_ in places]
    height = max((p.bottom(b) for places_ in places for b, p in places_.items()), default=0.0)
    total = sum(widths) + COLUMN_GAP * (len(columns) - 1) + 2 * MARGIN
    total = max(total, 760)
    macs = sum(d.macs for d in report.decisions) or 1
    most = max((d.macs for d in report.decisions), default=0) / macs or 1.0
    parts = [*_head(report, total)]
    left = MARGIN
    for column, places_, width in zip(columns, places, widths, strict=True):
        note = _share if column.notes == "macs" else _fate
        parts.append(_text(left + LANE / 2, HEAD - 14, column.heading, size=14, weight=600, anchor="middle"))
        parts.append(f"<g transform='translate({left},{HEAD})'>")
        parts += [_wire(a, b, link, places_) for a, b, link in column.sketch.flow.edges(data="link")]
        parts += [_box(box, places_[box], note, macs, most) for box in column.sketch.boxes]
        parts.append("</g>")
        left += width + COLUMN_GAP
    bottom = HEAD + height + MARGIN
    size = f"width='{total:.0f}' height='{bottom:.0f}' viewBox='0 0 {total:.0f} {bottom:.0f}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>"
    return "\n".join([head, f"<rect width='{total:.0f}' height='{bottom:.0f}' fill='#ffffff'/>", *parts, "</svg>", ""])


def ink_of(decision: Decision | None) -> Ink:
    """The colours of a layer."""
    if decision is None:
        return PLAIN
    return BINARY if decision.binarized else INKS.get(decision.rule, OTHER)


def _head(report: Report, width: float) -> list[str]:
    before = sum(d.weight_bytes for d in report.decisions)
    after = sum(d.packed_bytes if d.binarized else d.weight_bytes for d in report.decisions)
    facts = (
        f"{len(report.binarized)} of {len(report.decisions)} convs binary, {report.binary_mac_share:.1%} of their "
        f"multiply-accumulates; conv weights {before / 1e6:.2f} MB \u2192 {after / 1e6:.2f} MB"
    )
    parts = [_text(MARGIN, 34, report.model, size=20, weight=700), _text(MARGIN, 56, facts, size=12, fill="#4a5261")]
    left = float(MARGIN)
    for ink in dict.fromkeys(ink_of(d) for d in report.decisions):
        parts.append(f"<rect x='{left}' y='68' width='14' height='14' rx='3' fill='{ink.fill}' stroke='{ink.line}'/>")
        parts.append(_text(left + 20, 79.5, ink.legend, size=11, fill="#4a5261"))
        left += 40 + 6.2 * len(ink.legend)
    for color, legend in ((LINK, "Elastic Link"), (SHORTCUT, "shortcut")):
        parts.append(f"<path d='M{left} 82 q12 -14 24 0' fill='none' stroke='{color}' stroke-width='2'/>")
        parts.append(_text(left + 30, 79.5, legend, size=11, fill="#4a5261"))
        left += 50 + 6.2 * len(legend)
    parts.append(f"<line x1='{MARGIN}' x2='{width - MARGIN}' y1='{HEAD - 30}' y2='{HEAD - 30}' stroke='#dfe3e9'/>")
    return parts


def _middle(at: Place) -> float:
    return at.lane * LANE + LANE / 2


def _share(decision: Decision, macs: int) -> str:
    return f"{decision.macs / macs:.1%}"


def _fate(decision: Decision, macs: int) -> str:
    """The link of a binary layer, the rule of another."""
    return _link_text(decision) if decision.binarized else decision.rule


def _box(box: Box, at: Place, note: Callable[[Decision, int], str], macs: int, most: float) -> str:
    x, height = _middle(at), HEIGHT[box.role]
    if box.role == "join":
        circle = f"<circle cx='{x}' cy='{at.top + 10}' r='{10 if len(box.text[0]) == 1 else 13}' "
        return circle + f"fill='#ffffff' stroke='{SHORTCUT}'/>" + _text(x, at.top + 14, box.text[0], anchor="middle")
    if box.role != "layer":
        width = min(WIDTH, 14 + 6.1 * len(box.text[0]))
        label = box.text[0] if len(box.text[0]) <= 30 else box.text[0][:29] + "\u2026"
        rect = f"<rect x='{x - width / 2}' y='{at.top}' width='{width}' height='{height}' rx='9' fill='#f4f5f7'/>"
        return rect + _text(x, at.top + 12.5, label, size=10, anchor="middle", fill="#4a5261")
    return _layer(box, at, note, macs, most)


def _layer(box: Box, at: Place, note: Callable[[Decision, int], str], macs: int, most: float) -> str:
    ink, left = ink_of(box.decision), _middle(at) - WIDTH / 2
    name = _fitting(box.text[0])
    parts = [
        f"<g><title>{escape(_tooltip(box))}</title>",
        f"<rect x='{left}' y='{at.top}' width='{WIDTH}' height='36' rx='5' fill='{ink.fill}' stroke='{ink.line}'/>",
        _text(left + 8, at.top + 14, name, size=11, weight=600),
        _text(left + 8, at.top + 27, box.text[1], size=10, fill="#39414f"),
    ]
    if box.decision is not None:
        what = note(box.decision, macs)
        parts.append(_text(left + WIDTH - 8, at.top + 27, what, size=10, anchor="end", fill=ink.line))
        bar = (WIDTH - 2) * box.decision.macs / macs / most
        parts.append(f"<rect x='{left + 1}' y='{at.top + 32}' width='{bar:.1f}' height='3' fill='{ink.line}'/>")
    return "".join([*parts, "</g>"])


def _fitting(path: str, most: int = 25) -> str:
    """The innermost part of a layer's path that fits into its box."""
    inner = path
    while len(inner) > most and "." in inner:
        inner = inner.partition(".")[2]
    inner = inner if len(inner) <= most else inner[-most:]
    return inner if inner == path else f"\u2026{inner}"


def _link_text(decision: Decision) -> str:
    if decision.link in ("expand", "squeeze"):
        sign = "\u00d7" if decision.link == "expand" else "\u00f7"
        return f"{decision.link} {sign}{decision.link_ratio:.3g}"
    return "" if decision.link == "none" else decision.link


def _tooltip(box: Box) -> str:
    decision = box.decision
    if decision is None:
        return box.key
    fate = f"binary, link {_link_text(decision) or 'none'}" if decision.binarized else f"float: {decision.reason}"
    return f"{box.key}\n{box.text[1]}\n{fate}\n{decision.macs:,} multiply-accumulates"


def _wire(source: Box, target: Box, link: bool, places: Mapping[Box, Place]) -> str:
    a, b = places[source], places[target]
    x1, x2 = _middle(a), _middle(b)
    y1, y2 = a.top + HEIGHT[source.role] / 2, b.top + HEIGHT[target.role] / 2
    if link:
        return _path(_around(source, target, a, b, side=-1), LINK)
    if a.lane == b.lane:
        if _something_between(a, b, source, places):
            return _path(_around(source, target, a, b, side=1), SHORTCUT)
        return _path([(x1, a.bottom(source)), (x2, b.top)], WIRE)
    if x2 > x1:  # a fork: along, then down
        return _path([(x1 + _half_width(source), y1), (x2, y1), (x2, b.top)], WIRE)
    return _path([(x1, a.bottom(source)), (x1, y2), (x2 + _half_width(target), y2)], WIRE)  # a join: down, then along


def _something_between(a: Place, b: Place, source: Box, places: Mapping[Box, Place]) -> bool:
    return any(p.lane == a.lane and a.bottom(source) <= p.top < b.top for p in places.values())


def _around(source: Box, target: Box, a: Place, b: Place, side: int) -> list[tuple[float, float]]:
    """A way beside `target`'s lane: on the left (-1) for links, on the right (1) for shortcuts."""
    y1 = a.top + HEIGHT[source.role] / 2 + (4 if source.role == "join" else 0)
    y2 = b.top + HEIGHT[target.role] / 2 - 4  # so that a way that ends and one that begins here stay apart
    out = _middle(b) + side * (WIDTH / 2 + 12 + min(12.0, (y2 - y1) / 60))
    start = _middle(a) + (1 if out > _middle(a) else -1) * _half_width(source)
    return [(start, y1), (out, y1), (out, y2), (_middle(b) + side * _half_width(target), y2)]


def _path(points: list[tuple[float, float]], color: str) -> str:
    """Straight lines through `points` with round corners."""
    d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        (x0, y0), (x2, y2) = (_towards(corner, other, 10) for other in (before, after))
        d += f" L{x0:.1f} {y0:.1f} Q{corner[0]:.1f} {corner[1]:.1f} {x2:.1f} {y2:.1f}"
    d += f" L{points[-1][0]:.1f} {points[-1][1]:.1f}"
    return f"<path d='{d}' fill='none' stroke='{color}' stroke-width='1.5'/>"


def _towards(start: tuple[float, float], end: tuple[float, float], most: float) -> tuple[float, float]:
    """The point `most` pixels from `start`, but at most half way, in the direction of `end`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = min(0.5, most / max(abs(dx) + abs(dy), 1e-9))
    return start[0] + dx * share, start[1] + dy * share


def _half_width(box: Box) -> float:
    if box.role == "join":
        return 10 if len(box.text[0]) == 1 else 13
    return WIDTH / 2 if box.role == "layer" else min(WIDTH, 14 + 6.1 * len(box.text[0])) / 2


def _text(
    x: float, y: float, text: str, *, size: float = 11, weight: int = 400, anchor: str = "start", fill: str = "#1c222c"
) -> str:
    style = f"font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' fill='{fill}'"
    return f"<text x='{x}' y='{y}' {style}>{escape(text)}</text>"
