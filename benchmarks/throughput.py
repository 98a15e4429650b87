"""Images a second in training and in inference: the course's eager loop, Keras, PyTorch, and Main.py's loop, in turn.

    python benchmarks/throughput.py --database path/to/data_16k.bin

nn4 and DenseNet (4 blocks of 2 convolutions, 16 filters), batch 128 in training (Adam, no augmentation), 500 in
inference, each in float32 and in bfloat16; the scripts' inference is float32. Each round runs every contestant once,
after one round that is not counted. Prints the median rates, the median of the ratios to Keras in float32 within a
round, what share of its peak that is (the matrix-product rate that this machine reaches in the same run and precision),
our ratios to Keras in either precision and, as ours comes by default, to its faster one, and which operations the time
of our training step goes to. The clock of Keras's `fit` starts with its third step: what a call of it takes ahead is
not counted. PyTorch runs where it is installed (extra `bench`); a GPU that TensorFlow or PyTorch alone sees is used by
nobody.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import collections
import contextlib
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
START = 2  # steps of a fit ahead of the clock
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}  # Keras's words
keras = tf.keras


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="data_*.bin to learn from", required=True)] = ""
    rounds: Annotated[int, dict(help="counted rounds", low=1)] = 5
    steps: Annotated[int, dict(help="steps of each contestant a round", low=10)] = 30


def share_device():
    """Leave a GPU that TensorFlow or PyTorch alone sees: ("cuda" or "cpu" for PyTorch, a line where one is left)."""
    ours = theirs = bool(tf.config.list_physical_devices("GPU"))
    if importlib.util.find_spec("torch"):
        import torch
        theirs = torch.cuda.is_available()
    if ours == theirs:
        return "cuda" if ours else "cpu", ""
    tf.config.set_visible_devices([], "GPU")
    return "cpu", f"{'TensorFlow' if ours else 'PyTorch'} alone sees the GPU: all run on the processor"


@contextlib.contextmanager
def keras_policy(policy):
    """The nets of Keras that are made inside compute as the policy says, those made later as before."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def keras_nn4():
    layers = [keras.layers.Input([48, 48, 1])]
    for filters in 64, 32, 16:
        layers += [keras.layers.Conv2D(filters, 3, padding="same", activation="relu"), keras.layers.MaxPool2D(2)]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(2, dtype="float32")])


def keras_densenet():
    x = entry = keras.layers.Input([48, 48, 1])
    for _ in range(4):
        for _ in range(2):
            y = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
            x = keras.layers.Concatenate()([x, y])
        x = keras.layers.Conv2D(32, 1, activation="relu")(keras.layers.MaxPool2D(2)(x))
    x = keras.layers.Dense(50)(keras.layers.Flatten()(x))
    return keras.Model(entry, keras.layers.Dense(2, dtype="float32")(x))


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
        tf.test.experimental.sync_devices()
        return steps * BATCH / (time.monotonic() - started)
    return run


def fit(model, dataset, steps):
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    x = tf.constant(dataset.data[:steps * BATCH].reshape(-1, 48, 48, 1))
    y = tf.constant(dataset.label[:steps * BATCH])

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == START:
                tf.test.experimental.sync_devices()
                self.started = time.monotonic()

    def run():
        clock = Clock()
        model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[clock])
        return (steps - START) * BATCH / (time.monotonic() - clock.started)
    return run


def pytorch(make, dataset, steps, precision, device):
    learning, ask = torch_loop(make, dataset.subset(range(steps * BATCH)), precision, device, steps)

    def run():
        started = time.monotonic()
        next(learning)
        return steps * BATCH / (time.monotonic() - started)
    return run, ask


def torch_loop(make, dataset, precision, device, every):
    """PyTorch's training, and its net: a generator that yields when so many steps more are done, [?, 2304] -> [?, 2].

    precision  float32 or bfloat16, by torch.autocast
    """
    import torch
    net = make(torch).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    x = torch.from_numpy(dataset.data[:].reshape(-1, 1, 48, 48)).to(device, memory_format=torch.channels_last)
    y = torch.from_numpy(dataset.label.argmax(1)).to(device)

    def logits(x):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            return net(x).float()

    def learn():
        step = 0
        while True:
            for rows in torch.randperm(len(x), device=device).split(BATCH):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits(x[rows]), y[rows]).backward()
                optimizer.step()
                step += 1
                if step % every == 0:
                    if device == "cuda":
                        torch.cuda.synchronize()
                    yield

    def ask(faces):
        with torch.no_grad():
            return logits(torch.from_numpy(faces.reshape(-1, 1, 48, 48)).to(device)).cpu().numpy()
    return learn(), ask


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


