"""Every verb of the output object, in every mode at once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest

from binarize.cli.output import Mode, Output
from binarize.cli.progress import BarListener, LineListener
from binarize.errors import UsageError
from binarize.progress import ProgressEvent


def both(mode: Mode, act: Callable[[Output], None]) -> tuple[str, str]:
    """What `act` printed on stdout and on stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    output = Output(mode, "try", stdout, stderr)
    act(output)
    output.close()
    return stdout.getvalue(), stderr.getvalue()


def test_text_and_tables_are_for_people_only() -> None:
    def act(output: Output) -> None:
        output.text("a [bold] line")
        output.table("sizes", ("part", "bytes"), [("weights", 12), ("rest", 3)])

    out, err = both("human", act)
    assert "a [bold] line" in out and "weights" in out and "sizes" in out
    assert err == ""
    assert both("json", act) == ("", "")
    assert both("quiet", act) == ("", "")


def test_numbers_are_aligned_to_the_right() -> None:
    out, _ = both("human", lambda o: o.table("", ("part", "bytes"), [("weights", 12), ("rest", 3)]))
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[1].endswith("12") and lines[2].endswith(" 3")
    assert len(lines[1]) == len(lines[2])


def test_the_result_is_one_document_or_one_value() -> None:
    def act(output: Output) -> None:
        output.warning("mind this")
        output.result({"top1": 0.5, "bad": float("nan"), "shape": (1, 2)}, brief=0.5)

    out, err = both("json", act)
    assert json.loads(out) == {
        "command": "try",
        "top1": 0.5,
        "bad": None,
        "shape": [1, 2],
        "warnings": ["mind this"],
    }
    assert err == ""
    assert both("quiet", act) == ("0.5\n", "warning: mind this\n")
    assert both("human", act) == ("", "warning: mind this\n")


def test_notes_are_for_people_and_go_to_stderr() -> None:
    assert both("human", lambda o: o.note("by the way")) == ("", "by the way\n")
    assert both("json", lambda o: o.note("by the way")) == ("", "")
    assert both("quiet", lambda o: o.note("by the way")) == ("", "")


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_an_error_says_where_what_and_what_next(mode: Mode) -> None:
    error = UsageError("no such key", layer="file.toml", hint="did you mean epochs?")
    assert both(mode, lambda o: o.error(error)) == (
        "",
        "error: file.toml: no such key\nhint: did you mean epochs?\n",
    )


def test_an_error_is_a_document_too() -> None:
    out, err = both("json", lambda o: o.error(UsageError("no such key", hint="look")))
    found = json.loads(out)
    assert (found["error"], found["message"], found["hint"]) == ("UsageError", "no such key", "look")
    assert (found["exit_code"], found["command"], found["warnings"]) == (2, "try", [])
    assert err == ""


def test_progress_goes_to_stderr_as_lines_and_never_when_quiet() -> None:
    def act(output: Output) -> None:
        for done in range(101):
            output.progress(ProgressEvent("sorting", done, 100, {"loss": "0.5"}))

    for mode in ("human", "json"):
        assert both(mode, act) == ("", "sorting 100%  loss 0.5\n")
    assert both("quiet", act) == ("", "")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_at_milestones_and_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    listener = LineListener(Output("human", "try", stderr=stream)._err, clock)
    for second in range(25):
        clock.now = second
        listener(ProgressEvent("training", second, 100, milestone=second == 5))
    lines = stream.getvalue().splitlines()
    assert lines == ["training   5%", "training  15%"]


def test_work_of_unknown_length_never_claims_to_end() -> None:
    stream, clock = io.StringIO(), Clock()
    listener = LineListener(Output("human", "try", stderr=stream)._err, clock)
    for count in range(3):
        listener(ProgressEvent("counting", count, 0))
    assert stream.getvalue() == ""


def test_bars_leave_milestones_above_them_and_vanish() -> None:
    stream = io.StringIO()
    listener = BarListener(Output("human", "try", stderr=stream)._err)
    listener(ProgressEvent("training", 1, 2, {"loss": "1.0"}))
    listener(ProgressEvent("training", 2, 2, {"loss": "0.5"}, milestone=True))
    listener(ProgressEvent("verifying", 0, 0))
    listener.close()
    assert "training 100%  loss 0.5" in stream.getvalue()
    listener.close()
