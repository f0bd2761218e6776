"""A pytest plugin that asks LeakSanitizer at the end of a run; test_sanitizers.py reads its report.

What imports allocate is not counted: torch alone leaves tens of thousands of allocations that nothing points to, and
the sanitizer stops at 5000 and takes minutes for them. The interpreter still lives when it is asked: its objects are no
leaks.
"""

from __future__ import annotations

import ctypes
import gc
import importlib

_SANITIZER = ctypes.CDLL(None)
_SANITIZER.__lsan_disable()
for _name in ("torch", "onnxruntime", "hypothesis", "binarize.exporting"):
    importlib.import_module(_name)
_SANITIZER.__lsan_enable()


def pytest_unconfigure() -> None:
    gc.collect()
    _SANITIZER.__lsan_do_recoverable_leak_check()
    print("leaks were looked for")
