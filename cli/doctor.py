"""`binarize doctor`: can this machine run binary models, and convert?"""

from __future__ import annotations

import typer

from binarize.cli.output import Output

DOCTOR_EXAMPLES = ("binarize doctor", "binarize doctor --json", "BINARIZE_ISA=avx2 binarize doctor")


def doctor(output: Output) -> None:
    """Check ONNX Runtime, the op library, the CPU and optional packages; exit 5 if models cannot run."""
    from binarize.runtime.doctor import diagnose

    diagnosis = diagnose()
    output.table("", ("", "check", "found"), [(c.status, c.name, c.found) for c in diagnosis.checks])
    for check in diagnosis.checks:
        if check.hint and check.status != "ok":
            output.text(f"{check.name}: {check.hint}")
    output.text(diagnosis.verdict, style="bold")
    output.result(diagnosis.to_dict(), brief=diagnosis.status)
    if diagnosis.status == "fail":
        raise typer.Exit(5)
