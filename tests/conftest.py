"""Options and data shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # a second thread gains nothing on small nets and costs much on a busy machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen-goldens", action="store_true", help="rewrite tests/goldens from what the code does now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first on every process, so that all end together: each gets an equal run of the list, then steals."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    ends = [len(items) * (i + 1) // processes for i in range(processes)]
    ordered: list[pytest.Item] = []
    for i, end in enumerate(ends):
        ordered += slow[i::processes]
        room = max(end - len(ordered), 0)
        ordered += quick[:room]
        del quick[:room]
    items[:] = ordered + quick


WHOLE_MODEL = "test_exported_models_run_on_neon_as_on_scalar"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Whether aarch64 ran whole models: that takes an emulator that few machines have, and a skip is easily missed."""
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if WHOLE_MODEL in report.nodeid:
                reason = f": {report.longrepr[-1].removeprefix('Skipped: ')}" if outcome == "skipped" else ""
                terminalreporter.write_line(f"aarch64, whole models: {outcome}{reason}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and models, where there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder with real data and models here")
    return folder
