"""How a net learns: batches, augmentation, the compiled step, schedule, measures, summaries, checkpoints, resume.

Everything random depends on (seed, step) or (seed, epoch), never on a running generator: a training that was
interrupted and resumed ends bit-identical to one that was not.
"""
import contextlib
import dataclasses
import json
import math
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

import Attacks
import Dataset
import Layers
import Models

METRICS = "metrics.json"
MEASURE_STEPS = 500   # measure every epoch, or every so many steps of a longer one
REPORT_STEPS = 10
RANGE_STEPS = 200     # of the learning-rate range test
MEASURED_TRAINING_FACES = 2000
AUGMENTATION = {      # name: the most it changes a face
    "flip": 1.0,          # 1 mirrors every other face
    "rotation": 0.17,     # radians
    "scale": 0.1,         # share
    "shift": 3.0,         # pixels
    "contrast": 0.25,     # share
    "brightness": 0.12,   # of the course's scale
    "sharpness": 1.0,     # 1 from wholly blurred to twice as sharp
    "cutout": 16.0,       # side of a grey square, pixels (DeVries and Taylor 2017)
    "mixup": 0.4,         # alpha of the Beta distribution that two faces are mixed by (Zhang et al. 2018)
}
FALLS = {             # name: share of the peak learning rate when the share t of the steps is done
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1.0 + tf.cos(math.pi * t)),                   # Loshchilov and Hutter 2017
    "step": lambda t: 0.1 ** tf.minimum(tf.floor(2.0 * t) + tf.floor(4.0 / 3.0 * t), 2.0),  # at 1/2 and 3/4
    "inverse": lambda t: 1.0 / (1.0 + 19.0 * t),                             # 1/t, a twentieth at the end
    "range": lambda t: 10.0 ** (7.0 * (t - 1.0)),  # the learning-rate range test: rises (Smith 2017)
}
LOSSES = {            # name: loss of each face, from labels (which may be shares) and logits [N, 2]
    "cross-entropy": tf.nn.softmax_cross_entropy_with_logits,
    # slide "Minimum Mean Squared Error"
    "squared-error": lambda labels, logits: tf.reduce_sum(tf.square(labels - tf.nn.softmax(logits)), 1),
    # Zhang and Sabuncu 2018, q = 0.7: between cross entropy and the absolute error, which wrong labels mislead least
    "generalized": lambda labels, logits: tf.reduce_sum(
        labels * (1.0 - tf.exp(0.7 * tf.nn.log_softmax(logits))), 1) / 0.7,
    # Reed et al. 2015, soft bootstrapping: the net's own answer is a twentieth of the label
    "bootstrap": lambda labels, logits: tf.nn.softmax_cross_entropy_with_logits(
        0.95 * labels + 0.05 * tf.stop_gradient(tf.nn.softmax(logits)), logits),
}

NOT_COMPARED = {"out", "logs", "resume", "find_lr"}  # options of Main.py that tell two trainings apart in no way

