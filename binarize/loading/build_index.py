"""Write torchvision_index.json from the installed torchvision: `python -m binarize.loading.build_index`."""

from __future__ import annotations

import base64
import json
from array import array
from pathlib import Path

from binarize.loading.architecture import resolve, torchvision_names
from binarize.loading.recognise import INDEX_PATH, fingerprint


def build_index() -> dict[str, object]:
    """Hash the tensors of every non-quantized torchvision model."""
    import torchvision

    models = {name: _packed(name) for name in torchvision_names()}
    return {"torchvision": torchvision.__version__.partition("+")[0], "models": models}


def write_index(path: Path = INDEX_PATH) -> None:
    """Write the index as one line per model, so that a new torchvision version gives a readable diff."""
    path.write_text(json.dumps(build_index(), indent=1) + "\n", encoding="utf-8")


def _packed(name: str) -> str:
    hashes = sorted(fingerprint(resolve(f"torchvision:{name}").outline().state_dict()))
    return base64.b64encode(array("I", hashes).tobytes()).decode()


if __name__ == "__main__":
    write_index()
