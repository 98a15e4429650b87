"""Each block against Keras's layers with equal parameters: values and gradients, in training and in use."""
import keras
import numpy as np
import pytest
import tensorflow as tf

import Layers

KERAS_ACTIVATIONS = {"relu": "relu", "leaky_relu": lambda x: keras.activations.leaky_relu(x, negative_slope=0.2),
                     "sigmoid": "sigmoid", "none": None}
ACTIVATIONS = list(KERAS_ACTIVATIONS)


@pytest.fixture(autouse=True)
def seed():
    tf.random.set_seed(0)


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def scatter(layer, seed=1):
    """Give every variable a random value, so that no bias is zero and no two values are equal."""
    generator = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(generator.uniform(0.2, 0.6, variable.shape) * generator.choice([-1, 1], variable.shape))
        if "variance" in variable.name:
            variable.assign(tf.abs(variable) + 0.5)


def values_and_gradients(f, x, variables):
    """f(x), and the gradients of a weighted sum of it with respect to x and to each variable."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = f(x)
        loss = tf.reduce_sum(y * normal(*y.shape, seed=2))
    return [y, *tape.gradient(loss, [x, *variables])]


def assert_twins(layer, twin, pairs, x, training=False):
    """`layer` and the Keras model `twin` agree; `pairs` tells which of our variables is which of Keras's."""
    scatter(layer)
    for ours, theirs in pairs:
        theirs.assign(ours)
    trained = [pair for pair in pairs if pair[0].trainable]
    ours = values_and_gradients(lambda x: layer(x, False, training), x, [pair[0] for pair in trained])
    theirs = values_and_gradients(lambda x: twin(x, training=training), x, [pair[1] for pair in trained])
    assert len(ours) == 2 + len(layer.trainable_variables) and np.isfinite(ours[0]).all()
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(b).max()))
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def weights(layer, twin):
    return [(layer.w, twin.kernel), (layer.b, twin.bias)]


def averages(bn, twin):
    return [(bn.gamma, twin.gamma), (bn.beta, twin.beta), (bn.mean, twin.moving_mean),
            (bn.variance, twin.moving_variance)]


def keras_batchnorm():
    return keras.layers.BatchNormalization(momentum=0.99, epsilon=0.01)


class KerasConv:
    """Conv2D, then BatchNormalization if asked for, then the activation."""

    def __init__(self, depth, size, stride=1, activation="relu", batchnorm=False):
        self.cv = keras.layers.Conv2D(depth, size, stride, padding="same")
        self.bn = keras_batchnorm() if batchnorm else None
        self.activation = keras.layers.Activation(KERAS_ACTIVATIONS[activation])

    def __call__(self, x):
        y = self.cv(x)
        return self.activation(y if self.bn is None else self.bn(y))

    def pairs(self, ours):
        return weights(ours, self.cv) + (averages(ours.bn, self.bn) if self.bn else [])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fc_is_keras_dense(activation):
    x = normal(6, 7)
    layer, twin = Layers.fc("fc", 5, activation=activation), keras.layers.Dense(5, KERAS_ACTIVATIONS[activation])
    layer(x), twin(x)
    for training in False, True:
        assert_twins(layer, twin, weights(layer, twin), x, training)


