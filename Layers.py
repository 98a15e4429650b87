"""The course's layers as tf.Module blocks, called `layer(x, log_summary=False, training=False)`, also positionally.

- Weights are made at the first call, when the input's width is known, as attributes `w` and `b`.
- `log_summary` writes mean, max and histogram of the weights to the current summary writer.
- A layer computes in the dtype of its input: given bfloat16 it computes in bfloat16. Its weights stay float32.

Names, signatures and defaults are those of the course's slides. Options beyond them, by keyword: activation (one of
ACTIVATIONS), initializer (one of INITIALIZERS), batchnorm (BatchNorm between the linear part and the activation).
"""
import contextlib
import math
import re

import tensorflow as tf

ACTIVATIONS = {"relu": tf.nn.relu, "leaky_relu": tf.nn.leaky_relu, "sigmoid": tf.nn.sigmoid, "none": tf.identity}

INITIALIZERS = {  # standard deviation of the weights
    "normal": lambda fan_in, fan_out: 0.1 * TRUNCATION,                     # the course: 0.1 before truncation
    "he": lambda fan_in, fan_out: math.sqrt(2.0 / fan_in),                  # He et al. 2015
    "xavier": lambda fan_in, fan_out: math.sqrt(2.0 / (fan_in + fan_out)),  # Glorot and Bengio 2010
}
TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal that is cut at two


def initial_weights(shape, initializer):
    """Weights of `shape` [..., inputs, outputs], drawn from a normal truncated at two standard deviations."""
    receptive = math.prod(shape[:-2])
    stddev = INITIALIZERS[initializer](receptive * shape[-2], receptive * shape[-1])
    return tf.random.truncated_normal(shape, stddev=stddev / TRUNCATION)


_seeds = []  # of each open `dropout_seed` scope the seed that its next dropout takes


@contextlib.contextmanager
def dropout_seed(seed):
    """Make dropout inside the scope a function of `seed` ([2] int32); outside it follows tf.random.set_seed."""
    _seeds.append(seed)
    try:
        yield
    finally:
        _seeds.pop()


def dropout(x, rate):
    """Set each value to zero with probability `rate`, scale the others by 1 / (1 - rate) (Srivastava et al. 2014)."""
    if not _seeds:
        return tf.nn.dropout(x, rate)
    seed, _seeds[-1] = tf.unstack(tf.random.split(_seeds[-1], 2))
    return tf.nn.experimental.stateless_dropout(x, rate, seed)


class _Layer(tf.Module):
    def __init__(self, name=None):
        # The slides' names hold spaces ("b10 cv0"); a tf.Module's name is an identifier, a scope begins with a letter.
        super().__init__(re.sub(r"^(?=[\d_])", "n", re.sub(r"[^A-Za-z0-9_]", "_", name or type(self).__name__)))

    def _log(self, wanted, *names):
        for tag, weights in ((f"{self.name}/{name}", getattr(self, name)) for name in names if wanted):
            tf.summary.scalar(f"{tag}/mean", tf.reduce_mean(weights))
            tf.summary.scalar(f"{tag}/max", tf.reduce_max(weights))
            tf.summary.histogram(tag, weights)


class _WeightLayer(_Layer):
    """What conv and fc share: the linear part, then BatchNorm (option batchnorm), activation and dropout."""

    def __init__(self, name, output_dim, dropout_rate, activation, batchnorm=False, initializer="normal"):
        super().__init__(name)
        for given, known in (activation, ACTIVATIONS), (initializer, INITIALIZERS):
            if given not in known:
                raise ValueError(f"layer {name}: unknown {given!r}; expected one of {', '.join(known)}")
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(f"layer {name}: dropout_rate {dropout_rate} is not in [0, 1)")
        self.output_dim, self.dropout_rate = output_dim, dropout_rate
        self.activation, self.initializer = activation, initializer
        self.bn = BatchNorm(f"{name} bn") if batchnorm else None

    def _apply(self, linear, x, kernel, log_summary, training, pool=tf.identity):
        """pool(activation(bn(linear(x, w) + b))) with w of shape kernel + [inputs, outputs]."""
        if not hasattr(self, "w"):
            with tf.init_scope():
                shape = [*kernel, x.shape[-1], self.output_dim]
                self.w = tf.Variable(initial_weights(shape, self.initializer), name="w")
                self.b = tf.Variable(tf.zeros([self.output_dim]), name="b")
        self._log(log_summary, "w", "b")
        with tf.name_scope(self.name):
            y = tf.nn.bias_add(linear(x, tf.cast(self.w, x.dtype)), tf.cast(self.b, x.dtype))
            if self.bn is not None:
                y = self.bn(y, log_summary, training)
            if self.dropout_rate and training:
                return pool(dropout(ACTIVATIONS[self.activation](y), self.dropout_rate))
            return ACTIVATIONS[self.activation](pool(y))  # the same, as activations never fall, on fewer pixels


