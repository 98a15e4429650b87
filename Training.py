"""How a net learns: batches, augmentation, the compiled step, schedule, measures, summaries, checkpoints, resume.

Everything random depends on (seed, step) or (seed, epoch), never on a running generator: a training that was
interrupted and resumed ends bit-identical to one that was not.
"""
import contextlib
import dataclasses
import json
import math
import signal
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

import Dataset
import Layers
import Models

METRICS = "metrics.json"
MEASURE_STEPS = 500   # measure every epoch, or every so many steps of a longer one
REPORT_STEPS = 10
MEASURED_TRAINING_FACES = 2000
WARM_UP = 0.1         # share of the steps in which the cosine schedule's learning rate rises
AUGMENTATION = dict(rotation=0.17, scale=0.1, shift=3.0, contrast=0.25, brightness=0.12)  # radians, share, pixels, x

OPTIMIZERS = {  # name: (class, its arguments, learning rate, weight decay)
    "sgd": (tf.keras.optimizers.SGD, {}, 0.1, 1e-3),
    "momentum": (tf.keras.optimizers.SGD, dict(momentum=0.9), 0.02, 5e-3),
    "nesterov": (tf.keras.optimizers.SGD, dict(momentum=0.9, nesterov=True), 0.02, 5e-3),
    "adagrad": (tf.keras.optimizers.Adagrad, {}, 0.02, 5e-3),
    "rmsprop": (tf.keras.optimizers.RMSprop, {}, 1e-3, 0.1),
    "adam": (tf.keras.optimizers.Adam, {}, 2e-3, 0.05),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the recommended recipe."""
    epochs: Annotated[int, dict(help="passes over the training faces", low=1)] = 20
    batch_size: Annotated[int, dict(help="faces a step", low=1)] = 128
    optimizer: Annotated[str, dict(help="how gradients move the weights", choices=list(OPTIMIZERS))] = "adam"
    learning_rate: Annotated[float | None, dict(help="its highest value; by default what suits the optimizer",
                                                low=1e-12)] = None
    weight_decay: Annotated[float | None, dict(help="decoupled L2 regularization (AdamW), in units of the learning "
                                               "rate; by default what suits the optimizer", low=0)] = None
    schedule: Annotated[str, dict(help="learning rate: warm-up then cosine to zero, or constant",
                                  choices=["cosine", "constant"])] = "cosine"
    label_smoothing: Annotated[float, dict(help="share of each label given to both classes", low=0, high=1)] = 0.1
    augment: Annotated[bool, dict(help="flip, turn, scale, shift and light the training faces at random")] = True
    validation: Annotated[float, dict(help="share of the training faces kept to choose the best weights on",
                                      low=0.001, high=0.9)] = 0.05
    precision: Annotated[str, dict(help="compute in bfloat16, in float32, or in what this machine is built for",
                                   choices=["auto", "bfloat16", "float32"])] = "auto"
    seed: Annotated[int, dict(help="of weights, order, augmentation, dropout", low=0, high=2**31)] = 0


def make_deterministic(seed):
    """Fix TensorFlow's seed; where there is a GPU make its operations deterministic, as the processor's are."""
    tf.random.set_seed(seed)
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def compute_dtype(precision):
    """tf.bfloat16 or tf.float32; `auto` is bfloat16 where the GPU or the processor multiplies it in hardware."""
    if precision != "auto":
        return tf.as_dtype(precision)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        fast = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0)) >= (8, 0)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
        fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return tf.bfloat16 if fast else tf.float32


def split(dataset, share, seed):
    """(training, validation) parts of a DataSet; `share` of its faces, at least one, validate."""
    rows = np.random.default_rng([seed, dataset.nbdata]).permutation(dataset.nbdata)
    count = max(1, round(share * dataset.nbdata))
    if count >= dataset.nbdata:
        raise Dataset.UserError(f"{dataset.nbdata} training faces: too few to keep {count} for validation")
    return dataset.subset(rows[count:]), dataset.subset(rows[:count])


def _to_float(faces):
    """Dataset.to_float as TensorFlow's operations, for the pipeline."""
    return (tf.cast(faces, tf.float32) - 128.0) / Dataset.GREY_LEVELS


def augment(faces, seed):
    """Flip, turn, scale, shift and light faces at random, within AUGMENTATION; borders are mirrored.

    faces  [N, 2304] uint8;  seed  [2] int32;  returns [N, 2304] float32 in the course's scale
    """
    count = tf.shape(faces)[0]
    draws = tf.random.stateless_uniform([7, count], seed, -1.0, 1.0)
    angle = AUGMENTATION["rotation"] * draws[0]
    scale = 1.0 + AUGMENTATION["scale"] * draws[1]
    flip = tf.sign(draws[4])
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    middle = (Dataset.SIDE - 1) / 2
    shift_x = middle + AUGMENTATION["shift"] * draws[2] - middle * (cos * flip - sin)
    shift_y = middle + AUGMENTATION["shift"] * draws[3] - middle * (sin * flip + cos)
    zero = tf.zeros_like(cos)
    transforms = tf.stack([cos * flip, -sin, shift_x, sin * flip, cos, shift_y, zero, zero], axis=1)
    images = tf.reshape(_to_float(faces), [count, Dataset.SIDE, Dataset.SIDE, 1])
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=[Dataset.SIDE, Dataset.SIDE], fill_value=0.0,
        interpolation="BILINEAR", fill_mode="REFLECT")
    contrast, brightness = AUGMENTATION["contrast"] * draws[5], AUGMENTATION["brightness"] * draws[6]
    x = tf.reshape(images, [count, Dataset.DIM]) * (1.0 + contrast[:, None]) + brightness[:, None]
    return tf.clip_by_value(x, Dataset.BLACK, Dataset.WHITE)