def test_fc_is_linear_and_conv_is_relu_by_default():
    x = normal(4, 6, 6, 2)
    cv, line = Layers.conv("cv", 3, 3, 1), Layers.fc("fc", 3)
    linear = Layers.conv("cv", 3, 3, 1, activation="none")
    linear(x)
    y = cv(x)
    linear.w.assign(cv.w)
    np.testing.assert_array_equal(y, np.maximum(linear(x), 0))
    assert np.min(linear(x)) < 0
    flat = Layers.flat()(x)
    y = line(flat)
    np.testing.assert_allclose(y, flat.numpy() @ line.w.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("side", [8, 9])
def test_conv_is_keras_conv2d_same(side, size, stride):
    x = normal(2, side, side, 3)
    layer, twin = Layers.conv("cv", 4, size, stride), KerasConv(4, size, stride)
    layer(x), twin(x)
    for training in False, True:
        assert_twins(layer, keras_model(twin, x), twin.pairs(layer), x, training)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv_activations_are_keras(activation):
    x = normal(2, 5, 5, 2)
    layer, twin = Layers.conv("cv", 3, 3, 1, activation=activation), KerasConv(3, 3, 1, activation)
    layer(x), twin(x)
    assert_twins(layer, keras_model(twin, x), twin.pairs(layer), x)


def keras_model(f, x):
    given = keras.Input(x.shape[1:])
    return keras.Model(given, f(given))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("side", [6, 7])
def test_maxpool_is_keras_maxpool_same(side, size):
    x = normal(2, side, side, 3)
    assert_twins(Layers.maxpool("pool", size), keras.layers.MaxPool2D(size, padding="same"), [], x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_convolution_pools_ahead_of_its_activation_as_after_it(activation, batchnorm, dropout_rate, training):
    layer = Layers.conv("cv", 5, 3, 1, dropout_rate, activation=activation, batchnorm=batchnorm)
    pool = Layers.maxpool("pool", 2)
    x = normal(2, 7, 6, 3)
    layer(x)
    scatter(layer)

    def result(f):
        with Layers.dropout_seed(tf.constant([1, 2])):
            return values_and_gradients(f, x, layer.trainable_variables)

    for ahead, after in zip(result(lambda x: layer(x, False, training, pool)),
                            result(lambda x: pool(layer(x, False, training)))):
        np.testing.assert_allclose(ahead, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout_rate, size", [(0.0, 3), (0.5, 6)])
def test_activations_work_on_the_pooled_pixels_where_nothing_is_dropped(monkeypatch, dropout_rate, size):
    sizes = []
    monkeypatch.setitem(Layers.ACTIVATIONS, "relu", lambda x: sizes.append(x.shape[1]) or tf.nn.relu(x))
    Layers.conv("cv", 4, 3, 1, dropout_rate)(normal(1, 6, 6, 2), False, True, Layers.maxpool("pool", 2))
    assert sizes == [size]
    sizes.clear()
    Layers.DenseBlock("b", 2, 4, 8, 3, 1)(normal(1, 6, 6, 2))
    assert sizes == [6, 3, 3]


def test_unflat_and_flat_keep_the_pixels_row_by_row():
    x = normal(3, 24)
    image = Layers.unflat("unflat", 2, 4, 3)(x)
    np.testing.assert_array_equal(image, x.numpy().reshape(3, 2, 4, 3))
    np.testing.assert_array_equal(Layers.flat()(image), x)


@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (16, 5)])
def test_batchnorm_is_keras_batchnormalization(shape):
    x = normal(*shape) * 3 + 1
    layer, twin = Layers.BatchNorm(), keras_batchnorm()
    layer(x), twin(x)
    for training in True, False:
        assert_twins(layer, twin, averages(layer, twin), x, training)


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (8, 2)])
def test_batchnorm_moving_averages_follow_keras(shape):
    layer, twin = Layers.BatchNorm("bn"), keras_batchnorm()
    for seed in range(6):
        x = normal(*shape, seed=seed) * (seed + 1) + 3
        np.testing.assert_allclose(layer(x, False, True), twin(x, training=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.mean, twin.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(layer.variance, twin.moving_variance, rtol=1e-5)
    assert np.abs(layer.mean).min() > 0.01
    kept = layer.mean.numpy()
    np.testing.assert_allclose(layer(x), twin(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.mean, kept)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (8, 3)])
def test_batchnorm_on_a_gpu_has_a_gradient_outside_training_that_is_deterministic(monkeypatch, shape):
    bn, x = Layers.BatchNorm(), tf.random.stateless_normal(shape, (0, 0)) * 3.0 + 1.0
    bn(x, False, True)
    bn.gamma.assign([0.5, 1.0, 2.0])
    bn.beta.assign([1.0, 0.0, -1.0])
    fused = bn(x)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    np.testing.assert_allclose(bn(x), fused, rtol=1e-5, atol=1e-6)
    graph = tf.function(lambda x: tf.gradients(bn(x), x)).get_concrete_function(x).graph
    assert not [operation.name for operation in graph.get_operations() if "FusedBatchNorm" in operation.type]


def test_batchnorm_takes_numpy_as_the_other_layers_do():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    np.testing.assert_array_equal(Layers.BatchNorm()(x, False, True), Layers.BatchNorm()(tf.constant(x), False, True))


def test_batchnorm_of_hand_worked_values():
    x = tf.constant([[1.0], [3.0], [8.0]])  # mean 4, variance 26 / 3
    layer = Layers.BatchNorm("bn", decay=0.9, epsilon=1.0)
    np.testing.assert_allclose(layer(x, False, True), (x - 4.0) / np.sqrt(26 / 3 + 1), rtol=1e-5)
    np.testing.assert_allclose(layer.mean, [0.4], rtol=1e-5)
    np.testing.assert_allclose(layer.variance, [0.9 + 2.6 / 3], rtol=1e-5)
    np.testing.assert_allclose(layer(x), (x - 0.4) / np.sqrt(1.9 + 2.6 / 3), rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv_normalises_between_linear_part_and_activation(activation, training):
    x = normal(4, 5, 5, 2)
    layer = Layers.conv("cv", 3, 3, 2, activation=activation, batchnorm=True)
    twin = KerasConv(3, 3, 2, activation, batchnorm=True)
    layer(x), twin(x)
    assert_twins(layer, keras_model(twin, x), twin.pairs(layer), x, training)


@pytest.mark.parametrize("training", [False, True])
def test_fc_normalises_between_linear_part_and_activation(training):
    x = normal(12, 6)
    layer = Layers.fc("fc", 4, activation="sigmoid", batchnorm=True)
    dense, bn = keras.layers.Dense(4), keras_batchnorm()
    twin = keras_model(lambda x: keras.activations.sigmoid(bn(dense(x))), x)
    layer(x)
    assert_twins(layer, twin, weights(layer, dense) + averages(layer.bn, bn), x, training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"batchnorm": True}, {"activation": "leaky_relu"}], ids=str)
