"""The main job on a small real example: `make demo`, or `python examples/demo.py` from the repository's root.

Trains a float CNN on scikit-learn's handwritten digits (once; later runs load it), converts it as
`binarize convert --data` does, runs the ONNX file in ONNX Runtime, and prints what came of it in one table.
"""

from __future__ import annotations

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from binarize.api import Conversion, convert, resolve_config  # noqa: E402
from binarize.bench import Benchmark, benchmark  # noqa: E402
from binarize.bench.accuracy import onnx_accuracy  # noqa: E402
from binarize.bench.float_onnx import float_onnx  # noqa: E402
from binarize.bench.sessions import open_session  # noqa: E402
from binarize.cli.output import Output  # noqa: E402
from binarize.cli.render import human_bytes  # noqa: E402
from binarize.config import Config  # noqa: E402
from binarize.files import atomic_output  # noqa: E402
from binarize.loading import load_model  # noqa: E402
from binarize.training import adapt_float  # noqa: E402
from binarize.training.data import ImageDataset, make_loader  # noqa: E402
from examples.digits_cnn import digits_cnn, load_digits_split  # noqa: E402

ARCH = "examples.digits_cnn:digits_cnn"
SIZE = (1, 8, 8)
SETTINGS = (
    # Digits must not be mirrored; the pictures are small, so a few more passes cost seconds.
    "training.augment=crop",
    "training.mean=0.5",
    "training.std=0.5",
    "training.batch_size=32",
    "training.epochs=30",
    "training.float_learning_rate=0.05",
)
FLOAT_EPOCHS = 20.0


@dataclass(frozen=True)
class Demo:
    """What the demo measured; accuracies 0 to 1."""

    float_top1: float
    binary_top1: float
    conversion: Conversion
    speed: Benchmark
    images: int
    seconds: float


def run_demo(folder: Path, output: Output, settings: tuple[str, ...] = (), float_epochs: float = FLOAT_EPOCHS) -> Demo:
    """Do everything inside `folder`; `settings` go on top of `SETTINGS`."""
    started = time.monotonic()
    data, checkpoint = folder / "data", folder / "digits_cnn.pt"
    data.mkdir(parents=True, exist_ok=True)
    train_set, test_set = load_digits_split()
    write_parquet(data / "train.parquet", train_set)
    write_parquet(data / "test.parquet", test_set)
    config = resolve_config(settings=(*SETTINGS, *settings))
    if not checkpoint.exists():
        float_config = config.with_settings([f"training.float_epochs={float_epochs}"])
        train_float(checkpoint, train_set, test_set, float_config, output)
    conversion = convert(
        checkpoint,
        folder / "digits_el.onnx",
        arch=ARCH,
        config=config,
        data=data,
        val_data=data,
        restart=True,
        progress=output.progress,
    )
    float_file = folder / "digits_float.onnx"
    float_onnx(load_model(checkpoint, ARCH).module, float_file, (torch.zeros(2, *SIZE),))
    files = {"binary": conversion.path, "float": float_file}
    return Demo(
        float_top1=top1(float_file, test_set, config),
        binary_top1=top1(conversion.path, test_set, config),
        conversion=conversion,
        speed=benchmark(files, threads=1, runs=500, progress=output.progress),
        images=len(test_set),
        seconds=time.monotonic() - started,
    )


def write_parquet(path: Path, dataset: ImageDataset) -> None:
    """The images as PNG with their labels, as `binarize convert --data` takes them."""
    images = []
    for index in range(len(dataset)):
        buffer = io.BytesIO()
        Image.fromarray(dataset.image(index)[0].numpy()).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue()})
    table = pa.table({"image": images, "label": dataset.labels.tolist()})
    with atomic_output(path) as temporary:
        pq.write_table(table, temporary)


def train_float(path: Path, train_set: ImageDataset, test_set: ImageDataset, config: Config, output: Output) -> None:
    """Train the float network from scratch and save its weights."""
    torch.manual_seed(config.seed)
    model = digits_cnn()
    adapt_float(model, train_set, config, input_size=SIZE, val_set=test_set, progress=output.progress)
    with atomic_output(path) as temporary:
        torch.save({"state_dict": model.state_dict()}, temporary)


def top1(path: Path, dataset: ImageDataset, config: Config) -> float:
    """Accuracy of an ONNX file in ONNX Runtime, 0 to 1."""
    training = config.training
    batches = make_loader(
        dataset,
        input_size=SIZE,
        batch_size=64,
        train=False,
        seed=0,
        epoch=0,
        mean=training.mean,
        std=training.std,
    )
    return onnx_accuracy(open_session(path, threads=1), batches, dataset).top1


def show(output: Output, demo: Demo) -> None:
    """The demo's table, and which convs stayed float."""
    binary, float_ = demo.speed.contenders
    report, folder = demo.conversion.report, shown_path(demo.conversion.path.parent)
    counts = f"{len(report.binarized)} binary, {len(report.kept)} float"
    rows = [
        (f"top-1 on {demo.images} test digits", f"{demo.float_top1:.2%}", f"{demo.binary_top1:.2%}"),
        ("ONNX file", human_bytes(float_.size), human_bytes(binary.size)),
        (
            "latency, batch 1, 1 thread (median)",
            f"{float_.latency.median:.3f} ms",
            f"{binary.latency.median:.3f} ms",
        ),
        ("convolutions", f"{len(report.decisions)} float", counts),
    ]
    output.table("digits_cnn on scikit-learn's digits", ("", "float", "binary"), rows)
    for decision in report.kept:
        output.text(f"kept float: {decision.layer} ({decision.reason})")
    for sentence in demo.speed.verdicts():
        output.text(sentence + " (8x8 pixels: a run is mostly overhead)")
    machine = demo.speed.machine
    output.text(f"on {machine['cpu']}, kernels {machine['isa']}, onnxruntime {machine['onnxruntime']}")
    output.text(f"{demo.seconds:.0f} s in all; files in {folder}")
    output.text(
        f"\nthe conversion alone, by hand:\n  binarize convert {folder}/digits_cnn.pt --arch {ARCH} "
        f"--data {folder}/data --config {folder}/digits_el.run/config.toml --restart "
        f"--out {folder}/digits_el.onnx"
    )


def shown_path(path: Path) -> Path:
    """Relative to where the user is, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> None:
    """Run the demo in `build/demo` and print its table."""
    output = Output("human", "demo")
    demo = run_demo(ROOT / "build" / "demo", output)
    show(output, demo)


if __name__ == "__main__":
    main()