OPTIMIZERS = {  # name: (class, its arguments, learning rate, weight decay)
    "sgd": (tf.keras.optimizers.SGD, {}, 0.3, 5e-4),
    "momentum": (tf.keras.optimizers.SGD, dict(momentum=0.9), 0.1, 1e-3),
    "nesterov": (tf.keras.optimizers.SGD, dict(momentum=0.9, nesterov=True), 0.1, 1e-3),
    "adagrad": (tf.keras.optimizers.Adagrad, {}, 0.1, 1e-3),
    "rmsprop": (tf.keras.optimizers.RMSprop, {}, 2e-3, 0.05),
    "adam": (tf.keras.optimizers.Adam, {}, 5e-3, 0.05),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the recommended recipe."""
    epochs: Annotated[int, dict(help="passes over the training faces", low=1)] = 20
    batch_size: Annotated[int, dict(help="faces a step", low=1)] = 128
    optimizer: Annotated[str, dict(help="how gradients move the weights", choices=list(OPTIMIZERS))] = "adam"
    learning_rate: Annotated[float | None, dict(help="its highest value; by default what suits the optimizer, a tenth "
                                                "of that with --from", low=1e-12)] = None
    schedule: Annotated[str, dict(help="how the learning rate falls after the warm-up",
                                  choices=[name for name in FALLS if name != "range"])] = "cosine"
    warm_up: Annotated[float, dict(help="share of the steps in which the learning rate rises", low=0, high=1)] = 0.1
    weight_decay: Annotated[float | None, dict(help="decoupled L2 regularization (AdamW), in units of the learning "
                                               "rate; by default what suits the optimizer", low=0)] = None
    l1: Annotated[float, dict(help="weight of the L1 penalty on the weights", low=0)] = 0.0
    clip_norm: Annotated[float | None, dict(help="the longest gradient, all weights together", low=1e-12)] = None
    averaging: Annotated[float, dict(help="share that the moving average of the weights keeps at each step; the "
                                     "average is what is measured and used; 0 averages nothing", low=0, high=1)] = 0.99
    loss: Annotated[str, dict(help="what is minimised; the others mind wrong labels less",
                              choices=list(LOSSES))] = "cross-entropy"
    label_smoothing: Annotated[float, dict(help="share of each label given to both classes", low=0, high=1)] = 0.1
    augment: Annotated[tuple, dict(help="random changes of the training faces", nargs="+", metavar="CHANGE",
                                   choices=[*AUGMENTATION, "none"])] = (
        "flip", "rotation", "scale", "shift", "contrast", "brightness")
    balance: Annotated[str | None, dict(help="draw each of these groups equally often; age and ethnicity are those of "
                                        "meta_<name>.csv", choices=list(Dataset.BALANCES))] = None
    start: Annotated[str | None, dict(help="transfer learning: begin with the weights of this checkpoint",
                                      flag="--from", metavar="CHECKPOINT")] = None
    freeze: Annotated[int, dict(help="layers, from the first, that do not learn", low=0)] = 0
    lsuv: Annotated[bool, dict(help="orthogonal first weights, scaled until each layer's output has variance "
                               "one")] = False
    traits: Annotated[float, dict(help="multi-task learning: weight of telling age and ethnicity too, which the "
                                  "meta_*.csv beside the databases hold, by a layer that is not kept", low=0)] = 0.0
    teacher: Annotated[tuple, dict(help="distillation: learn what these checkpoints together say of each face",
                                   nargs="+", metavar="CHECKPOINT")] = ()
    teaching: Annotated[float, dict(help="share of the teachers' answer in the label", low=0, most=1)] = 0.7
    adversarial: Annotated[float, dict(help="adversarial training: each face is first moved by PGD to where the net "
                                       "errs most, at most so far (L2 in grey levels; 255 is 1.0 of a 0..1 image); 0 "
                                       "moves none", low=0)] = 0.0
    adversarial_steps: Annotated[int, dict(help="of that PGD; each costs as much as a training step", low=1)] = 3
    adversarial_rise: Annotated[float, dict(help="share of the training in which the radius rises to its full length; "
                                            "0 for a net that is robust already", low=0, most=1)] = 0.5
    validation: Annotated[float, dict(help="share of the training faces kept to choose the best weights on",
                                      low=0.001, high=0.9)] = 0.05
    patience: Annotated[int | None, dict(help="early stopping: end after so many measures without a lesser loss "
                                         "on the validation part", low=1)] = None
    precision: Annotated[str, dict(help="compute in bfloat16, in float32, or in what this machine is built for",
                                   choices=["auto", "bfloat16", "float32"])] = "auto"
    seed: Annotated[int, dict(help="of weights, order, augmentation, dropout", low=0)] = 0

    def __post_init__(self):
        if isinstance(self.augment, str) or set(self.augment) - {*AUGMENTATION, "none"}:
            raise Dataset.UserError(f"augment {self.augment!r}: expected a tuple of {', '.join(AUGMENTATION)}, or none")
        if "none" in self.augment and len(set(self.augment)) > 1:
            raise Dataset.UserError(f"--augment {' '.join(self.augment)}: none stands alone")


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


def must_be_found(out):
    """Raise UserError for a folder in which tf.train.CheckpointManager would not find its checkpoints again."""
    if set(str(out)) & set("*?["):
        raise Dataset.UserError(f"{out}: TensorFlow finds no checkpoint again in a folder with *, ? or [ in its name; "
                                "choose another --out")


def can_resume(folder):
    """Whether a folder holds what a training there can go on from."""
    return any((Path(folder) / "last").glob("*.index"))


def split(dataset, share, seed):
    """(training, validation) parts of a DataSet; `share` of its faces, at least one, validate.

    A picture that the database holds twice, once in either part, does not validate: the net has learned it.
    """
    rows = np.random.default_rng([seed, dataset.nbdata]).permutation(dataset.nbdata)
    count = max(1, round(share * dataset.nbdata))
    if count >= dataset.nbdata:
        raise Dataset.UserError(f"{dataset.nbdata} training faces: too few to keep {count} for validation")
    training = dataset.subset(rows[count:])
    kept, _ = Dataset.set_apart({"validation": dataset.subset(rows[:count])}, training)
    if not kept:
        raise Dataset.UserError(f"{dataset.nbdata} training faces: the {count} to keep for validation are all among "
                                "the others too; bring faces that differ, or a greater --validation")
    return training, kept["validation"]


def drawn_by(dataset, seed):
    """The same faces as a DataSet of its own, whose order hangs on this seed."""
    own = dataset.subset(np.arange(dataset.nbdata))
    own.seed = seed
    return own


def to_float(faces):
    """Dataset.to_float as TensorFlow's operations, for the pipeline."""
    return (tf.cast(faces, tf.float32) - Dataset.MIDDLE) / Dataset.GREY_LEVELS


def augment(faces, labels, changes, seed):
    """Change faces at random by at most AUGMENTATION, with TensorFlow's own operations: (faces, labels).

    faces    [N, 2304] uint8;  labels  [N, 2] float32 (mixup changes them);  changes  names of AUGMENTATION
    seed     [2] int32
    returns  [N, 2304] float32 in the course's scale; where a face is moved inwards its borders are mirrored
    """
    count, changes = tf.shape(faces)[0], set(changes)
    draws = iter(tf.unstack(tf.random.stateless_uniform([len(AUGMENTATION) + 2, count], seed, -1.0, 1.0)))
    most = {name: AUGMENTATION[name] if name in changes else 0.0 for name in AUGMENTATION}
    x = to_float(faces)
    if changes & {"flip", "rotation", "scale", "shift"}:
        x = _move(x, most, draws)
    if "sharpness" in changes:
        image = tf.reshape(x, [count, Dataset.SIDE, Dataset.SIDE, 1])
        blurred = tf.nn.avg_pool2d(tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"), 3, 1, "VALID")
        x += most["sharpness"] * next(draws)[:, None] * (x - tf.reshape(blurred, [count, Dataset.DIM]))
    if changes & {"contrast", "brightness"}:
        x = x * (1.0 + most["contrast"] * next(draws)[:, None]) + most["brightness"] * next(draws)[:, None]
    x = tf.clip_by_value(x, Dataset.BLACK, Dataset.WHITE)
    if "cutout" in changes:
        middle = Dataset.SIDE / 2 * (1.0 + tf.stack([next(draws), next(draws)], 1))
        near = tf.abs(tf.range(Dataset.SIDE, dtype=tf.float32) + 0.5 - middle[:, :, None]) < most["cutout"] / 2
        x = tf.where(tf.reshape(near[:, 0, :, None] & near[:, 1, None, :], [count, Dataset.DIM]), 0.0, x)
    if "mixup" in changes:
        gammas = tf.random.stateless_gamma([2, count, 1], seed, most["mixup"])
        share = tf.math.divide_no_nan(gammas[0], gammas[0] + gammas[1])
        x, labels = (share * value + (1.0 - share) * tf.reverse(value, [0]) for value in (x, labels))
    return x, labels


def _move(x, most, draws):
    """Mirror, turn, scale and shift faces [N, 2304], each by its own draw in [-1, 1), in one interpolation."""
    angle, scale = most["rotation"] * next(draws), 1.0 + most["scale"] * next(draws)
    flip = tf.where(most["flip"] * next(draws) < 0.0, -1.0, 1.0)
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    middle = (Dataset.SIDE - 1) / 2
    shift_x = middle + most["shift"] * next(draws) - middle * (cos * flip - sin)
    shift_y = middle + most["shift"] * next(draws) - middle * (sin * flip + cos)
    zero = tf.zeros_like(cos)
    transforms = tf.stack([cos * flip, -sin, shift_x, sin * flip, cos, shift_y, zero, zero], axis=1)
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.reshape(x, [-1, Dataset.SIDE, Dataset.SIDE, 1]), transforms=transforms,
        output_shape=[Dataset.SIDE, Dataset.SIDE], fill_value=0.0, interpolation="BILINEAR", fill_mode="REFLECT")
    return tf.reshape(images, [-1, Dataset.DIM])


def peak_rate(recipe):
    """The highest learning rate: the recipe's, else what suits its optimizer, a tenth of that in transfer learning."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    return OPTIMIZERS[recipe.optimizer][2] * (0.1 if recipe.start else 1.0)


def scheduled_rate(recipe, step, total):
    """The learning rate of a step, 0 .. total - 1: float32 scalar.

    It rises in a line over the first share `warm_up` of the steps, then falls as FALLS says.
    """
    done = (tf.cast(step, tf.float32) + 1.0) / max(total, 2)  # a training of one step learns too
    falling = tf.clip_by_value((done - recipe.warm_up) / (1.0 - recipe.warm_up), 0.0, 1.0)
    rising = tf.minimum(done / recipe.warm_up, 1.0) if recipe.warm_up else 1.0
    return peak_rate(recipe) * tf.minimum(rising, FALLS[recipe.schedule](falling))


def make_optimizer(recipe, variables):
    """The recipe's optimizer, built for these variables; biases and BatchNorm's parameters do not decay."""
    kind, arguments, _, weight_decay = OPTIMIZERS[recipe.optimizer]
    weight_decay = weight_decay if recipe.weight_decay is None else recipe.weight_decay
    optimizer = kind(peak_rate(recipe), weight_decay=weight_decay or None, global_clipnorm=recipe.clip_norm,
                     **arguments)
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if v.shape.rank < 2])
    optimizer.build(variables)
    return optimizer


def weight_layers(net):
    """The net's layers with weights, in the order of their calls; of a residual block the shortcut's first."""
    return [part for layer in net.sequence() if isinstance(layer, tf.Module)
            for part in (layer, *layer.submodules) if hasattr(part, "w")]


def learning_variables(net, freeze):
    """The trainable variables but for those of the first `freeze` layers with weights."""
    layers = weight_layers(net)
    if freeze >= len(layers):
        raise Dataset.UserError(f"--freeze {freeze}: the net has {len(layers)} layers with weights; one must learn")
    for number, layer in enumerate(layers):
        for part in layer.submodules:
            if isinstance(part, Layers.BatchNorm):
                part.frozen = number < freeze  # its averages stay too, and are used, as when the net is asked
    frozen = {id(variable) for layer in layers[:freeze] for variable in layer.trainable_variables}
    return [variable for variable in net.trainable_variables if id(variable) not in frozen]


def whiten(net, faces, seed):
    """LSUV (Mishkin and Matas 2016): orthogonal weights, scaled until each layer's output has variance one.

    faces  [N, 2304] float32, a batch of the faces to learn
    """
    for number, layer in enumerate(weight_layers(net)):
        rows, columns = math.prod(layer.w.shape[:-1]), layer.w.shape[-1]
        orthogonal = tf.keras.initializers.Orthogonal(seed=seed + number)([max(rows, columns), min(rows, columns)])
        layer.w.assign(tf.reshape(orthogonal if rows >= columns else tf.transpose(orthogonal), layer.w.shape))
        outputs = []
        normal, layer.bn = layer.bn, lambda y, *_: outputs.append(y) or y  # sees what BatchNorm would
        net(faces)
        layer.bn = normal
        layer.w.assign(layer.w / (tf.math.reduce_std(outputs[0]) + 1e-6))


def find_rate(net, train, recipe, teacher=None, steps=RANGE_STEPS):
    """The learning-rate range test (Smith 2017): the rate rises from 1e-6 to 10 while the net learns.

    Yields (rate, loss) of each step, the loss averaged over the last steps; ends where it is four times the least, or
    no number. The net is spoiled after it.
    """
    train = drawn_by(train, recipe.seed)
    rows = train.order(0)[:steps * recipe.batch_size]
    recipe = dataclasses.replace(recipe, schedule="range", learning_rate=10.0, warm_up=0.0, averaging=0.0,
                                 epochs=math.ceil(steps / math.ceil(len(rows) / recipe.batch_size)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(net, train.subset(rows), train.subset(rows[:1]), None, recipe, folder, None, net.description,
                          teacher)
        trainer.total = steps  # the last epoch need not be whole
        average, least = 0.0, math.inf
        for step, batch in enumerate(trainer.batches(0), 1):
            average = 0.95 * average + 0.05 * float(trainer.learn(*batch))
            loss = average / (1.0 - 0.95**step)
            if not loss < 4.0 * least:
                if least == math.inf:
                    raise Dataset.UserError(f"the loss is {loss:g} at the first step: nothing can be learned so")
                return
            least = min(least, loss)
            yield float(trainer.optimizer.learning_rate), loss


def _scores(name, labels, logits, loss):
    """{name_accuracy, name_cross_entropy} of labels and logits [N, 2], and name_<loss> where that is another."""
    scores = {f"{name}_accuracy": float(np.mean(logits.argmax(1) == labels.argmax(1))),
              f"{name}_cross_entropy": float(tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits)))}
    if loss == "cross-entropy":
        return scores
    values = LOSSES[loss](labels, logits)
    return scores | {f"{name}_{loss.replace('-', '_')}": float(tf.reduce_mean(values))}


def _must_be_finite(step, values):
    """Raises UserError where one of the values (a dict by name) of a step is not a number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Dataset.UserError(f"the {name.replace('_', ' ')} is {value:g} at step {step}: the training diverged; "
                                    "choose a smaller --learning-rate")


class _Variables(tf.Module):
    """Variables under the paths that Keras's optimizer gives its own in a checkpoint.

    The optimizer itself would bring the net's variables too, and a checkpoint would file them under the optimizer.
    """

    def __init__(self, variables):
        super().__init__()
        self._variables = variables


class Average:
    """The moving average of a net's variables: `average <- share * average + (1 - share) * variable` at each update.

    At the n-th update no more than n / (n + 9) is kept, so that the first weights are soon forgotten.
    """

    def __init__(self, net, share):
        self.net, self.share = net, share
        self.variables = [tf.Variable(variable, trainable=False) for variable in net.variables if share]

    def update(self, number):
        """Inside the compiled step; number  int32 scalar, 1 at the first update"""
        number = tf.cast(number, tf.float32)
        new = 1.0 - tf.minimum(self.share, number / (number + 9.0))
        for average, variable in zip(self.variables, self.net.variables):
            average.assign_sub(new * (average - variable))

    @contextlib.contextmanager
    def in_place(self):
        """Inside, the net holds the averages."""
        own = [tf.identity(variable) for variable in self.net.variables if self.share]
        for variable, average in zip(self.net.variables, self.variables):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, value in zip(self.net.variables, own):
                variable.assign(value)


class Trainer:
    """One training: `for report in trainer.run()`, then `trainer.result()`.

    net      a Models.Network
    train, validation, test  DataSets; test may be None, and is measured only
    recipe   Recipe
    out      folder of the best weights, of last/ (to resume from) and of metrics.json
    logs     folder of TensorBoard's summaries, or None for none
    description  content of network.json
    teacher  a net, or what is called like one; its answer becomes a share of the labels (Hinton et al. 2015)
    """

    def __init__(self, net, train, validation, test, recipe, out, logs, description, teacher=None):
        self.net, self.recipe, self.out = net, recipe, Path(out)
        self.train = train = drawn_by(train, recipe.seed)
        sample = train.subset(np.arange(min(train.nbdata, MEASURED_TRAINING_FACES)))
        self.measured = {"train": sample, "validation": validation} | ({"test": test} if test else {})
        self.fingerprint = train.checksum()
        self.steps_per_epoch = math.ceil(train.nbdata / recipe.batch_size)
        self.total = recipe.epochs * self.steps_per_epoch
        self.faces_per_step = train.nbdata / self.steps_per_epoch  # the last batch of an epoch may be shorter
        self.dtype = compute_dtype(recipe.precision)
        self.variables, self.targets = learning_variables(net, recipe.freeze), train.label
        if recipe.traits:
            self.targets = np.concatenate([train.label, train.traits], 1)
            self.head = Layers.fc("traits", train.traits.shape[1])  # beside the net's last layer (Caruana 1997)
            self.head(net(tf.constant(train.data[:1]), last=-1))
            self.head.w.assign(tf.zeros_like(self.head.w))  # so that at first it moves nothing but itself
            self.variables += self.head.trainable_variables
        self.optimizer = make_optimizer(recipe, self.variables)
        self.average = Average(net, recipe.averaging)
        self.teacher = teacher
        self.step = tf.Variable(0)  # int32, as that of the course's scripts, which restore it
        self.checkpoint = self._checkpoint(self.step)
        self.logs = Path(logs) if logs else None
        must_be_found(self.out)
        self._make_folders()
        self.description = description.encode()
        course = tf.train.Checkpoint(step=self.step, optimizer=self.checkpoint.optimizer, net=net)
        self.best, self.last = (tf.train.CheckpointManager(checkpoint, str(folder), 1, checkpoint_name="my_model")
                                for checkpoint, folder in ((course, self.out), (self.checkpoint, self.out / "last")))
        self.curve = []
        self.interval = [0.0, 0]  # sum of the losses since the last measure, and how many
        self.intervals = {}       # by step, of the last two saves: what metrics.json needs, whichever of them is whole
        self.seconds = 0.0        # of training, measures not counted
        self.interrupted = False
        self.predict = tf.function(lambda x: net(x), autograph=False,
                                   input_signature=[tf.TensorSpec([None, Dataset.DIM])])
        faces = [tf.TensorSpec([2], tf.int32), tf.TensorSpec([None, Dataset.DIM])]
        self.push, self.learn = (
            tf.function(step, autograph=False, input_signature=[*faces, tf.TensorSpec([None, answers.shape[1]])])
            for step, answers in ((self._push, train.label), (self._learn, self.targets)))

    def _checkpoint(self, step):
        head = {"traits": self.head} if self.recipe.traits else {}
        return tf.train.Checkpoint(step=step, optimizer=_Variables(self.optimizer.variables), net=self.net,
                                   average=_Variables(self.average.variables), **head)

    def _make_folders(self):
        """Make those of the checkpoints and of the logs; where one cannot be made no empty other stays behind."""
        Dataset.make_folder(self.out)
        try:
            if self.logs:
                Dataset.make_folder(self.logs)
        except Dataset.UserError:
            with contextlib.suppress(OSError):
                self.out.rmdir()
            raise

    def saved_step(self):
        """The step of what is saved in last/; None where nothing is."""
        prefix = self.last.latest_checkpoint
        return prefix and int(prefix.rpartition("-")[2])

    def resume(self):
        """Go on from last/. Raises NetworkError where there is nothing whole to go on from, and UserError where the
        training faces are others than those that it began with, or more was learned than the recipe's epochs."""
        prefix = Models.find_checkpoint(self.out / "last")
        try:
            types = tf.train.load_checkpoint(prefix).get_variable_to_dtype_map()
            step = tf.Variable(0, dtype=types["step/.ATTRIBUTES/VARIABLE_VALUE"])  # int64 of earlier versions
            self._checkpoint(step).restore(prefix).assert_consumed()
            self.step.assign(tf.cast(step, self.step.dtype))
            state = json.loads((self.out / METRICS).read_text(encoding="utf-8"))
            self.curve = [row for row in state["curve"] if row["step"] <= self.step]
            self.intervals = state.get("intervals") or {str(int(self.step)): state["interval"]}  # of earlier versions
            self.interval, self.seconds = self.intervals[str(int(self.step))], state["seconds"]
            self._best_row()
        except (tf.errors.OpError, AssertionError, OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
            raise Models.NetworkError(f"{self.out}: damaged, nothing to go on from ({error!r:.90}); "
                                      "start again with another --out") from None
        if state.get("fingerprint", self.fingerprint) != self.fingerprint:  # earlier versions did not note it
            raise Dataset.UserError(f"{self.out}: the training databases are no longer those that this training began "
                                    "with; bring those back, or start again with another --out")
        if self.step > self.total:
            raise Dataset.UserError(f"{self.out}: {int(self.step)} steps are done, --epochs {self.recipe.epochs} are "
                                    f"{self.total}; ask for more, or leave it out")

    def run(self):
        """Train to the end; yields {"step", "loss"} every REPORT_STEPS steps, and a row of the curve at each measure.

        Ctrl-C finishes the step, saves to last/, then raises KeyboardInterrupt.
        """
        writers = self._open_summaries()
        for folder in self.out, self.out / "last":
            Dataset.write_whole(folder / Models.DESCRIPTION, self.description)
        with self._interruptible():
            started, first = time.monotonic(), int(self.step)
            for step, (seed, x, y) in enumerate(self.batches(first), first + 1):
                if self._impatient():
                    return
                loss = self.learn(seed, x, y)
                self.interval = [self.interval[0] + loss, self.interval[1] + 1]
                measure = step == self.total or step % min(self.steps_per_epoch, MEASURE_STEPS) == 0
                if measure or self.interrupted:
                    elapsed = time.monotonic() - started
                    self.seconds += elapsed
                    if measure:
                        with self.average.in_place():
                            self._measure(elapsed / max(step - first, 1), writers)
                    self._save_last()
                    if measure:
                        yield self.curve[-1]
                    started, first = time.monotonic(), step
                if self.interrupted:
                    raise KeyboardInterrupt
                if step % REPORT_STEPS == 0:
                    _must_be_finite(step, {"loss": float(loss)})
                    yield {"step": step, "loss": float(loss)}

    def result(self):
        """What metrics.json holds: accuracy of the best weights on validation and test, and the curve."""
        best = self._best_row()
        accuracy = {name: {"accuracy": best[f"{name}_accuracy"],
                           "correct": round(best[f"{name}_accuracy"] * dataset.nbdata), "faces": dataset.nbdata}
                    for name, dataset in self.measured.items() if name != "train"} if best else {}
        parameters = sum(math.prod(variable.shape) for variable in self.net.trainable_variables)
        return accuracy | {"best_step": best and best["step"], "parameters": parameters, "seconds": self.seconds,
                           "fingerprint": self.fingerprint, "intervals": self.intervals, "curve": self.curve}

    def _push(self, seed, x, y, share=1.0):
        """Faces moved, within `share` of the recipe's radius, to where the net, asked as after training, errs most."""
        return Attacks.push(lambda faces: self.net(tf.cast(faces, self.dtype)), x, tf.argmin(y, axis=1),
                            share * self.recipe.adversarial / Dataset.GREY_LEVELS, self.recipe.adversarial_steps,
                            tf.random.experimental.stateless_fold_in(seed, 1))

    def _learn(self, seed, x, targets):
        y, traits = targets[:, :2], targets[:, 2:]
        labels = y * (1.0 - self.recipe.label_smoothing) + self.recipe.label_smoothing / 2.0
        if self.teacher:
            taught = tf.nn.softmax(tf.cast(self.teacher(tf.cast(x, self.dtype)), tf.float32))
            labels = (1.0 - self.recipe.teaching) * labels + self.recipe.teaching * taught
        if self.recipe.adversarial:
            # From the full radius at once a net that is not robust may learn nothing but to answer alike always.
            rise = tf.cast(self.step + 1, tf.float32) / max(self.recipe.adversarial_rise * self.total, 1.0)
            x = self._push(seed, x, y, tf.minimum(rise, 1.0))
        x = tf.cast(x, self.dtype)
        with tf.GradientTape() as tape, Layers.dropout_seed(seed):
            features = self.net(x, False, True, last=-1)
            logits = tf.cast(self.net.sequence()[-1](features, False, True), tf.float32)
            loss = tf.reduce_mean(LOSSES[self.recipe.loss](labels, logits))
            if self.recipe.traits:
                loss += self.recipe.traits * self._traits_loss(features, traits)
            if self.recipe.l1:
                loss += self.recipe.l1 * tf.add_n([tf.reduce_sum(tf.abs(variable)) for variable in self.variables
                                                   if variable.shape.rank > 1])
        gradients = tape.gradient(loss, self.variables)
        self.optimizer.learning_rate.assign(scheduled_rate(self.recipe, self.step, self.total))
        self.optimizer.apply_gradients(zip(gradients, self.variables))
        self.step.assign_add(1)
        self.average.update(self.step)
        return loss

    def _traits_loss(self, features, traits):
        """Mean over the faces of the cross entropies of age band and ethnicity; of unknown ones it is zero."""
        logits = tf.cast(self.head(features), tf.float32)
        parts = [*Dataset.TRAITS.values()]
        # softmax_cross_entropy_with_logits has a gradient even where a code is zeros
        return -tf.add_n([tf.reduce_mean(tf.reduce_sum(code * tf.nn.log_softmax(answer), 1))
                          for code, answer in zip(tf.split(traits, parts, 1), tf.split(logits, parts, 1))])

    def batches(self, first):
        """(seed, faces, labels) of the steps from `first` on, each prepared while the step before runs."""
        def rows():
            order = (-1, None)
            for step in range(first, self.total):
                epoch, position = divmod(step, self.steps_per_epoch)
                if order[0] != epoch:
                    order = epoch, self.train.order(epoch)
                chosen = order[1][position * self.recipe.batch_size:(position + 1) * self.recipe.batch_size]
                yield (self.recipe.seed, step), self.train.data.grey(chosen), self.targets[chosen]

        def prepare(seed, faces, labels):
            return seed, *augment(faces, labels, self.recipe.augment, seed)

        signature = (tf.TensorSpec([2], tf.int32), tf.TensorSpec([None, Dataset.DIM], tf.uint8),
                     tf.TensorSpec([None, self.targets.shape[1]]))
        batches = tf.data.Dataset.from_generator(rows, output_signature=signature)
        return batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _measure(self, seconds_per_step, writers):
        """Add a row to the curve, save the weights where they are the best so far, write the summaries."""
        step = int(self.step)
        row = {"step": step, "epoch": step / self.steps_per_epoch, "seconds": self.seconds,
               "images_per_second": self.faces_per_step / seconds_per_step,
               "learning_rate": float(self.optimizer.learning_rate),
               "loss": float(self.interval[0]) / self.interval[1]}
        for name, dataset in self.measured.items():
            row |= _scores(name, dataset.label, dataset.logits(self.predict), self.recipe.loss)
        if self.recipe.adversarial:
            row |= _scores("attacked", self.measured["validation"].label, self._attacked_logits(), self.recipe.loss)
        _must_be_finite(step, row)
        self.curve.append(row)
        self.interval = [0.0, 0]
        if self._best_row() is row:
            self._save(self.best)
        self._write_summaries(row, writers)

    def _attacked_logits(self):
        """What the net says of the validation part after it was moved as the faces to learn are: [N, 2]."""
        part = self.measured["validation"]
        starts = range(0, part.nbdata, part.batchSize)
        return np.concatenate([
            self.predict(self.push((self.recipe.seed, start), part.data[start:start + part.batchSize],
                                   part.label[start:start + part.batchSize])) for start in starts])

    def _best_row(self):
        """The row with the least loss on the validation part, which varies less by chance than accuracy; on the
        attacked one in adversarial training."""
        name = "attacked" if self.recipe.adversarial else "validation"
        return min(self.curve, default=None, key=lambda row: row[f"{name}_{self.recipe.loss.replace('-', '_')}"])

    def _impatient(self):
        """Whether as many measures as the recipe's patience have passed since the best."""
        patience = self.recipe.patience
        return patience and self.curve and len(self.curve) - 1 - self.curve.index(self._best_row()) >= patience

    def _save(self, manager):
        """Save with the training's highest rate: a script of the course that restores the optimizer learns on at it."""
        self.optimizer.learning_rate.assign(peak_rate(self.recipe))
        manager.save(int(self.step))

    def _save_last(self):
        """Save to resume from. What metrics.json holds then is of this save and of the one before, so that a process
        which is killed between the two files can be resumed from either."""
        before = [(step, interval) for step, interval in self.intervals.items() if step == str(self.saved_step())]
        self.intervals = dict([*before, (str(int(self.step)), [float(self.interval[0]), self.interval[1]])])
        Dataset.write_whole(self.out / METRICS, json.dumps(self.result(), indent=1).encode())
        self._save(self.last)

    @contextlib.contextmanager
    def _interruptible(self):
        """Inside, the first Ctrl-C sets `interrupted`; the second one acts as ever. In a thread neither is seen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

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
            hparams.hparams({name: value if isinstance(value, (bool, int, float, str)) else " ".join(map(str, value))
                             for name, value in options.items() if value is not None and name not in NOT_COMPARED},
                            trial_id=self.logs.name)
        return writers

    def _write_summaries(self, row, writers):
        for name, writer in writers.items():
            # On the CPU: the histogram's operations are not deterministic on a GPU.
            with writer.as_default(step=row["step"]), tf.device("CPU:0"):
                tf.summary.scalar("accuracy", row[f"{name}_accuracy"])
                for loss in dict.fromkeys(["cross-entropy", self.recipe.loss]):
                    tf.summary.scalar(loss.replace("-", " "), row[f"{name}_{loss.replace('-', '_')}"])
                if name == "validation" and self.recipe.adversarial:
                    chosen = self.recipe.loss.replace("-", "_")
                    tf.summary.scalar("accuracy when attacked", row["attacked_accuracy"])
                    tf.summary.scalar(f"{chosen.replace('_', ' ')} when attacked", row[f"attacked_{chosen}"])
                if name == "train":
                    tf.summary.scalar("learning rate", row["learning_rate"])
                    tf.summary.scalar("loss", row["loss"])  # the mean since the last measure, of what is made small
                    self.net(tf.constant(self.train.data[:5]), True)
            writer.flush()
