"""Seconds of training until a net first has 85 % and 88 % on the test base: the course's loop, Keras, PyTorch, Main.py.

    python benchmarks/time_to_accuracy.py --train path/to/data_16k.bin --test path/to/data_test4k.bin

The course's loop is eager TensorFlow with Adam 1e-3 and batches of 128, its nn4 and its DenseNet (4 blocks of 2
convolutions, 16 filters); Keras and PyTorch (extra `bench`) train the same nets, in float32 and in bfloat16, Keras
measured in the precision that it trains in, too. Ours is Main.py with the options QUICK, which were chosen on 3,000
faces of the training base. A GPU that TensorFlow or PyTorch alone sees is used by nobody.
Every training has a process of its own and the machine to itself. The clock runs while it trains, from the first step
on, tracing and compiling included; it stands still while the accuracy is measured, every 1,280 faces for everyone. A
contestant that needs 1.3 times the best other's time for the first goal, in the first round, runs no further one; a
goal that it did not reach there is not waited for again.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
import functools
import importlib.util
import math
import multiprocessing
import statistics
import tempfile
import time
from typing import Annotated

import numpy as np
import tensorflow as tf

import Dataset
import Main
import Models
import throughput
import Training

GOALS = 0.85, 0.88
EVERY = 10  # steps of 128 faces from measure to measure
BATCH = 128
AGAIN = 1.3
SMALL = dict(net="resnet", nb_block=4, nb_filter=16, batch_size=64, learning_rate=8e-3)
QUICK = {"Main.py, 1 epoch": SMALL | dict(epochs=1, averaging=0.9, augment=("none",)),
         "Main.py, 4 epochs": SMALL | dict(epochs=4, averaging=0.98, augment=("flip",))}


@dataclasses.dataclass(frozen=True)
class Options:
    train: Annotated[str, dict(help="data_*.bin to learn from", required=True)] = ""
    test: Annotated[str, dict(help="data_*.bin to measure on", required=True)] = ""
    seeds: Annotated[int, dict(help="trainings of each contestant", low=1)] = 5
    limit: Annotated[float, dict(help="seconds after which a training is given up", low=1)] = 80.0
    only: Annotated[tuple, dict(help="contestants to run", nargs="+", metavar="NAME")] = ()


class Clock:
    """Seconds of training, the measures left out; `measure` notes them with the accuracy, True when all is reached."""

    def __init__(self, test, limit, goal):
        self.test, self.limit, self.goal, self.seconds, self.curve = test, limit, goal, 0.0, []
        self.answer = test.label.argmax(1)
        self.started = time.monotonic()

    def measure(self, predict):
        """predict  [N, 2304] float32 -> logits [N, 2], for a batch of 500"""
        tf.test.experimental.sync_devices()
        self.seconds += time.monotonic() - self.started
        says = np.concatenate([np.asarray(predict(self.test.data[i:i + 500])).argmax(1)
                               for i in range(0, self.test.nbdata, 500)])
        self.curve.append((self.seconds, float(np.mean(says == self.answer))))
        self.started = time.monotonic()
        return self.curve[-1][1] >= self.goal or self.seconds > self.limit


def course(name, train, clock, seed, device):
    net = Models.build(name)
    optimizer, ask, step = tf.optimizers.Adam(1e-3), tf.function(lambda x: net(x)), 0
    clock.started = time.monotonic()
    while True:
        x, y = train.NextTrainingBatch()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, net(x, False, True)))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        step += 1
        if step % EVERY == 0 and clock.measure(ask):
            return


def keras(make, policy, train, clock, seed, device):
    with throughput.keras_policy(policy):
        model = make()
    ask = throughput.keras_graph(model)

    class Measure(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if (batch + 1) % EVERY == 0 and clock.measure(ask):
                self.model.stop_training = True

    x, y = tf.constant(train.data[:].reshape(-1, 48, 48, 1)), tf.constant(train.label)
    model.compile(tf.keras.optimizers.Adam(1e-3), tf.keras.losses.CategoricalCrossentropy(from_logits=True),
                  steps_per_execution=EVERY)
    clock.started = time.monotonic()
    model.fit(x, y, batch_size=BATCH, epochs=10**6, verbose=0, callbacks=[Measure()])


def pytorch(make, precision, train, clock, seed, device):
    import torch
    torch.manual_seed(seed)
    learning, ask = throughput.torch_loop(make, train, precision, device, EVERY)
    clock.started = time.monotonic()
    for _ in learning:
        if clock.measure(ask):
            return


def ours(name, train, clock, seed, device):
    options = Main.Options(**QUICK[name], seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        net = Models.build(options.net, **{name: getattr(options, name) or None for name in Main.NET_OPTIONS})
        trainer = Training.Trainer(net, train, train.subset(range(2)), None, options, folder, None, net.description)
        learn, every = trainer.learn, EVERY * BATCH // options.batch_size
        clock.started = time.monotonic()
        for step, batch in enumerate(trainer.batches(0), 1):
            learn(*batch)
            if step % every == 0 or step == trainer.total:
                with trainer.average.in_place():
                    if clock.measure(trainer.predict):
                        return


def train_once(name, options, seed, goal):
    """The curve of one training, up to an accuracy: [(seconds, accuracy)]."""
    device, _ = throughput.share_device()
    tf.keras.utils.set_random_seed(seed)  # Keras draws from Python's generator
    Training.make_deterministic(seed)
    train, test = (Dataset.open_database(path, BATCH) for path in (options.train, options.test))
    train.seed = seed
    clock = Clock(test, options.limit, goal)
    CONTESTANTS[name](train, clock, seed, device)
    return clock.curve


NETS = {"nn4": (throughput.keras_nn4, throughput.torch_nn4),
        "DenseNet": (throughput.keras_densenet, throughput.torch_densenet)}
CONTESTANTS = {  # of (train, clock, seed, device)
    **{f"course, {net}": functools.partial(course, net.lower()) for net in NETS},
    **{f"Keras, {net}, {policy}": functools.partial(keras, make, policy)
       for net, (make, _) in NETS.items() for policy in throughput.POLICIES.values()},
    **{f"PyTorch, {net}, {precision}": functools.partial(pytorch, make, precision)
       for net, (_, make) in NETS.items() for precision in throughput.POLICIES},
    **{name: functools.partial(ours, name) for name in QUICK},
}


def reached(curve, goal):
    return next((seconds for seconds, accuracy in curve if accuracy >= goal), math.inf)


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    if unknown := set(options.only) - {*CONTESTANTS}:
        raise Dataset.UserError(f"--only {min(unknown)}: expected some of {', '.join(CONTESTANTS)}")
    names = [name for name in CONTESTANTS if name in (options.only or CONTESTANTS)]
    if not importlib.util.find_spec("torch"):
        names = [name for name in names if not name.startswith("PyTorch")]
    if told := throughput.share_device()[1]:
        print(told)
    width = max(map(len, CONTESTANTS))
    curves = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            others = [reached(curves[other][0], GOALS[0]) for other in names if other not in QUICK and curves[other]]
            if seed and name not in QUICK and reached(curves[name][0], GOALS[0]) > AGAIN * min(others):
                continue
            goal = max([goal for goal in GOALS if seed and reached(curves[name][0], goal) < math.inf],
                       default=max(GOALS))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                curves[name].append(pool.apply(train_once, (name, options, seed, goal)))
            print(f"seed {seed}  {name:{width}}", *(f"{100 * goal:.0f} %: {reached(curves[name][-1], goal):6.1f} s"
                                                    for goal in GOALS), flush=True)
    print("| loop and net | trainings | s to 85 % | s to 88 % | accuracy when stopped |")
    print("|---|---|---|---|---|")
    median = {name: [statistics.median(reached(curve, goal) for curve in curves[name]) for goal in GOALS]
              for name in names}
    for name in names:
        last = statistics.median(curve[-1][1] for curve in curves[name])
        seconds = (f"{value:.1f}" if value < math.inf else "-" for value in median[name])
        print(f"| {name} | {len(curves[name])} | {' | '.join(seconds)} | {100 * last:.1f} % |")
    for number, goal in enumerate(GOALS):
        ours, other = (min((median[name][number] for name in names if (name in QUICK) == mine), default=math.nan)
                       for mine in (True, False))
        print(f"{100 * goal:.0f} %: ours {ours:.1f} s, the best other {other:.1f} s, ratio {ours / other:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(Console.run(main))
