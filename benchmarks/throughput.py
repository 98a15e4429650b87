"""Images a second in training: the course's eager loop, Keras's compile and fit, and Main.py's loop, in turn.

    python benchmarks/throughput.py --database path/to/data_16k.bin

nn4 and DenseNet (4 blocks of 2 convolutions, 16 filters), batch 128, Adam, no augmentation. Each round runs every
contestant once, after one round that is not counted. Prints the median rates, the median of the ratios to Keras's fit
within a round, and what share that is of the matrix-product rate that this machine reaches in the same run.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
import re
import statistics
import tempfile
import time
from typing import Annotated

import tensorflow as tf

import Dataset
import Models
import Training

BATCH = 128
keras = tf.keras


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="data_*.bin to learn from", required=True)] = ""
    rounds: Annotated[int, dict(help="counted rounds", low=1)] = 5
    steps: Annotated[int, dict(help="steps of each contestant a round", low=10)] = 30


def keras_nn4():
    layers = [keras.layers.Input([48, 48, 1])]
    for filters in 64, 32, 16:
        layers += [keras.layers.Conv2D(filters, 3, padding="same", activation="relu"), keras.layers.MaxPool2D(2)]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(2)])


def keras_densenet():
    x = entry = keras.layers.Input([48, 48, 1])
    for _ in range(4):
        for _ in range(2):
            y = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
            x = keras.layers.Concatenate()([x, y])
        x = keras.layers.Conv2D(32, 1, activation="relu")(keras.layers.MaxPool2D(2)(x))
    x = keras.layers.Dense(50)(keras.layers.Flatten()(x))
    return keras.Model(entry, keras.layers.Dense(2)(x))


def multiplications(net):
    """Multiply-adds of one face forward: each convolution's weights times the pixels it makes, fc's weights once."""
    total = 0
    for path, weights in net.variables_by_path().items():
        pixels = 1
        if convolution := re.search(r"cv(\d+)/w|list/(\d+)/(block|cv)/", path):
            small, block, part = convolution.groups()
            halvings = int(small) - 1 if small else int(block) + (part == "cv")
            pixels = (Dataset.SIDE >> halvings) ** 2
        if path.endswith("/w"):
            total += pixels * weights.shape.num_elements()
    return total


def eager(net, dataset, steps):
    """The course's loop, as its slides write it."""
    optimizer = tf.optimizers.Adam(1e-3)

    def run():
        started = time.monotonic()
        for _ in range(steps):
            x, y = dataset.NextTrainingBatch()
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, net(x, False, True)))
            optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return steps * BATCH / (time.monotonic() - started)
    return run


def fit(model, dataset, steps):
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    x, y = dataset.data[:steps * BATCH].reshape(-1, 48, 48, 1), dataset.label[:steps * BATCH]

    def run():
        started = time.monotonic()
        model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
        return steps * BATCH / (time.monotonic() - started)
    return run


def ours(net, dataset, steps, precision, folder):
    """Main.py's loop, batches from the mapped file; `steps` of it a round, counted from one report to a later one."""
    recipe = Training.Recipe(epochs=10**4, batch_size=BATCH, augment=(), averaging=0.0, precision=precision)
    trainer = Training.Trainer(net, dataset, dataset.subset(range(2)), None, recipe, folder, None, net.description)
    reports = trainer.run()

    def run():
        first = step_after(reports)
        started = time.monotonic()
        last = first
        while last < first + steps:
            last = step_after(reports)
        return (last - first) * BATCH / (time.monotonic() - started)
    return run


def step_after(reports):
    """The step of the next report that is no measure."""
    return next(report["step"] for report in reports if "epoch" not in report)


def peak(dtype):
    """Multiply-adds a second of a 2048 x 2048 matrix product, the best of ten."""
    a = tf.cast(tf.random.normal([2048, 2048]), dtype)
    multiply = tf.function(lambda: tf.reduce_sum(tf.cast(a @ a, tf.float32)))
    multiply()

    def once():
        started = time.monotonic()
        multiply().numpy()
        return time.monotonic() - started
    return 2048**3 / min(once() for _ in range(10))


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    dataset = Dataset.open_database(options.database, BATCH)
    rates = {dtype.name: peak(dtype) for dtype in (tf.float32, tf.bfloat16)}
    print(", ".join(f"{name} {2 * rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()), "in matrix products")
    print("| net | loop | images/s | times fit | share of the matrix-product rate |")
    print("|---|---|---|---|---|")
    for name, twin in ("nn4", keras_nn4), ("densenet", keras_densenet):
        with tempfile.TemporaryDirectory() as folder:
            contestants = {
                "course, eager": eager(Models.build(name), dataset, options.steps),
                "Keras fit": fit(twin(), dataset, options.steps),
                "Main.py, float32": ours(Models.build(name), dataset, options.steps, "float32", f"{folder}/a"),
                "Main.py, bfloat16": ours(Models.build(name), dataset, options.steps, "bfloat16", f"{folder}/b")}
            rounds = [{loop: run() for loop, run in contestants.items()} for _ in range(options.rounds + 1)][1:]
        for loop in contestants:
            rate = statistics.median(measured[loop] for measured in rounds)
            ratio = statistics.median(measured[loop] / measured["Keras fit"] for measured in rounds)
            # A training step is about three forward passes: forward, gradient to the input, gradient to the weights.
            share = 3 * rate * multiplications(Models.build(name)) / rates["bfloat16" if "bf" in loop else "float32"]
            print(f"| {name} | {loop} | {rate:.0f} | {ratio:.2f} | {100 * share:.0f} % |", flush=True)


if __name__ == "__main__":
    sys.exit(Console.run(main))