class unflat(_Layer):
    """[?, H*W*D] -> [?, H, W, D]. `log_summary` shows the first 5 images, of the course's scale [-0.5, 0.5)."""

    def __init__(self, name, H, W, D):
        super().__init__(name)
        self.shape = [H, W, D]

    def __call__(self, x, log_summary=False, training=False):
        x = tf.reshape(x, [-1, *self.shape])
        if log_summary:
            tf.summary.image(self.name, tf.cast(x[..., :1], tf.float32) + 0.5, max_outputs=5)
        return x


class flat(_Layer):
    """[?, ...] -> [?, product of the rest]."""

    def __call__(self, x, log_summary=False, training=False):
        return tf.reshape(x, [-1, math.prod(x.shape[1:])])


class fc(_WeightLayer):
    """Fully connected: [?, N] -> [?, output_dim], activation(x w + b) with w [N, output_dim].

    Linear by default, as the course's. dropout_rate in [0, 1) acts on the output, when training.
    """

    def __init__(self, name, output_dim, dropout_rate=0.0, *, activation="none", **options):
        super().__init__(name, output_dim, dropout_rate, activation, **options)

    def __call__(self, x, log_summary=False, training=False):
        return self._apply(tf.matmul, x, [], log_summary, training)


class conv(_WeightLayer):
    """Convolution with SAME padding, then ReLU: [?, H, W, N] -> [?, ceil(H/stride), ceil(W/stride), output_dim].

    w is [filterSize, filterSize, N, output_dim], or [height, width, ...] where filterSize is such a pair;
    dropout_rate in [0, 1) acts on the output, when training; pool, a maxpool, goes ahead of the activation (slides).
    """

    def __init__(self, name, output_dim, filterSize, stride, dropout_rate=0.0, *, activation="relu", **options):
        super().__init__(name, output_dim, dropout_rate, activation, **options)
        self.kernel, self.stride = [*filterSize] if hasattr(filterSize, "__len__") else [filterSize] * 2, stride

    def __call__(self, x, log_summary=False, training=False, pool=tf.identity):
        if len(x.shape) != 4 or hasattr(self, "w") and x.shape[3] != self.w.shape[2]:  # TensorFlow aborts, or groups
            raise ValueError(f"layer {self.name}: got {x.shape}, expected [?, H, W, N] as unflat makes, N as at first")
        return self._apply(lambda x, w: tf.nn.conv2d(x, w, self.stride, "SAME"), x, self.kernel, log_summary, training,
                           pool)


class maxpool(_Layer):
    """Maximum over poolSize x poolSize squares: [?, H, W, N] -> [?, ceil(H/poolSize), ceil(W/poolSize), N]."""

    def __init__(self, name, poolSize):
        super().__init__(name)
        self.poolSize = poolSize

    def __call__(self, x, log_summary=False, training=False):
        return tf.nn.max_pool2d(x, self.poolSize, self.poolSize, "SAME")


