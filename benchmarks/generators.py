"""Learned generators of faces, two rows of samplers.py: an autoencoder, whose codes become Gaussians, and a GAN.

Both are small: convolutions of stride 2 bring 48x48 pixels to 3x3, transposed ones bring them back. They compute in
bfloat16 where that is fast. Same seed, same machine, same faces.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console  # noqa: F401  first: it silences TensorFlow's start

import numpy as np
import tensorflow as tf

import Dataset
import Layers
import Models
import Training
from DataBases import faces

WIDTH = 16        # filters at 24x24 pixels, twice as many at each halving
BATCH = 64
REPORT_STEPS = 500
AT_ONCE = 1000    # faces that a trained net reads or paints at once

CODE_WEIGHT, DECODER_WEIGHT = 1e-2, 1e-4  # of the autoencoder
CODE_STEPS, CODE_RATE = 6_000, 2e-3

NOISE = 128       # inputs of the GAN's painter
GAN_STEPS, GAN_RATE = 10_000, 5e-4
R1_WEIGHT, R1_STEPS = 0.25, 16
AVERAGING = 0.999


class up(Layers.conv):
    """Transposed convolution, then ReLU: [?, H, W, N] -> [?, stride H, stride W, output_dim]; all else is as conv's."""

    def __call__(self, x, log_summary=False, training=False):
        def linear(x, w):
            shape = [tf.shape(x)[0], self.stride * x.shape[1], self.stride * x.shape[2], self.output_dim]
            return tf.nn.conv2d_transpose(x, tf.transpose(w, [0, 1, 3, 2]), shape, self.stride)
        return self._apply(linear, x, self.kernel, log_summary, training)


class Chain(Models.Network):
    """Layers called one after the other: [?, inputs] -> [?, what the last one gives]."""

    def __init__(self, inputs, layers):
        self.list, self.dtype = layers, Training.compute_dtype("auto")
        self.compiled = tf.function(self.fast, autograph=False, input_signature=[tf.TensorSpec([None, inputs])])
        self.compiled(tf.zeros([1, inputs]))

    def sequence(self):
        return self.list

    def fast(self, x, training=False):
        """The net's answer, computed in bfloat16 where the machine is built for it: float32."""
        return tf.cast(self(tf.cast(x, self.dtype), False, training), tf.float32)

    def all(self, x):
        """The answers to any number of inputs: [N, outputs] float32, NumPy."""
        return np.concatenate([self.compiled(x[start:start + AT_ONCE]) for start in range(0, len(x), AT_ONCE)])


def reading_net(outputs, **options):
    """A net from faces [?, 2304] in the course's scale to [?, outputs]; options  of its convolutions."""
    convolutions = [Layers.conv(f"cv{i}", WIDTH << i, 3, 2, initializer="he", **options) for i in range(4)]
    return Chain(Dataset.DIM, [Layers.unflat("unflat", Dataset.SIDE, Dataset.SIDE, 1), *convolutions, Layers.flat(),
                               Layers.fc("fc", outputs, initializer="xavier")])


def painting_net(inputs, **options):
    """A net from [?, inputs] to faces [?, 2304] in the course's scale; options  of all layers but the last."""
    options |= dict(initializer="he", activation="relu")
    return Chain(inputs, [Layers.fc("fc", 3 * 3 * 8 * WIDTH, **options), Layers.unflat("unflat", 3, 3, 8 * WIDTH),
                          *(up(f"up{i}", 4 * WIDTH >> i, 4, 2, **options) for i in range(3)),
                          up("face", 1, 4, 2, activation="none", initializer="xavier"), Layers.flat()])


def learn(name, grey, steps, seed, step):
    """Call step(number, faces [BATCH, 2304] in the course's scale) `steps` times, number from 1; what it returns, a
    dictionary of losses, is averaged and reported on stderr."""
    generator, sums = np.random.default_rng(seed), {}
    for number in range(1, steps + 1):
        batch = Dataset.to_float(grey[generator.integers(len(grey), size=BATCH)])
        sums = {key: sums.get(key, 0.0) + loss for key, loss in step(number, batch).items()}
        if number % REPORT_STEPS == 0:
            means = ", ".join(f"{key} {value / REPORT_STEPS:.3f}" for key, value in sums.items())
            print(f"{name}: step {number} of {steps}, {means}", file=sys.stderr, flush=True)
            sums = {}


