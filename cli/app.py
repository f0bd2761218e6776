"""`binarize`: assembles the commands and owns the process's exit code."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import BinarizeError, EnvironmentProblem, UsageError, cannot_write

if TYPE_CHECKING:
    import typer

TERMINAL_PACKAGES = frozenset({"typer", "rich"})
BROKEN_PIPE, INTERRUPTED = 141, 130
HELP = (
    "Turn a pretrained PyTorch CNN into a binary network with Elastic-Link shortcuts, and run it in ONNX "
    "Runtime. Exit codes: 0 ok, 1 a bug of binarize, 2 usage, 3 unsupported model, 4 verification failed, "
    "5 environment, 6 training diverged, 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, by default the process's own; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _mend_streams()
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # before a command had begun, or as it ended
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TERMINAL_PACKAGES:
            raise
        hint = 'pip install "binarize-nn[convert]"'
        return _fail(EnvironmentProblem(f"the command line needs the package {error.name!r}", hint=hint), arguments)
    with _terminate_like_interrupt():
        return _run(app, arguments)


def _mend_streams() -> None:
    """Streams that take every character, and do so where the caller has closed them, as daemons do.

    Where the locale has no UTF-8 the bytes of a file's name come out as they came in, so that a command can be copied.
    """
    codecs.register_error("binarize", _as_it_came)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (for the life of the process)
        elif hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="binarize")


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    """A byte that Python could not decode as that byte, any other character as a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    error.end = error.start + 1
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("replace")(error)


def build_app() -> typer.Typer:
    """The typer application with every command. Imports neither torch nor onnx."""
    import typer

    from binarize.cli.bench import BENCH_EXAMPLES, bench
    from binarize.cli.command import register
    from binarize.cli.convert import CONVERT_EXAMPLES, convert
    from binarize.cli.doctor import DOCTOR_EXAMPLES, doctor
    from binarize.cli.evaluate import EVAL_EXAMPLES, evaluate
    from binarize.cli.export import EXPORT_EXAMPLES, export
    from binarize.cli.finetune import FINETUNE_EXAMPLES, finetune
    from binarize.cli.inspect import INSPECT_EXAMPLES, inspect
    from binarize.cli.recipes import RECIPES_EXAMPLES, recipes
    from binarize.cli.version import version_option
    from binarize.cli.zoo import ZOO_EXAMPLES, zoo

    app = typer.Typer(
        name="binarize",
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(version_option)
    register(app, "convert", convert, CONVERT_EXAMPLES)
    register(app, "inspect", inspect, INSPECT_EXAMPLES)
    register(app, "finetune", finetune, FINETUNE_EXAMPLES)
    register(app, "export", export, EXPORT_EXAMPLES)
    register(app, "eval", evaluate, EVAL_EXAMPLES)
    register(app, "bench", bench, BENCH_EXAMPLES)
    register(app, "zoo", zoo, ZOO_EXAMPLES)
    register(app, "recipes", recipes, RECIPES_EXAMPLES)
    register(app, "doctor", doctor, DOCTOR_EXAMPLES)
    return app


def _run(app: typer.Typer, arguments: list[str]) -> int:
    try:
        result = app(args=arguments, prog_name="binarize", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # the reader went away, as in `binarize inspect ... | head`
        _discard_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _discard_stdout()
        return _fail(cannot_write(error), [])  # on stderr, whatever was asked for
    except Exception as error:
        if type(error).__name__ == "Abort":  # what typer makes of Ctrl-C
            raise KeyboardInterrupt from error
        return UsageError.exit_code if _help_was_shown(error, arguments) else _fail(_usage(error), arguments)


def _discard_stdout() -> None:
    """Let go nowhere what is still to be printed, as Python's own flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: Exception) -> BinarizeError:
    """Typer's complaint about the command line as ours; anything else goes on its way."""
    if not hasattr(error, "format_message"):
        raise error
    context: Any = getattr(error, "ctx", None)
    hint = f"see `{context.command_path} --help`" if context is not None else "see `binarize --help`"
    return UsageError(error.format_message().strip() or "no command given", hint=hint)


def _help_was_shown(error: Exception, arguments: Sequence[str]) -> bool:
    """Whether typer printed its help instead of a message, as for `binarize` alone."""
    return not arguments and hasattr(error, "format_message") and not error.format_message().strip()


def _fail(error: BinarizeError, arguments: Sequence[str]) -> int:
    """Say what went wrong before any command could; needs no package."""
    if "--json" in arguments:
        command = next((word for word in arguments if not word.startswith("-")), None)
        print(json.dumps({"command": command, **error.to_dict(), "warnings": []}, indent=1))
    else:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """A polite kill (SIGTERM) leaves the same resumable state as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