class BatchNorm(_Layer):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015): [..., N] -> [..., N].

    Training: (x - mean) / sqrt(variance + epsilon) * gamma + beta with the batch's own moments, and
    average <- decay * average + (1 - decay) * moment. Otherwise, and always if `frozen`, the same with the averages.
    Attributes gamma, beta (trained), mean, variance (moving averages), each [N] float32.
    """

    def __init__(self, name="bn", decay=0.99, epsilon=0.01):
        super().__init__(name)
        self.decay, self.epsilon, self.frozen = decay, epsilon, False

    def __call__(self, x, log_summary=False, training=False):
        depth, training = x.shape[-1], bool(training) and not self.frozen
        if not hasattr(self, "gamma"):
            with tf.init_scope():
                for name, first in ("gamma", tf.ones), ("beta", tf.zeros), ("mean", tf.zeros), ("variance", tf.ones):
                    setattr(self, name, tf.Variable(first([depth]), trainable=name in ("gamma", "beta"), name=name))
        self._log(log_summary, "gamma", "beta")
        if not training and tf.config.list_physical_devices("GPU"):  # its fused kernel has no deterministic gradient
            return tf.nn.batch_normalization(x, self.mean, self.variance, self.beta, self.gamma, self.epsilon)
        image = x if len(x.shape) == 4 else tf.reshape(x, [-1, 1, 1, depth])
        image = tf.cast(image, tf.float32) if x.dtype == tf.float64 else image  # the fused kernel knows no float64
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=image, scale=self.gamma, offset=self.beta, mean=[] if training else self.mean,
            variance=[] if training else self.variance, epsilon=self.epsilon, is_training=training)
        if training:
            # The fused kernel returns the unbiased variance; the paper averages the batch's own.
            count = tf.cast(tf.size(image) // depth, tf.float32)
            variance *= (count - 1.0) / count
            self.mean.assign_sub((1.0 - self.decay) * (self.mean - mean))
            self.variance.assign_sub((1.0 - self.decay) * (self.variance - variance))
        return tf.cast(tf.reshape(y, tf.shape(x)), x.dtype)


class DenseBlock(_Layer):
    """nb_conv times {y = conv(x); x = concat(x, y)}, maxpool 2, then a 1x1 conv to output_dim.

    [?, H, W, N] -> [?, ceil(H/2), ceil(W/2), output_dim]. Attributes `block` (the list of conv), `mp`, `cv`.
    Slide "A DenseNet Block"; the idea is Huang et al. 2017.
    """

    def __init__(self, name, nb_conv, nb_filter, output_dim, filterSize, stride, dropout_rate=0.0, **options):
        super().__init__(name)
        self.block = [conv(f"{name} cv{i}", nb_filter, filterSize, stride, dropout_rate, **options)
                      for i in range(nb_conv)]
        self.mp, self.cv = maxpool("pool", 2), conv(f"{name} red", output_dim, 1, 1, dropout_rate, **options)

    def __call__(self, x, log_summary=False, training=False):
        parts = [x]
        for layer in self.block[:-1]:
            parts.append(layer(tf.concat(parts, axis=3), log_summary, training))
        # Each part is pooled for itself, so that they are joined where a quarter of the pixels is left.
        last = [layer(tf.concat(parts, axis=3), log_summary, training, self.mp) for layer in self.block[-1:]]
        return self.cv(tf.concat([*map(self.mp, parts), *last], axis=3), log_summary, training)


class ResidualBlock(_Layer):
    """activation(x + conv(conv(x))): [?, H, W, N] -> [?, ceil(H/stride), ceil(W/stride), output_dim] (He et al. 2015).

    Where the depths differ, or the stride is not 1, x goes through a linear 1x1 convolution (attribute `cv`) first.
    """

    def __init__(self, name, output_dim, filterSize, stride, dropout_rate=0.0, *, activation="relu", **options):
        super().__init__(name)
        self.cv1 = conv(f"{name} cv1", output_dim, filterSize, stride, dropout_rate, activation=activation, **options)
        self.cv2 = conv(f"{name} cv2", output_dim, filterSize, 1, activation="none", **options)
        self.cv = conv(f"{name} lin", output_dim, 1, stride, activation="none", **options)
        self.activation = activation

    def __call__(self, x, log_summary=False, training=False):
        y = self.cv2(self.cv1(x, log_summary, training), log_summary, training)
        if x.shape[-1] != self.cv.output_dim or self.cv.stride != 1:
            x = self.cv(x, log_summary, training)
        return ACTIVATIONS[self.activation](x + y)