def test_dense_block_is_its_keras_composition(options, training):
    x = normal(3, 7, 6, 5)
    layer = Layers.DenseBlock("b10", 2, 4, 6, 3, 1, **options)
    layer(x)
    convolutions, reduction = [KerasConv(4, 3, **options) for _ in range(2)], KerasConv(6, 1, **options)

    def compose(x):
        for cv in convolutions:
            x = keras.layers.Concatenate()([x, cv(x)])
        return reduction(keras.layers.MaxPool2D(2, padding="same")(x))

    twin = keras_model(compose, x)
    pairs = [pair for ours, theirs in zip([*layer.block, layer.cv], [*convolutions, reduction])
             for pair in theirs.pairs(ours)]
    assert layer(x).shape == (3, 4, 3, 6)
    assert_twins(layer, twin, pairs, x, training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"batchnorm": True, "activation": "leaky_relu"}], ids=str)
@pytest.mark.parametrize("depth, stride", [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_residual_block_is_its_keras_composition(depth, stride, options, training):
    x = normal(3, 7, 6, 3)
    layer = Layers.ResidualBlock("b0 0", depth, 3, stride, **options)
    layer(x)
    activation, batchnorm = options.get("activation", "relu"), options.get("batchnorm", False)
    cv1 = KerasConv(depth, 3, stride, activation, batchnorm)
    cv2 = KerasConv(depth, 3, 1, "none", batchnorm)
    blocks = [(layer.cv1, cv1), (layer.cv2, cv2)]
    line = KerasConv(depth, 1, stride, "none", batchnorm)
    straight = depth == 3 and stride == 1
    if not straight:
        blocks.append((layer.cv, line))

    def compose(x):
        total = keras.layers.Add()([x if straight else line(x), cv2(cv1(x))])
        return keras.layers.Activation(KERAS_ACTIVATIONS[activation])(total)

    twin = keras_model(compose, x)
    assert hasattr(layer.cv, "w") != straight
    assert_twins(layer, twin, [pair for ours, theirs in blocks for pair in theirs.pairs(ours)], x, training)


KERAS_INITIALIZERS = {"normal": keras.initializers.TruncatedNormal(stddev=0.1, seed=1),
                      "he": keras.initializers.HeNormal(seed=1), "xavier": keras.initializers.GlorotNormal(seed=1)}


@pytest.mark.parametrize("initializer", KERAS_INITIALIZERS)
@pytest.mark.parametrize("layer, inputs", [("conv", 32), ("fc", 800)])
def test_initial_weights_are_distributed_as_keras(initializer, layer, inputs):
    tf.random.set_seed(4)
    if layer == "conv":
        made = Layers.conv("cv", 128, 5, 1, initializer=initializer)
        made(tf.zeros([1, 6, 6, inputs]))
    else:
        made = Layers.fc("fc", 128, initializer=initializer)
        made(tf.zeros([1, inputs]))
    ours, theirs = np.ravel(made.w), np.ravel(KERAS_INITIALIZERS[initializer](made.w.shape))
    assert ours.size == 102400
    assert abs(ours.mean()) < 0.02 * ours.std()
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.01)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.005)
    share = [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98]
    np.testing.assert_allclose(np.quantile(ours, share), np.quantile(theirs, share), atol=0.02 * ours.std())
    np.testing.assert_array_equal(made.b, np.zeros(128))


