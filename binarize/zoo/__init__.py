"""Send a zoo of models through the whole pipeline, small and untrained, and tell how far each comes."""

from binarize.zoo.entries import Entry, entries
from binarize.zoo.runner import Settings, run_zoo
from binarize.zoo.stations import STATIONS, Outcome, build_small, send
from binarize.zoo.table import Table

__all__ = ["STATIONS", "Entry", "Outcome", "Settings", "Table", "build_small", "entries", "run_zoo", "send"]
