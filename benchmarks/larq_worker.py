"""A contender in Larq Compute Engine: `python -m benchmarks.larq_worker MODEL`, driven by `binarize.bench.race`.

MODEL is `bireal18`, or `layer:KERNEL:CHANNELS:OUT:SIZE:STRIDE:LINKS` as for OpenVINO, with one link; `versions` prints
those of this environment instead. The engine's fast kernels are for ARM; on x86 its own documentation calls what runs
"reference kernels".
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from functools import partial
from platform import python_version
from typing import Any

import numpy as np

from binarize.bench.serve import Call, serve


def converted_call(model: str, threads: int) -> Call:
    """A run of `model` (batch 1), converted to TensorFlow Lite with Larq's operators."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import larq_compute_engine as lce

    network = bireal18() if model == "bireal18" else layer(*map(int, model.split(":")[1:6]))
    flat = lce.convert_keras_model(network)
    interpreter = lce.testing.Interpreter(flat, num_threads=threads, use_reference_bconv=False, use_indirect_bgemm=True)
    shape = (1, *network.input_shape[1:])
    return partial(interpreter.predict, np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def versions() -> dict[str, str]:
    """Of what shapes a result here; an ImportError where the engine does not run."""
    importlib.import_module("larq_compute_engine")
    found = {name: importlib.metadata.version(name) for name in ("larq-compute-engine", "larq")}
    return {**found, "tensorflow": importlib.import_module("tensorflow").__version__, "Larq's Python": python_version()}


def _binary_conv(x: Any, channels: int, kernel: int, stride: int = 1) -> Any:
    import larq
    import tensorflow as tf

    y = larq.layers.QuantConv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        pad_values=1.0,
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        kernel_constraint="weight_clip",
        use_bias=False,
    )(x)
    return tf.keras.layers.BatchNormalization()(y)


def layer(kernel: int, channels: int, out_channels: int, size: int, stride: int) -> Any:
    """One binary conv with its batch norm, floats in and out, NHWC."""
    import tensorflow as tf

    x = tf.keras.Input((size, size, channels))
    return tf.keras.Model(x, _binary_conv(x, out_channels, kernel, stride))


def bireal18() -> Any:
    """Bi-Real Net 18, as in `benchmarks.openvino_nets` but padded with ones, which is what Larq is fast with."""
    import tensorflow as tf

    keras = tf.keras.layers
    image = tf.keras.Input((224, 224, 3))
    x = keras.Conv2D(64, 7, 2, padding="same", use_bias=False)(image)
    x = keras.ReLU()(keras.BatchNormalization()(x))
    x = keras.MaxPool2D(3, 2, padding="same")(x)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for conv in range(4):
            stride = 2 if stage > 0 and conv == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = keras.Conv2D(channels, 1, use_bias=False)(keras.AvgPool2D(2, 2)(x))
                shortcut = keras.BatchNormalization()(shortcut)
            x = keras.Add()([_binary_conv(x, channels, 3, stride), shortcut])
    return tf.keras.Model(image, keras.Dense(1000)(keras.GlobalAvgPool2D()(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.model == "versions":
        print(json.dumps(versions()))
        return
    serve(lambda: converted_call(arguments.model, arguments.threads))


if __name__ == "__main__":
    main()