def test_initial_weights_have_the_deviations_of_the_papers():
    tf.random.set_seed(5)
    for initializer, stddev in ("normal", 0.087963), ("he", np.sqrt(2 / 800)), ("xavier", np.sqrt(2 / 4000)):
        drawn = Layers.initial_weights([5, 5, 32, 128], initializer).numpy()
        cut = 2 * stddev / 0.87963
        assert drawn.std() == pytest.approx(stddev, rel=0.01)
        assert 0.99 * cut < np.abs(drawn).max() <= 1.0001 * cut


def test_initializer_is_normal_by_default():
    tf.random.set_seed(6)
    for layer, shape in (Layers.fc("fc", 100), [1, 1000]), (Layers.conv("cv", 100, 3, 1), [1, 4, 4, 100]):
        layer(tf.zeros(shape))
        assert np.std(layer.w) == pytest.approx(0.0879626, rel=0.01)


def dropping(kind, rate, **options):
    """A layer that drops, its input, and its output without dropout; no output is zero by itself."""
    if kind == "conv":
        layer, x = Layers.conv("cv", 16, 3, 1, rate, activation="sigmoid", **options), normal(8, 12, 12, 3)
    else:
        layer, x = Layers.fc("fc", 200, rate, activation="sigmoid", **options), normal(100, 20)
    return layer, x, layer(x).numpy()


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["conv", "fc"])
def test_dropout_zeroes_its_share_and_scales_the_others(kind, rate):
    tf.random.set_seed(7)
    layer, x, whole = dropping(kind, rate)
    dropped = layer(x, False, True).numpy()
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], whole[kept] / (1 - rate), rtol=1e-6)
    assert 1 - kept.mean() == pytest.approx(rate, abs=0.015)
    assert dropped.mean() == pytest.approx(whole.mean(), rel=0.03)
    with Layers.dropout_seed(tf.constant([1, 2])):
        seeded = layer(x, False, True).numpy()
    assert np.mean(seeded == 0) == pytest.approx(rate, abs=0.015)
    np.testing.assert_allclose(seeded[seeded != 0], whole[seeded != 0] / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "fc"])
def test_dropout_is_off_outside_training(kind):
    layer, x, whole = dropping(kind, 0.5)
    np.testing.assert_array_equal(layer(x, False, False), whole)
    with Layers.dropout_seed(tf.constant([1, 2])):
        np.testing.assert_array_equal(layer(x), whole)


def test_dropout_rate_zero_changes_nothing_in_training():
    layer, x, whole = dropping("fc", 0.0)
    np.testing.assert_array_equal(layer(x, False, True), whole)


def test_dropout_rate_is_the_last_positional_argument():
    assert Layers.fc("fc", 5, 0.25).dropout_rate == 0.25
    assert Layers.conv("cv", 5, 3, 1, 0.25).dropout_rate == 0.25
    block = Layers.DenseBlock("b", 2, 4, 6, 3, 1, 0.25)
    assert [cv.dropout_rate for cv in (*block.block, block.cv)] == [0.25] * 3


def two_dropping():
    layers = [Layers.fc(name, 100, 0.5, activation="sigmoid") for name in ("one", "two")]
    for layer in layers:
        layer(tf.zeros([1, 10]))
    return layers


def masks(layers, x, seed):
    with Layers.dropout_seed(seed):
        return [layer(x, False, True).numpy() == 0 for layer in layers]


def test_dropout_seed_alone_determines_what_is_dropped():
    layers, x = two_dropping(), normal(50, 10)
    first = masks(layers, x, tf.constant([3, 4]))
    tf.random.set_seed(99)
    again = masks(layers, x, tf.constant([3, 4]))
    other = masks(layers, x, tf.constant([3, 5]))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert np.mean(a == c) == pytest.approx(0.5, abs=0.04)
    assert np.mean(first[0] == first[1]) == pytest.approx(0.5, abs=0.04)


