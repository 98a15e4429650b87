"""The networks, built of Layers: by name and meta-parameters, or rebuilt from a checkpoint.

Every net is called `net(x, log_summary=False, training=False)`: [?, 2304] in the course's scale -> [?, 2] logits,
column 0 = man, 1 = woman; with last=-1 it gives what its last layer, an fc, is given. It is built when constructed,
by one call on zeros. Its attribute `description` is the JSON that rebuilds it: its class and the constructor's options.
"""
import inspect
import itertools
import json
import re
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

import Dataset
import Layers

DESCRIPTION = "network.json"


class NetworkError(Dataset.UserError):
    """A net that cannot be built, or a checkpoint that cannot be restored."""


class Network(tf.Module):
    """Base of the nets: `__init__` makes the layers and ends with `_build`, `sequence()` is the order of their calls.

    Every net takes `dropout` (share of convolutions' outputs) and its layers' batchnorm, activation and initializer.
    """

    def __call__(self, x, log_summary=False, training=False, last=None):
        layers = self.sequence()[:last]
        while layers:
            layer, *layers = layers
            pooled = isinstance(layer, Layers.conv) and layers and isinstance(layers[0], Layers.maxpool)
            x = layer(x, log_summary, training, *[layers.pop(0)] if pooled else [])
        return x

    def _build(self, arguments):
        for layer in self.submodules:
            if isinstance(layer, Layers.BatchNorm):
                layer.decay = 0.9  # the course's 0.99 lags behind early weights: 5 points of accuracy after 8 epochs
        options = {name: arguments[name] for name in inspect.signature(type(self)).parameters if name != "layer"}
        self.description = json.dumps({"network": type(self).__name__, "options": options | arguments["layer"]})
        self(tf.zeros([1, Dataset.DIM]))

    def variables_by_path(self):
        """{path: variable}, with the paths that tf.train.Checkpoint(net=self) gives."""
        found = self._flatten(predicate=lambda leaf: isinstance(leaf, tf.Variable), with_path=True)
        return {"/".join(map(str, ("net", *path))): variable for path, variable in found}


def _sizes(filter_size):
    return itertools.cycle([filter_size] if isinstance(filter_size, int) else filter_size)


def _fc(name, width, layer):
    return Layers.fc(name, width, initializer=layer.get("initializer", "normal"))


class Perceptron(Network):
    """nn1 and nn3: 2304 -> hidden, sigmoid -> 2. 115,352 parameters with 50 hidden."""

    def __init__(self, hidden=50, dropout=0.0, **layer):
        self.fc1 = Layers.fc("fc1", hidden, dropout, **{"activation": "sigmoid"} | layer)
        self.fc2 = _fc("fc2", 2, layer)
        self._build(locals())

    def sequence(self):
        return self.fc1, self.fc2


class SmallConvNet(Network):
    """Convolutions cv1, cv2, ..., each followed by maxpool 2, then fc.

    filters      depth of each convolution: (64, 32, 16) is nn4, 24,882 parameters; (3, 6, 12) the course's small one
    filter_size  kernel width, or list of widths or [height, width] that the convolutions take in turn
    """

    def __init__(self, filters=(64, 32, 16), filter_size=3, dropout=0.0, **layer):
        self.unflat, self.depth = Layers.unflat("unflat", 48, 48, 1), len(filters)
        for number, (depth, size) in enumerate(zip(filters, _sizes(filter_size)), 1):
            setattr(self, f"cv{number}", Layers.conv(f"cv{number}", depth, size, 1, dropout, **layer))
        self.mp, self.flat, self.fc = Layers.maxpool("pool", 2), Layers.flat(), _fc("fc", 2, layer)
        self._build(locals())

    def sequence(self):
        convolutions = [getattr(self, f"cv{number}") for number in range(1, self.depth + 1)]
        return self.unflat, *(layer for cv in convolutions for layer in (cv, self.mp)), self.flat, self.fc


class ConvNet(Network):
    """The deep one, layers in `list`: nb_block times (nb_conv convolutions, maxpool 2), then fc.

    filters      depth of each convolution, block by block, instead of nb_block, nb_conv, nb_filter: [[16, 16], [32]]
    filter_size  as SmallConvNet's: [[3, 1], [1, 3]] factorises each 3x3 into two (Szegedy et al. 2016)
    hidden       widths of fully connected layers before the last
    """

    def __init__(self, nb_block=4, nb_conv=1, nb_filter=16, filter_size=3, dropout=0.0, filters=(), hidden=(), **layer):
        blocks, sizes = filters or [[nb_filter] * nb_conv] * nb_block, _sizes(filter_size)
        self.list = [Layers.unflat("unflat", 48, 48, 1)]
        for i, block in enumerate(blocks):
            self.list += [Layers.conv(f"b{i}_cv{j}", depth, next(sizes), 1, dropout, **layer)
                          for j, depth in enumerate(block)]
            self.list.append(Layers.maxpool(f"b{i}_pool", 2))
        self.list += [Layers.flat(), *(_fc(f"fc{i}", width, layer) for i, width in enumerate((*hidden, 2), 1))]
        self._build(locals())

    def sequence(self):
        return self.list


