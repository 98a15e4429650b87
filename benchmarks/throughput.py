"""Images a second in training and in inference: the course's eager loop, Keras, PyTorch, and Main.py's loop, in turn.

    python benchmarks/throughput.py --database path/to/data_16k.bin

nn4 and DenseNet (4 blocks of 2 convolutions, 16 filters), batch 128 in training (Adam, no augmentation), 500 in
inference (float32). Each round runs every contestant once, after one round that is not counted. Prints the median
rates, the median of the ratios to Keras within a round, what share that is of the matrix-product rate that this
machine reaches in the same run, and which operations the time of our training step goes to. PyTorch runs where it is
installed (extra `bench`).
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import collections
import dataclasses
import importlib.util
import re
import statistics
import tempfile
import time
from typing import Annotated

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

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


def torch_nn4(torch):
    layers = []
    for inputs, outputs in (1, 64), (64, 32), (32, 16):
        layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(576, 2))


def torch_densenet(torch):
    class Block(torch.nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(inputs + 16 * i, 16, 3, padding=1) for i in (0, 1))
            self.reduce = torch.nn.Conv2d(inputs + 32, 32, 1)

        def forward(self, x):
            for convolution in self.convolutions:
                x = torch.cat([x, torch.relu(convolution(x))], 1)
            return torch.relu(self.reduce(torch.nn.functional.max_pool2d(x, 2)))

    return torch.nn.Sequential(Block(1), Block(32), Block(32), Block(32), torch.nn.Flatten(), torch.nn.Linear(288, 50),
                               torch.nn.Linear(50, 2))


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


def pytorch(make, dataset, steps):
    import torch
    net = make(torch).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    x = torch.from_numpy(dataset.data[:steps * BATCH].reshape(-1, 1, 48, 48)).to(memory_format=torch.channels_last)
    y = torch.from_numpy(dataset.label[:steps * BATCH].argmax(1))

    def run():
        started = time.monotonic()
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        return steps * BATCH / (time.monotonic() - started)

    def infer(faces):
        with torch.no_grad():
            return net(torch.from_numpy(faces.reshape(-1, 1, 48, 48))).numpy()
    return run, infer


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


def inference(ask, dataset):
    """A run of one contestant: faces a second, 4,000 of them, read from the database."""
    faces = dataset.subset(range(min(4000, dataset.nbdata)))
    faces.batchSize = 500

    def run():
        started = time.monotonic()
        faces.logits(ask)
        return faces.nbdata / (time.monotonic() - started)
    return run


def profile(net, dataset):
    """[(operation, share)] of the processor's time in our bfloat16 training steps, the largest first."""
    with tempfile.TemporaryDirectory() as folder:
        run = ours(net, dataset, 30, "bfloat16", f"{folder}/net")
        run()
        tf.profiler.experimental.start(folder)
        run()
        tf.profiler.experimental.stop()
        (path,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    spent = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                if kernel := re.fullmatch(r"[^: ]+:(?:_Mkl)?(?:Native)?(\w+)", name):
                    spent[kernel[1]] += event.duration_ps
    return [(name, picoseconds / spent.total()) for name, picoseconds in spent.most_common(10)]


def compete(contestants, rounds):
    """{contestant: (median rate, median ratio to Keras)} of rounds that run each in turn, the first one not counted."""
    measured = [{name: run() for name, run in contestants.items()} for _ in range(rounds + 1)][1:]
    return {name: (statistics.median(rates[name] for rates in measured),
                   statistics.median(rates[name] / rates["Keras"] for rates in measured)) for name in contestants}


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    dataset = Dataset.open_database(options.database, BATCH)
    if dataset.nbdata < options.steps * BATCH:
        raise Dataset.UserError(f"{options.database}: {dataset.nbdata} faces; --steps {options.steps} needs "
                                f"{options.steps * BATCH} or more")
    dataset = dataset.subset(range(dataset.nbdata // BATCH * BATCH))  # whole batches: a shorter one counts as whole
    rates = {dtype.name: peak(dtype) for dtype in (tf.float32, tf.bfloat16)}
    print(", ".join(f"{name} {2 * rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()), "in matrix products")
    print("| net | loop | training, images/s | times Keras | share of the matrix-product rate "
          "| inference, images/s | times Keras |")
    print("|---" * 7 + "|")
    for name, twin, torch_twin in ("nn4", keras_nn4, torch_nn4), ("densenet", keras_densenet, torch_densenet):
        net, model = Models.build(name), twin()
        graph = tf.function(lambda x: net(x), autograph=False)
        keras_graph = tf.function(lambda x: model(tf.reshape(x, [-1, 48, 48, 1])), autograph=False)
        with tempfile.TemporaryDirectory() as folder:
            learning = {
                "course, eager": eager(Models.build(name), dataset, options.steps),
                "Keras": fit(twin(), dataset, options.steps),
                "Main.py, float32": ours(Models.build(name), dataset, options.steps, "float32", f"{folder}/a"),
                "Main.py, bfloat16": ours(Models.build(name), dataset, options.steps, "bfloat16", f"{folder}/b")}
            asking = {"course, eager": inference(lambda x: net(x), dataset),
                      "Keras": inference(keras_graph, dataset),
                      "Main.py, float32": inference(graph, dataset)}
            if importlib.util.find_spec("torch"):
                learning["PyTorch"], ask = pytorch(torch_twin, dataset, options.steps)
                asking["PyTorch"] = inference(ask, dataset)
            learned, asked = compete(learning, options.rounds), compete(asking, options.rounds)
        for loop, (rate, ratio) in learned.items():
            # A training step is about three forward passes: forward, gradient to the input, gradient to the weights.
            share = 3 * rate * multiplications(net) / rates["bfloat16" if "bf" in loop else "float32"]
            columns = f"{asked[loop][0]:.0f} | {asked[loop][1]:.2f}" if loop in asked else "|"
            print(f"| {name} | {loop} | {rate:.0f} | {ratio:.2f} | {100 * share:.0f} % | {columns} |", flush=True)
    for name in "nn4", "densenet":
        shares = [f"{operation} {100 * share:.0f} %" for operation, share in profile(Models.build(name), dataset)]
        print(f"{name}, where a training step's time goes: {', '.join(shares)}")


if __name__ == "__main__":
    sys.exit(Console.run(main))
