"""What lies in a folder of parts: `manifest.json`, one ONNX file per part, and the float rest's weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binarize.errors import UnsupportedModelError, UsageError
from binarize.example_inputs import Form

FORMAT = "binarize-parts"
MANIFEST, REST = "manifest.json", "rest.pt"


@dataclass(frozen=True)
class PartFile:
    """An ONNX file that stands for a part, called in one form.

    Attributes:
        path: of the part's module in the model.
        file: name in the folder. Its inputs and outputs are the tensors of the two forms, in order.
        takes: form of the pair of positional and keyword arguments.
        gives: form of the result.
    """

    path: str
    file: str
    takes: Form
    gives: Form

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "file": self.file, "takes": self.takes.to_dict(), "gives": self.gives.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PartFile:
        takes, gives = (Form.from_dict(data[name]) for name in ("takes", "gives"))
        return cls(data["path"], data["file"], takes, gives)


@dataclass(frozen=True)
class Manifest:
    """The folder's contents.

    Attributes:
        model: class name of the model.
        arch, num_classes: what builds its float form, if that has a name.
        parts: the ONNX files.
        report: see `Report`, as plain data.
    """

    model: str
    arch: str | None
    num_classes: int | None
    parts: tuple[PartFile, ...]
    report: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "version": 1,
                "model": self.model,
                "arch": self.arch,
                "num_classes": self.num_classes,
                "rest": REST,
                "parts": [part.to_dict() for part in self.parts],
                "report": self.report,
            },
            indent=1,
        )


def foreign_content(folder: Path) -> str | None:
    """The name of something in `folder` that `write_parts` has not written there; None where it may be replaced."""
    try:
        ours = {MANIFEST, REST, *(part.file for part in read_manifest(folder).parts)}
    except (UsageError, UnsupportedModelError):  # other programs call a file of theirs manifest.json, too
        ours = set()
    return next((name for name in sorted(entry.name for entry in folder.iterdir()) if name not in ours), None)


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of `folder`.

    Raises:
        UsageError: there is none.
        UnsupportedModelError: it is damaged, or names code or files outside of the folder.
    """
    path = Path(folder) / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or data["version"] != 1:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        parts = tuple(PartFile.from_dict(part) for part in data["parts"])
        if any(Path(part.file).name != part.file for part in parts):
            raise ValueError("a part's file lies elsewhere")
        for key, kind in (("arch", str), ("num_classes", int)):
            if not isinstance(data[key], kind | None):
                raise ValueError(f"{key!r} is {data[key]!r}")
        return Manifest(data["model"], data["arch"], data["num_classes"], parts, data["report"])
    except UnsupportedModelError as error:  # of a form
        error.layer = str(path)
        raise
    except OSError as error:
        raise UsageError(
            "it is no folder of parts", layer=str(folder), hint="give the folder that binarize.export has written"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(f"the manifest cannot be used: {error}", layer=str(path)) from error
