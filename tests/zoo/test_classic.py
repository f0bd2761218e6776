"""Ten CNNs in ten coding styles go the whole way, and not a line of theirs is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from binarize.zoo import Entry, send

# A thin or shallow variant of each, for speed; the file holds the usual ones.
SMALL = {
    "densenet": "densenet_cifar(layers=(2, 2, 2))",
    "dla": "dla34_cifar(width=4)",
    "dpn": "dpn26(shrink=8)",
    "efficientnet": "efficientnet_b0_cifar(repeats=(1, 1, 1, 1, 1, 1, 1))",
    "preact_resnet": "preact_resnet18(width=16)",
    "regnet": "RegNet(RegNetSettings((1, 1, 2), (24, 48, 96), 8, se_ratio=0.25, strides=(1, 2, 2)))",
    "resnet": "resnet18(width=16)",
    "senet": "senet18(width=16)",
    "shufflenet": "shufflenet_g3(repeats=(1, 2, 1))",
    "vgg": "vgg11(shrink=8)",
}
GATED = {"efficientnet", "regnet"}
UNUSED = {"efficientnet": 1}
"""Convs that are never called: its first block makes an expanding conv and does not use it."""


@pytest.mark.slow
@pytest.mark.parametrize("file", SMALL)
def test_a_classic_goes_the_whole_way(file: str, tmp_path: Path) -> None:
    factory = tmp_path / "small.py"
    factory.write_text(f"from examples.classic.{file} import *\nfrom examples.classic import {file} as module\n"
                       f"globals().update(vars(module))\ndef net():\n    return {SMALL[file]}\n")  # fmt: skip
    outcome = send(Entry(f"{factory}:net", file, file), "run", tmp_path)
    assert outcome.verdict == "equal"
    assert outcome.worst is not None and outcome.worst <= 1
    kept = {"stem": 1, **({"gate": outcome.kept["gate"]} if file in GATED else {})}
    assert outcome.kept == (kept | {"unused": UNUSED[file]} if file in UNUSED else kept)
    assert outcome.mac_share > 0.85
    assert outcome.file_bytes < outcome.float_bytes