def test_dropout_seed_is_an_input_of_a_traced_step():
    layers, x = two_dropping(), normal(50, 10)
    traces = []

    @tf.function
    def step(seed):
        traces.append(1)
        with Layers.dropout_seed(seed):
            return [layer(x, False, True) for layer in layers]

    for seed in (3, 4), (3, 5), (3, 4):
        for traced, eager in zip(step(tf.constant(seed)), masks(layers, x, tf.constant(seed))):
            np.testing.assert_array_equal(traced.numpy() == 0, eager)
    assert len(traces) == 1


def test_dropout_follows_the_global_seed_outside_a_scope():
    layer, x, _ = dropping("fc", 0.5)
    with Layers.dropout_seed(tf.constant([1, 2])):
        layer(x, False, True)
    drawn = []
    for seed in 1, 1, 2:
        tf.random.set_seed(seed)
        drawn.append(layer(x, False, True).numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


def test_dropout_seed_scope_ends_with_an_error():
    layer, x, _ = dropping("fc", 0.5)
    with pytest.raises(ZeroDivisionError), Layers.dropout_seed(tf.constant([1, 2])):
        1 / 0
    tf.random.set_seed(1)
    first = layer(x, False, True)
    assert np.any(first != layer(x, False, True))


def test_dropout_seed_scopes_nest():
    x, drawn = tf.ones([1000]), []
    for global_seed in 1, 2:
        tf.random.set_seed(global_seed)
        with Layers.dropout_seed(tf.constant([1, 2])):
            with Layers.dropout_seed(tf.constant([3, 4])):
                inner = Layers.dropout(x, 0.5)
            drawn.append([inner, Layers.dropout(x, 0.5)])
    with Layers.dropout_seed(tf.constant([3, 4])):
        np.testing.assert_array_equal(inner, Layers.dropout(x, 0.5))
    np.testing.assert_array_equal(*drawn)


BLOCKS = {"fc": (Layers.fc("fc", 9, batchnorm=True), (8, 7)),
          "conv": (Layers.conv("cv", 4, 3, 2, batchnorm=True), (4, 6, 6, 3)),
          "maxpool": (Layers.maxpool("pool", 2), (4, 6, 6, 3)),
          "batchnorm": (Layers.BatchNorm(), (4, 6, 6, 3)),
          "dense block": (Layers.DenseBlock("b0", 2, 4, 5, 3, 1), (4, 6, 6, 3)),
          "residual block": (Layers.ResidualBlock("b0", 5, 3, 2, batchnorm=True), (4, 6, 6, 3))}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_bfloat16_is_near_float32_and_keeps_float32_weights(name, training):
    layer, shape = BLOCKS[name]
    x = normal(*shape)
    exact = layer(x, False, training)
    rough = layer(tf.cast(x, tf.bfloat16), False, training)
    assert exact.dtype == tf.float32 and rough.dtype == tf.bfloat16
    assert {variable.dtype for variable in layer.variables} <= {tf.float32}
    scale = np.abs(exact).max()
    np.testing.assert_allclose(tf.cast(rough, tf.float32), exact, atol=0.03 * scale)
    assert np.any(tf.cast(rough, tf.float32) != exact)


def test_bfloat16_gives_float32_gradients_near_those_of_float32():
    layer, x = Layers.conv("cv", 4, 3, 1), normal(8, 6, 6, 3)
    layer(x)
    gradients = []
    for dtype in tf.float32, tf.bfloat16:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.cast(layer(tf.cast(x, dtype)), tf.float32)))
        gradients.append(tape.gradient(loss, [layer.w, layer.b]))
    for exact, rough in zip(*gradients):
        assert rough.dtype == tf.float32
        np.testing.assert_allclose(rough, exact, atol=0.03 * np.abs(exact).max())


def test_weights_are_made_at_the_first_call_and_kept():
    fc, cv = Layers.fc("fc", 5), Layers.conv("cv", 4, 3, 1)
    assert not fc.variables and not cv.variables
    fc(tf.zeros([2, 7])), cv(tf.zeros([2, 6, 6, 3]))
    assert fc.w.shape == (7, 5) and fc.b.shape == (5,)
    assert cv.w.shape == (3, 3, 3, 4) and cv.b.shape == (4,)
    kept = cv.w, fc.w
    fc(tf.zeros([3, 7])), cv(tf.zeros([1, 9, 9, 3]))
    assert kept == (cv.w, fc.w)
    assert len(cv.trainable_variables) == len(fc.trainable_variables) == 2


