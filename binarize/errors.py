"""Errors that a user may see. Each names what went wrong, where, and the next step."""

from __future__ import annotations


class BinarizeError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: what happened and why, one or two sentences.
        layer: the module path, file or node it concerns, if there is one.
        hint: the next thing to type or try.
    """

    exit_code = 1

    def __init__(self, message: str, *, layer: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.layer = layer
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.layer}: " if self.layer else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"

    def to_dict(self) -> dict[str, str | int | None]:
        """The error as plain data, for `--json`."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "layer": self.layer,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(BinarizeError):
    """An option, configuration, path or data set that cannot be used as given (exit code 2)."""

    exit_code = 2


class UnsupportedModelError(BinarizeError):
    """A model or model file that cannot be read, captured, converted or exported (exit code 3)."""

    exit_code = 3


class VerificationError(BinarizeError):
    """The exported model does not compute what the trained model computes (exit code 4)."""

    exit_code = 4


class EnvironmentProblem(BinarizeError):
    """The machine lacks something: a library, a version, space, a permission (exit code 5)."""

    exit_code = 5


def cannot_write(error: OSError, layer: str | None = None) -> EnvironmentProblem:
    """What a full disk or a missing permission means, for a file or what the standard output goes to."""
    where = "the file" if layer or error.filename else "the output"
    return EnvironmentProblem(
        f"cannot write {where}: {error.strerror or error}",
        layer=layer or error.filename,
        hint="check free space and permissions",
    )
