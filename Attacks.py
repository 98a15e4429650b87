"""How to find DX, the noise that makes a net say the wrong label.

Only the Variable DX is trained (slides "Build an adversarial image"): loss = cross entropy of the net's answer to the
wrong label + weight x penalty of DX, with x + DX kept a picture. Two things are added to the course's loop:

- The net sees the picture as the file will hold it, rounded to 8 bit; the gradient passes the rounding straight
  through (Bengio et al. 2013). What fools is the file, not a float that rounding would undo.
- Where no weight is given each face looks for its own: the weight grows by WEIGHT_RATE while the file fools and
  shrinks while it does not, so DX settles where the net's answer turns (the idea of DDN, Rony et al. 2019). Under
  linf DX is also kept one grey level inside the smallest noise so far, as the penalty alone moves one pixel at a time.

The smallest noise that fooled is kept.
"""
import dataclasses
import math

import numpy as np
import tensorflow as tf

import Dataset

PENALTIES = {  # of noise [N, 2304] in the course's scale: [N]
    "l2": lambda dx: tf.reduce_mean(tf.square(dx), axis=1),
    "l1": lambda dx: tf.reduce_mean(tf.abs(dx), axis=1),
    "linf": lambda dx: tf.reduce_max(tf.abs(dx), axis=1),
    "none": lambda dx: tf.zeros_like(dx[:, 0]),
}
FIRST_WEIGHT = {"l2": 1000.0, "l1": 30.0, "linf": 30.0, "none": 0.0}
WEIGHT_RATE = 1.05
LEARNING_RATE = 0.02     # of Adam on DX, in the course's scale: 5 grey levels; falls to zero along half a cosine
MARGIN = 1e-3            # of logits, by which a picture must fool: other machines round otherwise
REPORT_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack found for N faces.

    original, modified  [N, 2304] uint8, as files hold them;  fools  [N] bool: the net says the wrong label of modified
    weight  [N] float32, the last weight of the penalty;  steps  how many were made
    """
    original: np.ndarray
    modified: np.ndarray
    fools: np.ndarray
    weight: np.ndarray
    steps: int

    @property
    def amplified(self):
        """[N, 2304] uint8: 50 times the size of the noise, cut at 255."""
        return np.clip(50 * np.abs(self.modified.astype(int) - self.original), 0, 255).astype(np.uint8)


def distances(original, modified):
    """How far two pictures are apart, in grey levels: {"l2", "l1", "linf", "pixels_changed"}, each [N].

    original, modified  [N, 2304] uint8. Divide by 255 for the distance of pictures in 0..1.
    """
    noise = np.abs(modified.astype(np.float64) - original)
    return {"l2": np.sqrt(np.square(noise).sum(1)), "l1": noise.sum(1), "linf": noise.max(1),
            "pixels_changed": (noise > 0).sum(1)}


def box_mask(box):
    """[2304] bool, true inside a rectangle (x, y, width, height) in pixels, x to the right and y down."""
    x, y, width, height = box
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > Dataset.SIDE or y + height > Dataset.SIDE:
        raise Dataset.UserError(f"box {x},{y},{width},{height}: expected X,Y,W,H in pixels, inside "
                                f"{Dataset.SIDE}x{Dataset.SIDE}")
    mask = np.zeros((Dataset.SIDE, Dataset.SIDE), bool)
    mask[y:y + height, x:x + width] = True
    return mask.reshape(-1)


class Misleading:
    """The search for the noise of N faces at once: `for step in search.run()`, then `search.result()`.

    net    [?, 2304] in the course's scale -> [?, 2] logits
    faces  [N, 2304] uint8
    wrong  [N] int, what the net shall say of each: 0 man, 1 woman
    norm   l2, l1, linf or none: which penalty keeps DX small
    weight of the penalty; None looks for it, face by face
    steps  passes forward and backward
    mask   [2304] bool: where DX may act; everywhere by default
    seed   of DX's start, at random within a quarter of a grey level
    """

    def __init__(self, net, faces, wrong, norm="l2", weight=None, steps=300, mask=None, seed=0):
        self.net, self.norm, self.steps, self.done = net, norm, steps, 0
        self.faces, self.wrong = np.asarray(faces), tf.constant(wrong, tf.int64)
        self.x = tf.constant(Dataset.to_float(faces))
        self.mask = tf.ones([Dataset.DIM]) if mask is None else tf.constant(mask, tf.float32)
        self.looks_for_weight = weight is None
        start = tf.random.stateless_uniform(self.x.shape, [seed, 0], -0.25, 0.25) / Dataset.GREY_LEVELS
        self.dx = tf.Variable(start * self.mask)
        self.weight = tf.Variable(tf.fill([len(faces)], FIRST_WEIGHT[norm] if weight is None else float(weight)))
        self.best = tf.Variable(self.x)                  # what will be saved: the closest that fools, else the last
        self.closest = tf.Variable(tf.fill([len(faces)], math.inf))
        rate = tf.keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        self.optimizer = tf.keras.optimizers.Adam(rate)
        self.optimizer.build([self.dx])
        self.step = tf.function(self._step)

    def run(self):
        """Search; yields {"step", "fooled": how many faces so far} every REPORT_STEPS steps."""
        while self.done < self.steps:
            self.step()
            self.done += 1
            if self.done % REPORT_STEPS == 0 or self.done == self.steps:
                fooled = int(np.isfinite(self.closest).sum())
                yield {"step": self.done, "fooled": fooled}
                if self.norm == "none" and fooled == len(self.faces):
                    return

    def result(self):
        modified = Dataset.to_grey(self.best)
        says = tf.argmax(self.net(tf.constant(Dataset.to_float(modified))), axis=1)
        return Result(self.faces, modified, (says == self.wrong).numpy(), self.weight.numpy(), self.done)

    def _step(self):
        with tf.GradientTape() as tape:
            picture = self.x + self.dx
            saved = tf.round(picture * Dataset.GREY_LEVELS) / Dataset.GREY_LEVELS
            logits = self.net(picture + tf.stop_gradient(saved - picture))
            cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(self.wrong, logits)
            loss = tf.reduce_sum(cross_entropy + self.weight * PENALTIES[self.norm](self.dx))
        gradient = tape.gradient(loss, self.dx)
        lead = tf.reduce_sum(logits * (2.0 * tf.one_hot(self.wrong, 2) - 1.0), axis=1)
        self._keep(saved, lead > MARGIN)
        self.optimizer.apply_gradients([(gradient * self.mask, self.dx)])
        dx = tf.clip_by_value(self.x + self.dx, Dataset.BLACK, Dataset.WHITE) - self.x
        if self.norm == "linf" and self.looks_for_weight:
            reach = self.closest[:, None] - 1.0 / Dataset.GREY_LEVELS
            dx = tf.clip_by_value(dx, -reach, reach)
        self.dx.assign(dx)

    def _keep(self, saved, fools):
        """Keep the closest pictures that fool, and move the weights: up where the picture fools, down where not."""
        distance = tf.sqrt(PENALTIES["l2"](saved - self.x)) if self.norm == "none" else \
            PENALTIES[self.norm](saved - self.x)
        closer = fools & (distance < self.closest)
        keep = closer | ~tf.math.is_finite(self.closest)
        self.best.assign(tf.where(keep[:, None], saved, self.best))
        self.closest.assign(tf.where(closer, distance, self.closest))
        if self.looks_for_weight:
            self.weight.assign(tf.where(fools, self.weight * WEIGHT_RATE, self.weight / WEIGHT_RATE))
