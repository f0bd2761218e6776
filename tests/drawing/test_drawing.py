"""The picture of a surgery: what is in it, and that nothing lies on something else."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
import torch
import torchvision
from torch import nn

import binarize
from binarize.config import Config
from binarize.drawing import draw_surgery
from binarize.drawing.layout import HEIGHT, Place, place
from binarize.drawing.sketch import Box, Sketch, sketch
from binarize.drawing.svg import LINK
from binarize.nn import Region
from binarize.passes.capture import capture
from tests.models import EveryConv, PreActivation

X = torch.randn(2, 3, 32, 32)


def drawn(model: nn.Module, *settings: str) -> tuple[nn.Module, str]:
    module = binarize.apply(model.eval(), X, config=Config().with_settings(settings))
    return module, draw_surgery(model, module, (X,))


@pytest.mark.parametrize("model", [EveryConv(), PreActivation()])
def test_every_layer_is_in_both_columns_with_its_decision_and_link(model: nn.Module) -> None:
    module, text = drawn(model)
    root = ElementTree.fromstring(text)
    tooltips = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    for decision in module.report.decisions:  # type: ignore[union-attr]
        own = [t for t in tooltips if t.split("\n")[0] == decision.layer]
        assert len(own) == 2, decision.layer
        assert all((decision.reason in t) != decision.binarized for t in own)
    links = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("stroke") == LINK]
    count = sum(d.link != "none" for d in module.report.decisions)  # type: ignore[union-attr]
    assert len(links) == count + 1  # the legend's


def test_names_of_layers_cannot_break_the_document() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).eval()
    module = binarize.apply(model, X)
    module.report.model = "<script>&'\""
    root = ElementTree.fromstring(draw_surgery(model, module, (X,)))
    assert any(text.text == "<script>&'\"" for text in root.iter("{http://www.w3.org/2000/svg}text"))


def sketches(model: nn.Module) -> list[Sketch]:
    original = capture(model.eval(), (X,)).regions
    module = binarize.apply(model, X)
    binary = {path: part for path, part in module.named_modules() if isinstance(part, Region)}
    decisions = {d.layer: d for d in module.report.decisions}
    return [sketch([(path, part.graph) for path, part in parts.items()], decisions) for parts in (original, binary)]


@pytest.mark.parametrize("name", ["own", "googlenet"])
def test_boxes_lie_beside_or_below_each_other_and_equal_layers_in_one_row(name: str) -> None:
    model = EveryConv() if name == "own" else torchvision.models.googlenet(weights=None, init_weights=False)
    made = sketches(model)
    places = place(made)
    for found in places:
        by_lane: dict[int, list[tuple[Place, Box]]] = {}
        for box, at in found.items():
            by_lane.setdefault(at.lane, []).append((at, box))
        for lane in by_lane.values():
            lane.sort(key=lambda pair: pair[0].top)
            for (at, box), (after, _) in itertools.pairwise(lane):
                assert at.bottom(box) <= after.top, (box.key, at)
    rows = [{box.key: at.top for box, at in found.items() if box.role == "layer"} for found in places]
    assert rows[0] == rows[1] and len(rows[0]) > 10


def test_values_flow_down() -> None:
    made = sketches(EveryConv())
    for one, places in zip(made, place(made), strict=True):
        for a, b in one.flow.edges:
            assert places[a].top + HEIGHT[a.role] < places[b].top


def test_runs_of_steps_are_one_box_and_links_are_no_boxes() -> None:
    original, binary = sketches(EveryConv())
    labels = {box.text[0] for box in original.boxes if box.role == "step"}
    assert "BN, ReLU, max pool" in labels
    assert not any(re.search("ElasticLink|getattr|Identity", box.text[0]) for box in binary.boxes)
