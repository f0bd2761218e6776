"""Models that no single ONNX file can hold: their binary parts as files, run inside the float rest in PyTorch."""

from binarize.assembly.assemble import SessionPart, assemble
from binarize.assembly.folder import MANIFEST, is_parts_folder
from binarize.assembly.write import write_parts

__all__ = ["MANIFEST", "SessionPart", "assemble", "is_parts_folder", "write_parts"]