class DenseNet(Network):
    """DenseBlocks in `list`, then fc1, fc2: [?, 48, 48, 1] -> [?, 3, 3, 32] -> [?, 50] -> [?, 2] by default."""

    def __init__(self, nb_block=4, nb_conv=2, nb_filter=16, output_dim=32, filter_size=3, hidden=50, dropout=0.0,
                 **layer):
        self.unflat = Layers.unflat("unflat", 48, 48, 1)
        self.list = [Layers.DenseBlock(f"b{i}", nb_conv, nb_filter, output_dim, filter_size, 1, dropout, **layer)
                     for i in range(nb_block)]
        self.flat = Layers.flat()
        self.fc1, self.fc2 = _fc("fc1", hidden, layer), _fc("fc2", 2, layer)
        self._build(locals())

    def sequence(self):
        return self.unflat, *self.list, self.flat, self.fc1, self.fc2


class ResNet(Network):
    """A convolution of stride 2, then nb_block stages of nb_conv residual blocks in `list`, spatial mean, fc.

    Stage i has depth nb_filter * 2**i and, but for the first, halves the picture: [?, 48, 48, 1] -> [?, 6, 6, 128].
    """

    def __init__(self, nb_block=3, nb_conv=1, nb_filter=32, filter_size=3, dropout=0.0, batchnorm=True,
                 initializer="he", **layer):
        layer |= dict(batchnorm=batchnorm, initializer=initializer)
        self.unflat = Layers.unflat("unflat", 48, 48, 1)
        self.cv = Layers.conv("cv", nb_filter, filter_size, 2, **layer)
        self.list = [Layers.ResidualBlock(f"b{i}_{j}", nb_filter * 2**i, filter_size, 2 if i and not j else 1, dropout,
                                          **layer) for i in range(nb_block) for j in range(nb_conv)]
        self.fc = _fc("fc", 2, layer)
        self._build(locals())

    def sequence(self):
        return self.unflat, self.cv, *self.list, lambda x, *_: tf.reduce_mean(x, [1, 2]), self.fc


NETWORKS = {  # name: (class, what the name fixes)
    "perceptron": (Perceptron, {}), "nn1": (Perceptron, {}), "nn3": (Perceptron, {}), "convnet": (ConvNet, {}),
    "densenet": (DenseNet, {}), "resnet": (ResNet, {}), "nn4": (SmallConvNet, {"filters": (64, 32, 16)}),
    "small": (SmallConvNet, {"filters": (3, 6, 12)})}
CLASSES = {network.__name__: network for network, _ in NETWORKS.values()}


def build(name, **options):
    """A new net by name and meta-parameters; an option that is None is left to the net. NetworkError for a name or an
    option that does not exist, ValueError for a value that makes no layer."""
    if name not in NETWORKS:
        raise NetworkError(f"unknown net {name!r}; expected one of {', '.join(NETWORKS)}")
    network, fixed = NETWORKS[name]
    known = {*inspect.signature(network).parameters, "batchnorm", "activation", "initializer"} - {"layer", *fixed}
    given = {option: value for option, value in options.items() if value is not None}
    if unknown := given.keys() - known:
        raise NetworkError(f"net {name} has no option {min(unknown)}; it has {', '.join(sorted(known))}")
    return network(**fixed, **given)


def find_checkpoint(path):
    """The prefix of a checkpoint: `path` itself (with or without .index), or in a folder the one saved last."""
    if Path(path).is_dir():
        noted = "".join(file.read_text("utf-8", "replace") for file in Path(path).glob("checkpoint") if file.is_file())
        order = {index: (bool(re.match(rf'model_checkpoint_path: "(.*[/\\])?{re.escape(index.stem)}"', noted)),
                         int(re.search(r"(\d*)$", index.stem)[1] or 0)) for index in Path(path).glob("*.index")}
        prefix = order and str(max(order, key=order.get).with_suffix(""))
    else:
        prefix = re.sub(r"\.(index|data-\d+-of-\d+)$", "", str(path))
    if not prefix or not Path(f"{prefix}.index").is_file():
        raise NetworkError(f"{path}: no checkpoint; expected a folder with one, or my_model-1 of my_model-1.index")
    return prefix


