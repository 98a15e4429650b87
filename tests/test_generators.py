"""benchmarks/generators.py: the learned generators against hand-worked values, at budgets of seconds."""
import numpy as np
import pytest
import tensorflow as tf

import Dataset
import Layers
import Training

from benchmarks import generators, samplers
from conftest import write_database


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(generators, "WIDTH", 8)
    monkeypatch.setattr(generators, "BATCH", 32)


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return Dataset.read_faces(write_database(tmp_path_factory.mktemp("faces"), "some", 64))


def test_up_is_keras_s_transposed_convolution():
    x = tf.random.stateless_normal([2, 3, 5, 4], [0, 0])
    layer = generators.up("up", 6, 4, 2, activation="none")
    y = layer(x)
    keras = tf.keras.layers.Conv2DTranspose(6, 4, 2, "same")
    keras.build(x.shape)
    keras.set_weights([tf.transpose(layer.w, [0, 1, 3, 2]), layer.b])
    assert y.shape == [2, 6, 10, 6]
    np.testing.assert_allclose(y, keras(x), atol=1e-5)


def test_the_autoencoder_learns_eight_faces_by_heart(grey, monkeypatch):
    monkeypatch.setattr(generators, "WIDTH", 32)  # the faces are mostly noise
    few = grey[:4]
    learned = generators.AutoEncoder(few, count=16, steps=300)
    both = np.concatenate([few, few.reshape(-1, 48, 48)[:, :, ::-1].reshape(-1, Dataset.DIM)]).astype(float)
    error = np.square(learned.picture(learned.codes) - both).mean()
    assert learned.codes.shape == (8, 16) and learned.codes.dtype == np.float32
    assert error < 0.1 * both.var(0).mean()


def test_gaussians_of_its_codes_are_sampled(grey):
    learned = generators.AutoEncoder(grey, count=8, steps=20)
    sampler = samplers.Gaussians(learned, np.arange(2 * len(grey)) % 2, 8)
    drawn = sampler.sample(30, np.random.default_rng(3))
    assert drawn.shape == (30, Dataset.DIM) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, sampler.sample(30, np.random.default_rng(3)))


def test_r1_of_a_linear_critic_is_half_the_weight_times_its_squared_length():
    critic = Layers.fc("fc", 1)
    real = tf.random.stateless_normal([5, 3], [0, 0])
    critic(real)
    critic.w.assign([[1.0], [-2.0], [2.0]])
    with tf.GradientTape() as tape:
        penalty = generators.r1(critic, real)
    np.testing.assert_allclose(penalty, generators.R1_WEIGHT / 2 * 9.0, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(penalty, critic.w), generators.R1_WEIGHT * critic.w, rtol=1e-6)


@pytest.mark.parametrize("penalised", [False, True])
def test_one_pass_gives_the_gradients_of_both_losses(penalised, monkeypatch):
    monkeypatch.setattr(Training, "compute_dtype", lambda precision: tf.float32)
    painter = generators.Chain(3, [Layers.fc("fc", Dataset.DIM, activation="sigmoid")])
    critic = generators.Chain(Dataset.DIM, [Layers.fc("one", 5, activation="sigmoid"), Layers.fc("two", 1)])
    real, noise = tf.random.stateless_normal([4, Dataset.DIM], [0, 0]), tf.random.stateless_normal([4, 3], [0, 1])
    of_critic, of_painter, loss, fooling = generators.gradients(painter, critic, real, noise, penalised)
    with tf.GradientTape() as tape:
        said_real, said_fake = tf.sigmoid(critic(real)), tf.sigmoid(critic(painter(noise)))
        expected = tf.reduce_mean(-tf.math.log(said_real) - tf.math.log(1 - said_fake))
        total = expected + (generators.R1_STEPS * generators.r1(critic, real) if penalised else 0.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for one, other in zip(of_critic, tape.gradient(total, critic.trainable_variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    with tf.GradientTape() as tape:
        expected = tf.reduce_mean(-tf.math.log(tf.sigmoid(critic(painter(noise)))))
    np.testing.assert_allclose(fooling, expected, rtol=1e-5)
    for one, other in zip(of_painter, tape.gradient(expected, painter.trainable_variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_the_gan_s_faces_and_that_the_seed_decides(grey):
    one, other = (generators.Gan(grey, steps=3) for _ in range(2))
    drawn = one.sample(20, np.random.default_rng(5))
    assert drawn.shape == (20, Dataset.DIM) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, other.sample(20, np.random.default_rng(5)))
    assert (drawn != one.sample(20, np.random.default_rng(6))).any()
    assert (drawn != generators.Gan(grey, steps=3, seed=1).sample(20, np.random.default_rng(5))).any()


def test_the_gan_learns_where_the_bright_square_lies(grey):
    drawn = generators.Gan(grey, steps=150).sample(200, np.random.default_rng(0)).reshape(-1, 48, 48).astype(float)
    top, bottom = drawn[:, 4:20, 12:36].mean(), drawn[:, 28:44, 12:36].mean()
    assert top - drawn[:, :, :10].mean() > 10 and bottom - drawn[:, :, :10].mean() > 10
