"""Write architecture_index.json from the installed torchvision and timm: `python -m binarize.loading.build_index`.

Takes about four minutes, for timm builds all of its models; without memory, so it needs little of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from torch.nn.modules.conv import _ConvNd

from binarize.files import write_text
from binarize.loading.architecture import resolve, timm_names, torchvision_names
from binarize.loading.recognise import INDEX_PATH, Sketch, fingerprint

# Pure transformers and mixers have a convolution or four, to cut the image into patches.
MIN_CONVS = 10


def build_index() -> dict[str, dict[str, str]]:
    """A sketch of every non-quantized torchvision model and of timm's CNNs, by library and name."""
    return {
        "torchvision": dict(_sketches("torchvision", torchvision_names(), min_convs=0)),
        "timm": dict(_sketches("timm", timm_names(), MIN_CONVS)),
    }


def write_index(path: Path = INDEX_PATH) -> None:
    """Write the index as one line per model, so that a new version of a library gives a readable diff."""
    write_text(path, json.dumps(build_index(), indent=1) + "\n")


def _sketches(library: str, names: Iterable[str], min_convs: int) -> Iterable[tuple[str, str]]:
    for name in names:
        outline = resolve(f"{library}:{name}").outline()
        if _convs(outline) >= min_convs:
            yield name, Sketch.of(fingerprint(outline.state_dict())).packed()


def _convs(module: nn.Module) -> int:
    return sum(isinstance(layer, _ConvNd) for layer in module.modules())


if __name__ == "__main__":
    write_index()
