"""Models that no single ONNX file can hold: their binary parts as files, run inside the float rest in PyTorch."""

from binarize.assembly.assemble import SessionPart, assemble
from binarize.assembly.folder import foreign_content
from binarize.assembly.write import write_parts

__all__ = ["SessionPart", "assemble", "foreign_content", "write_parts"]