def contestants(name, twin, torch_twin, dataset, steps, device, folder):
    """What learns and what answers: two of {contestant: run}."""
    learning = {"course, eager": eager(Models.build(name), dataset, steps)}
    net = Models.build(name)
    asking = {"course, eager": inference(lambda x: net(x), dataset)}
    for precision, policy in POLICIES.items():
        with keras_policy(policy):
            learning[f"Keras, {policy}"] = fit(twin(), dataset, steps)
            asking[f"Keras, {policy}"] = inference(keras_graph(twin()), dataset)
        learning[f"Main.py, {precision}"] = ours(Models.build(name), dataset, steps, precision, f"{folder}/{precision}")
        asking[f"Main.py, {precision}"] = inference(graph(net, precision), dataset)
        if importlib.util.find_spec("torch"):
            learning[f"PyTorch, {precision}"], ask = pytorch(torch_twin, dataset, steps, precision, device)
            asking[f"PyTorch, {precision}"] = inference(ask, dataset)
    return learning, asking


def keras_graph(model):
    return tf.function(lambda x: model(tf.reshape(x, [-1, 48, 48, 1])), autograph=False)


def graph(net, precision):
    return tf.function(lambda x: tf.cast(net(tf.cast(x, precision)), tf.float32), autograph=False)


def compete(runs, rounds):
    """Rounds that run each contestant in turn, the first one not counted: [{contestant: rate}]."""
    return [{name: run() for name, run in runs.items()} for _ in range(rounds + 1)][1:]


def rate(measured, name):
    """The median rate of a contestant."""
    return statistics.median(rates[name] for rates in measured)


def ratio(measured, name, other="Keras, float32"):
    """The median of the ratios to another contestant within a round."""
    return statistics.median(rates[name] / rates[other] for rates in measured)


def ratios(measured, default):
    """Our ratios to Keras as a line: in either precision, and in the one that is ours by default to the faster."""
    best = max((f"Keras, {policy}" for policy in POLICIES.values()), key=lambda name: rate(measured, name))
    same = [f"{ratio(measured, f'Main.py, {precision}', f'Keras, {policy}'):.2f} in {precision}"
            for precision, policy in POLICIES.items()]
    return f"{', '.join(same)}, {ratio(measured, f'Main.py, {default}', best):.2f} by default ({default}) of {best}"


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    dataset = Dataset.open_database(options.database, BATCH)
    if dataset.nbdata < options.steps * BATCH:
        raise Dataset.UserError(f"{options.database}: {dataset.nbdata} faces; --steps {options.steps} needs "
                                f"{options.steps * BATCH} or more")
    dataset = dataset.subset(range(dataset.nbdata // BATCH * BATCH))  # whole batches: a shorter one counts as whole
    device, told = share_device()
    if told:
        print(told)
    peaks = {precision: peak(precision) for precision in POLICIES}
    print(", ".join(f"{name} {2 * products / 1e9:.0f} GFLOP/s" for name, products in peaks.items()),
          "in matrix products")
    print("| net | loop | training, images/s | times Keras | of peak | inference, images/s | times Keras |")
    print("|---" * 7 + "|")
    lines = []
    for name, twin, torch_twin in ("nn4", keras_nn4, torch_nn4), ("densenet", keras_densenet, torch_densenet):
        with tempfile.TemporaryDirectory() as folder:
            learned, asked = (compete(runs, options.rounds) for runs in contestants(
                name, twin, torch_twin, dataset, options.steps, device, folder))
        work = 3 * multiplications(Models.build(name))  # forward, gradient to the input, gradient to the weights
        for loop in learned[0]:
            share = rate(learned, loop) * work / peaks["bfloat16" if "bfloat16" in loop else "float32"]
            print(f"| {name} | {loop} | {rate(learned, loop):.0f} | {ratio(learned, loop):.2f} | {100 * share:.0f} % "
                  f"| {rate(asked, loop):.0f} | {ratio(asked, loop):.2f} |", flush=True)
        lines += [f"{name}, training, times Keras: {ratios(learned, Training.compute_dtype('auto').name)}",
                  f"{name}, inference, times Keras: {ratios(asked, 'float32')}"]
    print(*lines, sep="\n")
    for name in "nn4", "densenet":
        shares = [f"{operation} {100 * share:.0f} %" for operation, share in profile(Models.build(name), dataset)]
        print(f"{name}, where a training step's time goes: {', '.join(shares)}")


if __name__ == "__main__":
    sys.exit(Console.run(main))