@pytest.mark.parametrize("name", ["conv", "batchnorm", "dense block"])
def test_weights_may_be_made_inside_a_traced_function(name):
    make = {"conv": lambda: Layers.conv("cv", 2, 3, 1, batchnorm=True), "batchnorm": Layers.BatchNorm,
            "dense block": lambda: Layers.DenseBlock("b", 1, 2, 3, 3, 1)}[name]
    layer, x = make(), normal(1, 4, 4, 1)
    traced = tf.function(layer)(x)
    np.testing.assert_allclose(traced, layer(x), rtol=1e-5, atol=1e-6)
    assert np.any(traced != 0)


def test_flags_are_taken_by_position_and_by_name():
    layer, x, whole = dropping("fc", 0.5)
    np.testing.assert_array_equal(layer(x, log_summary=False), whole)
    assert np.any(layer(x, training=True) != whole)
    assert np.any(layer(x, False, True) != whole)


def layers_named(name):
    return [Layers.unflat(name, 4, 4, 1), Layers.conv(name, 2, 3, 1), Layers.maxpool(name, 2), Layers.fc(name, 3),
            Layers.DenseBlock(name, 1, 2, 3, 3, 1), Layers.ResidualBlock(name, 2, 3, 1), Layers.BatchNorm(name)]


@pytest.mark.parametrize("name, cleaned", [("b10 cv0", "b10_cv0"), ("conv-1", "conv_1"), ("fc", "fc")])
def test_names_of_the_slides_become_identifiers(name, cleaned):
    for layer in layers_named(name):
        assert layer.name == cleaned


@pytest.mark.parametrize("name", ["3x3", "_3", " cv0", "b10 cv0", "b0 réduit"])
def test_names_serve_eagerly_and_traced(name):
    for layer in layers_named(name):
        x = normal(2, 4) if isinstance(layer, Layers.fc) else normal(2, 4, 4, 1)
        np.testing.assert_allclose(tf.function(layer)(x), layer(x), rtol=1e-5, atol=1e-6)


def read_events(folder):
    """{tag: numpy value} of every summary in the folder's event files."""
    found = {}
    for path in sorted(folder.glob("*.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                found[value.tag] = tf.make_ndarray(value.tensor)
    return found


def written(folder, layer, x, traced=False):
    layer(x)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=3):
        (tf.function(layer) if traced else layer)(x, True)
        layer(x, False)
    writer.close()
    return read_events(folder)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name, layer, x", [("b10_cv0", Layers.conv("b10 cv0", 8, 3, 1), normal(2, 5, 5, 3)),
                                            ("fc_1", Layers.fc("fc 1", 10, batchnorm=True), normal(2, 20))])
