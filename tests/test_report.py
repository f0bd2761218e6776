"""The record of a conversion: plain data and a few lines for people."""

from __future__ import annotations

import json
from typing import Any

from binarize.config import Config
from binarize.report import Decision, Report


def decision(layer: str, **changes: Any) -> Decision:
    facts: dict[str, Any] = {
        "action": "binarize",
        "rule": "eligible",
        "reason": "eligible",
        "kind": "3x3",
        "in_channels": 16,
        "out_channels": 16,
        "kernel": (3, 3),
        "stride": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "output_size": (8, 8),
        "macs": 1000,
        "weight_bytes": 9216,
        "link": "identity",
        "residual": "replaced",
    }
    return Decision(layer=layer, **{**facts, **changes})


def kept(layer: str, rule: str, reason: str, macs: int) -> Decision:
    return decision(layer, action="keep", rule=rule, reason=reason, macs=macs, link="none", residual="none")


def report() -> Report:
    decisions = [
        kept("stem", "stem", "first conv on the image", 500),
        decision("conv1"),
        decision("conv2", link="squeeze", output_size=()),
        *(kept(f"gate{k}", "gate", "gate", 125) for k in range(4)),
        decision("conv3"),
    ]
    return Report("Net", Config().to_dict(), decisions, ["plan: 0"], {"val_top1": 0.5})


def test_what_was_binarized_and_what_not() -> None:
    assert [d.layer for d in report().binarized] == ["conv1", "conv2", "conv3"]
    assert [d.layer for d in report().kept] == ["stem", "gate0", "gate1", "gate2", "gate3"]
    assert report().binary_mac_share == 3000 / 4000


def test_json_is_the_whole_record() -> None:
    found = json.loads(report().to_json())
    assert list(found) == [
        "model",
        "config",
        "convs",
        "binarized",
        "binary_mac_share",
        "float_linear_macs",
        "decisions",
        "passes",
        "untraced",
        "results",
    ]
    assert (found["model"], found["convs"], found["binarized"]) == ("Net", 8, 3)
    assert found["binary_mac_share"] == 0.75
    assert found["results"] == {"val_top1": 0.5}
    assert Config().updated(found["config"]) == Config()
    listed = [tuple(d[key] for key in ("layer", "kernel", "link")) for d in found["decisions"][:2]]
    assert listed == [("stem", [3, 3], "none"), ("conv1", [3, 3], "identity")]


def test_a_decision_can_be_made_again_from_its_data() -> None:
    first = decision("conv1")
    data = json.loads(json.dumps(first.to_dict()))
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    assert Decision(**tuples) == first


def test_a_decision_in_one_line() -> None:
    assert decision("a.b", stride=(2, 1)).line == "a.b: binary 3x3 16->16 s2x1, identity, replaced"
    assert kept("stem", "stem", "first conv on the image", 1).line == "stem: stem 3x3 16->16 s1"


def test_summary_says_how_many_and_why_not() -> None:
    assert report().summary().splitlines() == [
        "Net: 3 of 8 convs binarized (75.0% of their multiply-accumulates)",
        "links: 2 identity, 1 squeeze",
        "kept float: 1 (first conv on the image): stem",
        "kept float: 4 (gate): gate0, gate1, gate2, ...",
    ]


def test_a_net_with_nothing_to_binarize() -> None:
    only_stem = Report("Net", {}, [kept("stem", "stem", "first conv on the image", 0)])
    assert only_stem.binary_mac_share == 0
    assert only_stem.summary().splitlines() == [
        "Net: 0 of 1 convs binarized (0.0% of their multiply-accumulates)",
        "NOTHING IS BINARY; these are the reasons:",
        "kept float: 1 (first conv on the image): stem",
    ]