def load(path):
    """(net with its weights, prefix) of a checkpoint: a folder, whose last it is, or a prefix. Without network.json the
    net is rebuilt from its variables' paths and shapes, if it was written as on the course's slides; else NetworkError.
    """
    prefix = find_checkpoint(path)
    try:
        weights = _read_weights(tf.train.load_checkpoint(prefix))
    except (tf.errors.OpError, RuntimeError, IndexError) as error:
        raise NetworkError(f"{prefix}: not a whole tf.train.Checkpoint of TensorFlow 2 ({error!r:.90})") from None
    if not weights:
        raise NetworkError(f"{prefix}: no net in it; expected variables net/..., of tf.train.Checkpoint(net=...)")
    description = Path(prefix).with_name(DESCRIPTION)
    net, weights = (_from_json if description.is_file() else _from_shapes)(description, weights)
    variables = net.variables_by_path()
    for path in sorted(variables.keys() | weights.keys()):
        here, there = (tuple(side[path].shape) if path in side else "missing" for side in (variables, weights))
        if here != there:
            raise NetworkError(f"{prefix}: checkpoint of another net than the {type(net).__name__} expected: "
                               f"{path} is {there} in the checkpoint, {here} in the net")
        variables[path].assign(weights[path])
    return net, prefix


def _read_weights(reader):
    """{path: value} of the variables under `net`, by the graph of objects: Keras's optimizers rename some on file."""
    nodes = TrackableObjectGraph.FromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")).nodes
    weights, seen = {}, set()
    reached = [("net", child.node_id) for child in nodes[0].children if child.local_name == "net"]
    for path, number in reached:  # grows while it is read
        if number not in seen:
            seen.add(number)
            weights |= {path: reader.get_tensor(value.checkpoint_key) for value in nodes[number].attributes}
            reached += [(f"{path}/{child.local_name}", child.node_id) for child in nodes[number].children]
    return weights


def _from_json(description, weights):
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        return CLASSES[content["network"]](**content["options"]), weights
    except (ValueError, KeyError, TypeError, AttributeError, OSError, StopIteration, tf.errors.OpError) as error:
        raise NetworkError(f"{description}: does not describe a net ({error!r:.90})") from None


def _from_shapes(description, weights):
    """The net that the course's variable paths and shapes tell of, and the weights under that net's own paths."""
    shape = {path.removeprefix("net/"): value.shape for path, value in weights.items()}
    batchnorm = any(path.endswith("/bn/gamma") for path in shape)

    def numbered(pattern):
        return sorted(int(match[1]) for path in shape if (match := re.fullmatch(pattern, path)))

    try:
        if numbers := numbered(r"cv(\d+)/w"):
            kernels = [shape[f"cv{number}/w"] for number in numbers]
            return SmallConvNet([k[3] for k in kernels], [k[:2] for k in kernels], batchnorm=batchnorm), weights
        if blocks := numbered(r"list/(\d+)/cv/w"):
            *size, _, nb_filter = shape["list/0/block/0/w"]
            nb_conv, output_dim = len(numbered(r"list/0/block/(\d+)/w")), shape["list/0/cv/w"][3]
            return DenseNet(len(blocks), nb_conv, nb_filter, output_dim, size, shape["fc1/w"][1],
                            batchnorm=batchnorm), weights
        if numbers := numbered(r"list/(\d+)/w"):
            layers = [f"list/{n}" for n in numbers] + [f"fc{n}" for n in ("", 1, 2) if f"fc{n}/w" in shape]
            kernels = [shape[f"list/{n}/w"] for n in numbers if len(shape[f"list/{n}/w"]) == 4]
            cvs, fcs = numbers[:len(kernels)], numbers[len(kernels):]
            # Where unflat is in the list, maxpool and flat stand between the last convolution and fc.
            if any(b - a > 2 for a, b in itertools.pairwise([-1, *cvs])) or cvs[0] and fcs and fcs[0] != cvs[-1] + 3:
                raise ValueError("maxpools elsewhere than after each block")
            blocks = []
            for n, kernel in zip(cvs, kernels):  # a number that is missing before a convolution is a maxpool
                blocks += [] if n - 1 in numbers else [[]]
                blocks[-1].append(kernel[3])
            hidden = [shape[f"{layer}/w"][1] for layer in layers[len(kernels):-1]]
            net = ConvNet(0, 0, 0, [k[:2] for k in kernels], 0.0, blocks, hidden, batchnorm=batchnorm)
            place = dict(zip(layers, (f"list/{i}" for i, layer in enumerate(net.list) if hasattr(layer, "w"))))
            return net, {re.sub(r"(?<=net/)(list/\d+|fc\d?)", lambda layer: place[layer[0]], path): value
                         for path, value in weights.items()}
        return Perceptron(shape["fc1/w"][1]), weights
    except (KeyError, ValueError, IndexError, AttributeError, tf.errors.OpError):
        raise NetworkError(f"{description}: no such file, and the checkpoint's variables are not named as in the "
                           f"course's nets: {', '.join(sorted(shape)[:3])}, ...") from None
