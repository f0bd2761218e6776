"""The process of one contender: opens its model, then runs it when told to (`python -m binarize.bench.serve`).

A process of its own makes a crash a finding instead of the end, and its peak memory its own. The protocol is a JSON
object per line on standard output: first `{"base_rss": bytes, "images": n}`, then for each line `turn` on standard
input `{"nanoseconds": n}`, at last `{"peak_rss": bytes}`. `benchmarks` serves other engines through the same function.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from binarize.errors import BinarizeError, UnsupportedModelError

Call = Callable[[], object]


def serve(prepare: Callable[[], Call]) -> None:
    """Answer the requests on standard input with runs of the call that `prepare` returns.

    An attribute `images` of the call says on how many it runs, 1 without.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an engine prints must not come between the answers

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    base = peak_rss()
    try:
        call = prepare()
        call()
        answer(base_rss=base, images=getattr(call, "images", 1))
        for request in sys.stdin:
            if request.strip() != "turn":
                break
            answer(nanoseconds=one_turn(call))
        answer(peak_rss=peak_rss())
    except BinarizeError as error:
        answer(**error.to_dict())
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        answer(**UnsupportedModelError(f"{type(error).__name__}: {first}").to_dict())


def one_turn(call: Call) -> int:
    """Nanoseconds of the second of two runs: the first brings back the caches that the other contenders took."""
    call()
    started = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - started


def peak_rss() -> int:
    """The largest resident memory of this process so far, in bytes; 0 where the system does not tell.

    Linux's own `VmHWM` and not `ru_maxrss`, which a process inherits from the one that started it.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


class _OnnxCall:
    """A run of an ONNX file on `batch` random images, or as many as it takes at a time."""

    def __init__(self, path: Path, threads: int, batch: int | None) -> None:
        from binarize.bench.sessions import batch_of, open_session, random_feeds

        session = open_session(path, threads)
        self.images = batch_of(session, batch)
        self._run = partial(session.run, None, random_feeds(session, self.images))

    def __call__(self) -> object:
        return self._run()


def main() -> None:
    """Serve one ONNX file in ONNX Runtime with our op library."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    import onnxruntime  # noqa: F401  (counted as base memory, not as the model's)

    serve(lambda: _OnnxCall(arguments.file, arguments.threads, arguments.batch))


if __name__ == "__main__":
    main()