class AutoEncoder:
    """A deterministic regularized autoencoder (Ghosh et al. 2020), learned from faces and their mirror images.

    It minimises the squared error of a face, CODE_WEIGHT / 2 |code|^2 and DECODER_WEIGHT / 2 |the decoder's weights|^2.
    It takes the place of samplers.Codes: a density is fitted to its codes afterwards.

    grey     [N, 2304] uint8
    codes    attribute, [2 N, count] float32, of the faces and then of their mirror images, in units of 1 / 256
    """

    def __init__(self, grey, count, steps=CODE_STEPS, seed=0):
        Training.make_deterministic(seed)
        encoder, self.decoder = reading_net(count, batchnorm=True), painting_net(count)
        variables = [*encoder.trainable_variables, *self.decoder.trainable_variables]
        weights = [variable for variable in self.decoder.trainable_variables if variable.shape.rank > 1]
        optimizer = tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(CODE_RATE, steps))
        optimizer.build(variables)

        @tf.function(autograph=False)
        def step(x):
            with tf.GradientTape() as tape:
                codes = encoder.fast(x, training=True)
                error = squares(self.decoder.fast(codes, training=True) - x)
                loss = (error + CODE_WEIGHT / 2 * squares(codes)
                        + DECODER_WEIGHT * tf.add_n([tf.nn.l2_loss(weight) for weight in weights]))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
            return {"squared error": error, "loss": loss}

        both = faces.with_mirrors(grey)
        learn("autoencoder", both, steps, seed, lambda _, x: step(tf.constant(x)))
        self.codes = Dataset.GREY_LEVELS * encoder.all(Dataset.to_float(both))

    def picture(self, codes):
        """The faces of codes [n, count]: [n, 2304] uint8."""
        return Dataset.to_grey(self.decoder.all(codes / np.float32(Dataset.GREY_LEVELS)))


def squares(x):
    """The squared length of a row of x [N, n], mean over the rows."""
    return tf.reduce_mean(tf.reduce_sum(tf.square(x), 1))


def r1(critic, real):
    """R1_WEIGHT / 2 times the squared length of the critic's gradient at real faces [N, 2304], their mean (Mescheder et
    al. 2018)."""
    with tf.GradientTape() as tape:
        tape.watch(real)
        said = critic(real)
    return R1_WEIGHT / 2 * squares(tape.gradient(said, real))


def gradients(painter, critic, real, noise, penalised):
    """The gradients of one step of a GAN (Goodfellow et al. 2014), for which each net is asked once.

    real       [N, 2304] in the course's scale;  noise  [N, NOISE]
    penalised  whether r1 counts: in one of R1_STEPS steps, then R1_STEPS times (Karras et al. 2020)
    returns    of softplus(critic(fake)) + softplus(-critic(real)) for the critic's variables, of
               softplus(-critic(fake)) for the painter's; and these two losses
    """
    with tf.GradientTape(persistent=True) as tape:
        fake = painter.fast(noise, training=True)
        of_fake, of_real = tf.split(critic.fast(tf.concat([fake, real], 0)), 2)
        loss = tf.reduce_mean(tf.nn.softplus(of_fake) + tf.nn.softplus(-of_real))
        total = loss + R1_STEPS * r1(critic, real) if penalised else loss
    *of_critic, slope = tape.gradient(total, [*critic.trainable_variables, fake])
    # softplus(d) has the slope sigmoid(d); softplus(-d) has -sigmoid(-d), which is -exp(-d) times as much.
    of_painter = tape.gradient(fake, painter.trainable_variables, -tf.exp(-of_fake) * slope)
    return of_critic, of_painter, loss, tf.reduce_mean(tf.nn.softplus(-of_fake))


class Gan:
    """A convolutional GAN (Radford et al. 2016) with the non-saturating loss, R1, and averaged weights, learned from
    faces [N, 2304] uint8 and their mirror images."""

    def __init__(self, grey, steps=GAN_STEPS, seed=0):
        Training.make_deterministic(seed)
        self.painter, critic = painting_net(NOISE, batchnorm=True), reading_net(1, activation="leaky_relu")
        self.average = Training.Average(self.painter, AVERAGING)
        optimizers = [tf.keras.optimizers.Adam(GAN_RATE, beta_1=0.5, beta_2=0.99) for _ in range(2)]
        for optimizer, net in zip(optimizers, (critic, self.painter)):
            optimizer.build(net.trainable_variables)

        @tf.function(autograph=False)
        def step(number, real, penalised):
            noise = tf.random.stateless_normal([BATCH, NOISE], [seed, number])
            *both, loss, fooling = gradients(self.painter, critic, real, noise, penalised)
            for optimizer, net, its in zip(optimizers, (critic, self.painter), both):
                optimizer.apply_gradients(zip(its, net.trainable_variables))
            self.average.update(number)
            return {"critic's loss": loss, "painter's": fooling}

        learn("GAN", faces.with_mirrors(grey), steps, seed,
              lambda number, x: step(tf.constant(number), tf.constant(x), number % R1_STEPS == 0))

    def sample(self, count, generator):
        """Faces of nobody: [count, 2304] uint8; generator  numpy.random.Generator."""
        with self.average.in_place():
            return Dataset.to_grey(self.painter.all(generator.standard_normal((count, NOISE), np.float32)))