def peak_rate(recipe):
    """The highest learning rate: the recipe's, or else what suits its optimizer."""
    return OPTIMIZERS[recipe.optimizer][2] if recipe.learning_rate is None else recipe.learning_rate


def scheduled_rate(recipe, step, total):
    """The learning rate of a step, 0 .. total - 1: float32 scalar.

    Constant, or a linear warm-up over WARM_UP of the steps, then half a cosine to zero (Loshchilov and Hutter 2017).
    """
    peak = peak_rate(recipe)
    if recipe.schedule == "constant":
        return tf.constant(peak)
    done = (tf.cast(step, tf.float32) + 1.0) / total
    falling = tf.clip_by_value((done - WARM_UP) / (1.0 - WARM_UP), 0.0, 1.0)
    return peak * tf.minimum(done / WARM_UP, 0.5 * (1.0 + tf.cos(math.pi * falling)))


def make_optimizer(recipe, net):
    """The recipe's optimizer, built for the net; biases and BatchNorm's parameters do not decay."""
    kind, arguments, _, weight_decay = OPTIMIZERS[recipe.optimizer]
    weight_decay = weight_decay if recipe.weight_decay is None else recipe.weight_decay
    optimizer = kind(peak_rate(recipe), weight_decay=weight_decay or None, **arguments)
    optimizer.exclude_from_weight_decay(var_list=[v for v in net.trainable_variables if v.shape.rank < 2])
    optimizer.build(net.trainable_variables)
    return optimizer


class _OptimizerState(tf.Module):
    """An optimizer's own variables, under the paths that Keras's optimizer gives them in a checkpoint.

    The optimizer itself would bring the net's variables too, and a checkpoint would file them under the optimizer.
    """

    def __init__(self, optimizer):
        super().__init__()
        self._variables = optimizer.variables