def test_log_summary_writes_mean_max_and_histogram_of_the_weights(tmp_path, name, layer, x, traced):
    layer(x)
    scatter(layer)
    found = written(tmp_path, layer, x, traced)
    weights = {f"{name}/w": layer.w, f"{name}/b": layer.b}
    if layer.bn is not None:
        weights |= {f"{name}/{name}_bn/gamma": layer.bn.gamma, f"{name}/{name}_bn/beta": layer.bn.beta}
    assert found.keys() == {f"{tag}{kind}" for tag in weights for kind in ("", "/mean", "/max")}
    for tag, values in ((tag, variable.numpy()) for tag, variable in weights.items()):
        assert found[f"{tag}/mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert found[f"{tag}/max"] == values.max()
        left, right, count = found[tag].T
        assert left[0] == pytest.approx(values.min()) and right[-1] == pytest.approx(values.max())
        assert count.sum() == values.size
        np.testing.assert_allclose(left[1:], right[:-1], atol=1e-6)
        expected = np.searchsorted(np.sort(values.ravel()), right[:-1])
        assert np.abs(np.cumsum(count)[:-1] - expected).max() <= 1


@pytest.mark.parametrize("size", [3, np.int64(3), (3, 1), [3, 1], np.array([3, 1])])
def test_a_kernel_is_a_number_or_a_pair_of_any_kind(size):
    layer = Layers.conv("cv", 2, size, 1)
    layer(normal(1, 5, 5, 2))
    assert layer.w.shape == [3, 3 if np.ndim(size) == 0 else 1, 2, 2]


def test_training_may_be_a_tensor_where_nothing_is_dropped():
    layer, x = Layers.conv("cv", 2, 3, 1), normal(1, 5, 5, 2)
    expected = layer(x)
    np.testing.assert_array_equal(tf.function(lambda x, t: layer(x, False, t))(x, tf.constant(True)), expected)


def test_log_summary_of_a_block_names_each_convolution(tmp_path):
    found = written(tmp_path, Layers.DenseBlock("b1", 2, 3, 4, 3, 1), normal(1, 4, 4, 2))
    assert {tag for tag in found if tag.endswith("w/max")} == {"b1_cv0/w/max", "b1_cv1/w/max", "b1_red/w/max"}


def test_log_summary_of_unflat_writes_the_first_five_images(tmp_path):
    grey = np.random.default_rng(8).integers(0, 256, [7, 6 * 4]).astype(np.uint8)
    x = tf.constant((grey - 128.0) / 256.0, tf.float32)
    found = written(tmp_path, Layers.unflat("un flat", 6, 4, 1), x)
    assert found.keys() == {"un_flat"}
    width, height, *pictures = found["un_flat"]
    assert (int(width), int(height), len(pictures)) == (4, 6, 5)
    for picture, row in zip(pictures, grey):
        shown = tf.io.decode_png(picture).numpy().astype(int)
        assert np.abs(shown[..., 0] - row.reshape(6, 4)).max() <= 1


def test_without_log_summary_nothing_is_written(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default(step=1):
        Layers.DenseBlock("b1", 1, 2, 3, 3, 1)(Layers.unflat("unflat", 4, 4, 1)(normal(2, 16)))
    writer.close()
    assert read_events(tmp_path) == {}


MAKERS = {"fc": lambda **options: Layers.fc("b10 x", 3, **options),
          "conv": lambda **options: Layers.conv("b10 x", 3, 3, 1, **options),
          "dense block": lambda **options: Layers.DenseBlock("b10 x", 1, 3, 4, 3, 1, **options),
          "residual block": lambda **options: Layers.ResidualBlock("b10 x", 3, 3, 1, **options)}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("options, message", [
    ({"activation": "tanh"}, "unknown 'tanh'; expected one of relu, leaky_relu, sigmoid, none"),
    ({"initializer": "zeros"}, "unknown 'zeros'; expected one of normal, he, xavier"),
    ({"dropout_rate": 1.0}, "dropout_rate 1.0 is not in [0, 1)"),
    ({"dropout_rate": -0.1}, "dropout_rate -0.1 is not in [0, 1)")], ids=str)
def test_bad_options_name_the_layer_and_the_choices(make, options, message):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert str(error.value).startswith("layer b10 x")
    assert message in str(error.value)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="batch_norm"):
        Layers.DenseBlock("b", 1, 3, 4, 3, 1, batch_norm=True)


@pytest.mark.parametrize("make", [lambda: Layers.conv("a", 3, 3, 1), lambda: Layers.ResidualBlock("a", 3, 3, 1),
                                  lambda: Layers.DenseBlock("a", 1, 3, 3, 3, 1)])
@pytest.mark.parametrize("x", [normal(2, 2304), normal(2, 48, 48)], ids=["faces", "no channel"])
def test_a_convolution_of_what_is_no_image_is_refused(make, x):
    """TensorFlow's own kernel ends the process."""
    with pytest.raises(ValueError, match=r"layer a\w*: got \(2, .*\), expected \[\?, H, W, N\] as unflat makes"):
        make()(x)


def test_a_convolution_of_another_depth_than_at_first_is_refused():
    """TensorFlow would convolve groups of the channels."""
    layer = Layers.conv("a", 3, 3, 1)
    y = layer(normal(2, 6, 6, 1))
    with pytest.raises(ValueError, match=r"layer a: got \(2, 6, 6, 3\), expected .* N as at first"):
        layer(y)
    assert layer(normal(5, 4, 4, 1)).shape == (5, 4, 4, 3)


@pytest.mark.parametrize("training", [False, True, 0, 1, np.True_])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 2, 3)])
def test_batchnorm_computes_float64_in_float32(shape, training):
    x = normal(*shape)
    found = Layers.BatchNorm()(tf.cast(x, tf.float64), False, training)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, Layers.BatchNorm()(x, False, bool(training)), atol=1e-6)
