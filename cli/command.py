"""What all commands share: output modes, exit codes, and what an error, a bug or Ctrl-C looks like."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from binarize.cli.output import Mode, Output
from binarize.errors import BinarizeError, EnvironmentProblem, UsageError, cannot_write

INTERRUPTED = 130
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_PATHS = {
    errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR
}  # fmt: skip
CONVERT_PACKAGES = frozenset(
    {"torch", "torchvision", "onnx", "onnxscript", "accelerate", "networkx", "safetensors", "pyarrow", "PIL"}
)
CONVERT_HINT = 'pip install "binarize-nn[convert]"'
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, errors included.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result's path or number.")]


class Bug(BinarizeError):
    """Something nobody foresaw (exit code 1)."""


class Interrupted(BinarizeError):
    """Ctrl-C or a request to terminate (exit code 130)."""

    exit_code = INTERRUPTED


def register(app: typer.Typer, name: str, function: Callable[..., None], examples: Sequence[str]) -> None:
    """Add `function(output, ...)` to `app` as the command `name`, with `--json`, `--quiet` and examples."""
    lines = ["[bold]Examples[/]", *("  $ " + example.replace("[", r"\[") for example in examples)]
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)  # the help breaks lines by itself
    app.command(name, help=text, epilog="\n\n".join(lines), no_args_is_help=False)(_command(name, function))


def _command(name: str, function: Callable[..., None]) -> Callable[..., None]:
    """`function` as the command line calls it.

    Its parameter `output` becomes the options that say how to print; a parameter that is a dataclass becomes its
    fields, so that commands can share a group of options.
    """

    @functools.wraps(function)
    def run(*, json: bool, quiet: bool, **arguments: Any) -> None:
        mode: Mode = "json" if json else "quiet" if quiet else "human"
        output = Output(mode, name)
        # In JSON mode stdout belongs to the document: what a user's model or a library prints goes to stderr.
        aside = contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()
        with aside:
            code = run_guarded(output, lambda: function(output=output, **_grouped(groups, arguments)))
        if code:
            raise typer.Exit(code)

    signature = inspect.signature(function, eval_str=True)
    taken = [p for p in signature.parameters.values() if p.name != "output"]
    groups = {p.name: p.annotation for p in taken if dataclasses.is_dataclass(p.annotation)}
    own = [
        option.replace(kind=option.KEYWORD_ONLY)
        for p in taken
        for option in (_options_of(p.annotation) if p.name in groups else [p])
    ]
    modes = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for key, annotation in (("json", JsonOption), ("quiet", QuietOption))
    ]
    run.__signature__ = signature.replace(parameters=[*own, *modes])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *modes]}
    return run


def _options_of(group: type) -> list[inspect.Parameter]:
    """The fields of a group of options as parameters."""
    return list(inspect.signature(group, eval_str=True).parameters.values())


def _grouped(groups: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with those that are fields of a group put together."""
    made = {
        name: group(**{field.name: arguments.pop(field.name) for field in dataclasses.fields(group)})
        for name, group in groups.items()
    }
    return arguments | made


def run_guarded(output: Output, work: Callable[[], None]) -> int:
    """Do `work`; whatever goes wrong is said through `output`. Returns the exit code."""
    try:
        work()
        return 0
    except BinarizeError as error:
        return _fail(output, error)
    except KeyboardInterrupt:
        hint = output.resumes or None
        return _fail(output, Interrupted("interrupted", hint=hint))
    except ModuleNotFoundError as error:
        return _fail(output, missing_package(error))
    except BrokenPipeError:
        raise
    except typer.Exit as error:
        return error.exit_code
    except OSError as error:
        return _fail(output, _of_the_system(error))
    except Exception as error:
        return _fail(output, _no_memory(error) or _bug(error))
    finally:
        output.close()


def missing_package(error: ModuleNotFoundError) -> BinarizeError:
    """Which extra brings the package that `error` misses."""
    package = (error.name or "").partition(".")[0]
    if package in CONVERT_PACKAGES:
        return EnvironmentProblem(f"this command needs the package {package!r}", hint=CONVERT_HINT)
    if package == "binarize":
        return _bug(error)
    return EnvironmentProblem(f"the package {package!r} is not installed", hint=f"pip install {package}")


def _of_the_system(error: OSError) -> BinarizeError:
    """What a disk, or a path that the user gave, is to blame for."""
    if error.errno in _WRITING:
        return cannot_write(error)
    if error.errno in _PATHS and error.filename is not None:
        return UsageError(f"the path cannot be used: {error.strerror}", layer=os.fsdecode(error.filename))
    return _bug(error)


def _no_memory(error: Exception) -> BinarizeError | None:
    """Whether the machine, or its GPU, has too little memory; torch says so in words alone."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        hint = "a smaller --input-size or training.batch_size needs less"
        return EnvironmentProblem("there is not enough memory for this", hint=hint)
    return None


def _bug(error: Exception) -> BinarizeError:
    if os.environ.get("BINARIZE_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
        hint = "please report it with the traceback above and the command"
    else:
        hint = "please report it with the command; BINARIZE_DEBUG=1 shows the traceback"
    first = (str(error).strip().splitlines() or ["no message"])[0][:300]
    return Bug(f"this is a bug in binarize: {type(error).__name__}: {first}", hint=hint)


def _fail(output: Output, error: BinarizeError) -> int:
    output.error(error)
    return error.exit_code