class Trainer:
    """One training: `for report in trainer.run()`, then `trainer.result()`.

    net      built, takes [?, 2304], gives [?, 2] logits
    train, validation, test  DataSets; test may be None, and is measured only
    recipe   Recipe
    out      folder of the best weights, of last/ (to resume from) and of metrics.json
    logs     folder of TensorBoard's summaries, or None for none
    description  content of network.json
    """

    def __init__(self, net, train, validation, test, recipe, out, logs, description):
        self.net, self.train, self.recipe, self.out = net, train, recipe, Path(out)
        train.seed = recipe.seed
        sample = train.subset(np.arange(min(train.nbdata, MEASURED_TRAINING_FACES)))
        self.measured = {"train": sample, "validation": validation} | ({"test": test} if test else {})
        self.steps_per_epoch = math.ceil(train.nbdata / recipe.batch_size)
        self.total = recipe.epochs * self.steps_per_epoch
        self.dtype = compute_dtype(recipe.precision)
        self.optimizer = make_optimizer(recipe, net)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.checkpoint = tf.train.Checkpoint(step=self.step, optimizer=_OptimizerState(self.optimizer), net=net)
        self.logs = Path(logs) if logs else None
        for folder in filter(None, (self.out, self.logs)):
            Dataset.make_folder(folder)
        for folder in self.out, self.out / "last":
            Dataset.write_whole(folder / Models.DESCRIPTION, description.encode())
        self.best, self.last = (tf.train.CheckpointManager(self.checkpoint, str(folder), 1, checkpoint_name="my_model")
                                for folder in (self.out, self.out / "last"))
        self.curve = []
        self.interval = [0.0, 0]  # sum of the losses since the last measure, and how many
        self.seconds = 0.0        # of training, measures not counted
        self.interrupted = False
        self.predict = tf.function(lambda x: net(x), input_signature=[tf.TensorSpec([None, Dataset.DIM])])
        self.learn = tf.function(self._learn, input_signature=[
            tf.TensorSpec([2], tf.int32), tf.TensorSpec([None, Dataset.DIM]), tf.TensorSpec([None, 2])])

    def resume(self):
        """Go on from last/. Raises NetworkError where there is nothing whole to go on from."""
        prefix = Models.find_checkpoint(self.out / "last")
        try:
            self.checkpoint.restore(prefix).assert_consumed()
            state = json.loads((self.out / METRICS).read_text(encoding="utf-8"))
            self.curve = [row for row in state["curve"] if row["step"] <= self.step]
            self.interval, self.seconds = state["interval"], state["seconds"]
        except (tf.errors.OpError, AssertionError, OSError, ValueError, LookupError, RuntimeError) as error:
            raise Models.NetworkError(f"{self.out}: damaged, nothing to go on from ({error!r:.90}); "
                                      "start again with another --out") from None

    def run(self):
        """Train to the end; yields {"step", "loss"} every REPORT_STEPS steps, and a row of the curve at each measure.

        Ctrl-C finishes the step, saves to last/, then raises KeyboardInterrupt.
        """
        writers = self._open_summaries()
        with self._interruptible():
            started, first = time.monotonic(), int(self.step)
            for step, (seed, x, y) in enumerate(self._batches(first), first + 1):
                loss = self.learn(seed, x, y)
                self.interval = [self.interval[0] + loss, self.interval[1] + 1]
                measure = step == self.total or step % min(self.steps_per_epoch, MEASURE_STEPS) == 0
                if measure or self.interrupted:
                    elapsed = time.monotonic() - started
                    self.seconds += elapsed
                    if measure:
                        self._measure(elapsed / max(step - first, 1), writers)
                        yield self.curve[-1]
                    self._save_last()
                    started, first = time.monotonic(), step
                if self.interrupted:
                    raise KeyboardInterrupt
                if step % REPORT_STEPS == 0:
                    if not math.isfinite(loss):
                        raise Dataset.UserError(f"the loss is {loss:g} at step {step}: the training diverged; "
                                                "choose a smaller --learning-rate")
                    yield {"step": step, "loss": float(loss)}

    def result(self):
        """What metrics.json holds: accuracy of the best weights on validation and test, and the curve."""
        best = self._best_row()
        accuracy = {name: {"accuracy": best[f"{name}_accuracy"],
                           "correct": round(best[f"{name}_accuracy"] * dataset.nbdata), "faces": dataset.nbdata}
                    for name, dataset in self.measured.items() if name != "train"} if best else {}
        parameters = sum(math.prod(variable.shape) for variable in self.net.trainable_variables)
        return accuracy | {"best_step": best and best["step"], "parameters": parameters, "seconds": self.seconds,
                           "interval": [float(self.interval[0]), self.interval[1]], "curve": self.curve}

    def _learn(self, seed, x, y):
        smoothing = self.recipe.label_smoothing
        with tf.GradientTape() as tape, Layers.dropout_seed(seed):
            logits = tf.cast(self.net(tf.cast(x, self.dtype), False, True), tf.float32)
            labels = y * (1.0 - smoothing) + smoothing / 2.0
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, self.net.trainable_variables)
        self.optimizer.learning_rate.assign(scheduled_rate(self.recipe, self.step, self.total))
        self.optimizer.apply_gradients(zip(gradients, self.net.trainable_variables))
        self.step.assign_add(1)
        return loss

    def _batches(self, first):
        """(seed, faces, labels) of the steps from `first` on, each prepared while the step before runs."""
        def rows():
            order = (-1, None)
            for step in range(first, self.total):
                epoch, position = divmod(step, self.steps_per_epoch)
                if order[0] != epoch:
                    order = epoch, self.train.order(epoch)
                chosen = order[1][position * self.recipe.batch_size:(position + 1) * self.recipe.batch_size]
                yield (self.recipe.seed, step), self.train.data.grey(chosen), self.train.label[chosen]

        def prepare(seed, faces, labels):
            if self.recipe.augment:
                return seed, augment(faces, seed), labels
            return seed, _to_float(faces), labels

        signature = (tf.TensorSpec([2], tf.int32), tf.TensorSpec([None, Dataset.DIM], tf.uint8),
                     tf.TensorSpec([None, 2]))
        batches = tf.data.Dataset.from_generator(rows, output_signature=signature)
        return batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _measure(self, seconds_per_step, writers):
        """Add a row to the curve, save the weights where they are the best so far, write the summaries."""
        step = int(self.step)
        row = {"step": step, "epoch": step / self.steps_per_epoch, "seconds": self.seconds,
               "images_per_second": self.recipe.batch_size / seconds_per_step,
               "learning_rate": float(self.optimizer.learning_rate),
               "loss": float(self.interval[0]) / self.interval[1]}
        for name, dataset in self.measured.items():
            logits = dataset.logits(self.predict)
            row[f"{name}_accuracy"] = float(np.mean(logits.argmax(1) == dataset.label.argmax(1)))
            row[f"{name}_cross_entropy"] = float(tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(dataset.label, logits)))
        self.curve.append(row)
        self.interval = [0.0, 0]
        if self._best_row() is row:
            self.best.save(step)
        self._write_summaries(row, writers)

    def _best_row(self):
        """The first of the rows with the highest validation accuracy; of equal ones that with the least loss there."""
        return max(self.curve, default=None,
                   key=lambda row: (row["validation_accuracy"], -row["validation_cross_entropy"]))

    def _save_last(self):
        self.last.save(int(self.step))
        Dataset.write_whole(self.out / METRICS, json.dumps(self.result(), indent=1).encode())

    @contextlib.contextmanager
    def _interruptible(self):
        """Inside, the first Ctrl-C sets `interrupted`; the second one acts as ever."""
        def note(signum, frame):
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _open_summaries(self):
        """A writer for each measured part, with the graph and the recipe; none without logs."""
        if not self.logs:
            return {}
        writers = {name: tf.summary.create_file_writer(str(self.logs / name)) for name in self.measured}
        with writers["train"].as_default(step=int(self.step)):
            tf.summary.graph(self.predict.get_concrete_function().graph)
        with writers["validation"].as_default(step=int(self.step)):
            options = dataclasses.asdict(self.recipe) | {"learning_rate": peak_rate(self.recipe)}
            hparams.hparams({name: value if isinstance(value, (bool, int, float, str)) else " ".join(value)
                             for name, value in options.items() if value is not None}, trial_id=self.out.name)
        return writers

    def _write_summaries(self, row, writers):
        for name, writer in writers.items():
            # On the CPU: the histogram's operations are not deterministic on a GPU.
            with writer.as_default(step=row["step"]), tf.device("CPU:0"):
                tf.summary.scalar("accuracy", row[f"{name}_accuracy"])
                tf.summary.scalar("cross entropy", row[f"{name}_cross_entropy"])
                if name == "train":
                    tf.summary.scalar("learning rate", row["learning_rate"])
                    self.net(tf.constant(self.train.data[:5]), True)
            writer.flush()
