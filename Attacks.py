"""How to find DX, the noise that makes a net say the wrong label: the course's search and the attacks it reads about.

All are one loop (`Attack`): ask the net about x + DX, keep the closest picture that fooled, move DX down the gradient.
They differ in the loss, the move and the distance in which "closest" is meant. What fools is the file, not a float that
rounding would undo: the net sees the picture as the file will hold it, rounded to 8 bit, and the gradient passes the
rounding straight through (Bengio et al. 2013).

There are two labels, so an answer is one number, its lead: the logit of the wrong label minus the other. The picture
fools where the lead is above 0. Cross entropy is softplus(-lead), its gradient a negative multiple of the lead's:
attacks that use the direction alone descend on -lead.

Where a file must fool also after it was compressed, moved or shown in another light, a Survivor is asked in place of
the net; the loop and the attacks stay as they are.
"""
import dataclasses
import inspect
import io
import math

import numpy as np
import tensorflow as tf
from PIL import Image

import Dataset

PENALTIES = {  # of noise [N, 2304] in the course's scale: [N]
    "l2": lambda dx: tf.reduce_mean(tf.square(dx), axis=1),
    "l1": lambda dx: tf.reduce_mean(tf.abs(dx), axis=1),
    "linf": lambda dx: tf.reduce_max(tf.abs(dx), axis=1),
    "none": lambda dx: tf.zeros_like(dx[:, 0]),
}
DISTANCES = PENALTIES | {  # in which the closest picture is kept
    "none": PENALTIES["l2"],
    "l0": lambda dx: tf.math.count_nonzero(dx, axis=1, dtype=tf.float32),
}
MARGIN = 1e-3            # of lead, by which a picture must fool, as other machines round otherwise; of a face whose own
                         # lead is less than 1, this share of that


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack found for N faces.

    original, modified  [N, 2304] uint8, as files hold them;  fools  [N] bool: the net says the wrong label of modified
    forward, backward   passes: how often the net was asked about each face, and how often for a gradient
    weight  [N] float32, the last weight of the penalty, where the attack has one

    A face whose `fools` is False was not misled; its `modified` is the last picture tried.
    """
    original: np.ndarray
    modified: np.ndarray
    fools: np.ndarray
    forward: int
    backward: int
    weight: np.ndarray | None = None

    @property
    def amplified(self):
        """[N, 2304] uint8: 50 times the size of the noise, cut at 255."""
        return amplify(self.original, self.modified)


def amplify(original, modified):
    """50 times the size of the noise between pictures [N, 2304] uint8, cut at 255."""
    return np.clip(50 * np.abs(modified.astype(int) - original), 0, 255).astype(np.uint8)


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


class Attack:
    """The loop that all attacks share, on N faces at once: `for state in attack.run()`, then `attack.result()`.

    net    [?, 2304] in the course's scale -> [?, 2] logits
    faces  [N, 2304] uint8
    wrong  [N] int, what the net shall say of each: 0 man, 1 woman
    steps  most passes forward and backward; two more go forward at the end
    mask   [2304] bool: where DX may act; everywhere by default

    Raises Dataset.UserError for faces, labels, steps or a mask that are not so, or a net that answers otherwise. An
    attack overrides `_loss`, `_move` and the attributes here:
    """
    norm = "l2"               # a key of DISTANCES
    rounding = True           # the net sees what the file will hold
    stops = False             # a face that is misled is left as it is
    keeps_last = False        # not the closest picture that fools: where chance has a part, that is the luckiest

    def __init__(self, net, faces, wrong, steps, mask=None):
        self.net, self.steps = lambda pictures: logits_of(net, pictures), _steps(steps)
        self.ask, self.views = lambda pictures, step: self.net(pictures), 1  # what a step asks, of how many pictures
        self.faces = _faces(faces)
        self.wrong = tf.constant(_wrong(wrong, len(faces)))
        self.x = tf.constant(Dataset.to_float(faces))
        self.mask = tf.ones([Dataset.DIM]) if mask is None else tf.constant(_mask(mask), tf.float32)
        self.dx = tf.Variable(tf.zeros_like(self.x))
        self.asked = tf.Variable(self.x)                 # the pictures of the last step
        self.done = tf.Variable(0, dtype=tf.int64)       # steps
        self.margin = tf.Variable(tf.fill([len(faces)], MARGIN))
        self.best = tf.Variable(self.x)                  # what will be saved: the closest that fools, else the last
        self.closest = tf.Variable(tf.fill([len(faces)], math.inf))
        self.step = tf.function(self._step)

    def run(self):
        """Search; yields {"step", "fooled": how many faces so far} after every step."""
        while self.done < self.steps:
            self.step()
            fooled = int(np.isfinite(self.closest).sum())
            yield {"step": int(self.done), "fooled": fooled}
            if self.stops and fooled == len(self.faces):
                return

    def result(self):
        """The Result so far: the last DX is looked at, then the net is asked about the pictures as files hold them."""
        saved = self._saved(self.dx)
        self._keep(saved, _lead(self.ask(saved, self.done), self.wrong) > self.margin)
        modified = Dataset.to_grey(Dataset.finite(self.best.numpy()))
        says = tf.argmax(Dataset.finite(self.net(tf.constant(Dataset.to_float(modified)))), axis=1)
        steps = int(self.done)
        return Result(self.faces, modified, (says == self.wrong).numpy(), (steps + 1) * self.views + 1,
                      steps * self.views)

    def watched(self):
        """The pictures of the last step as files hold them ([N, 2304] uint8), and what is to be drawn: {name: [N]}.

        The loss is the course's, cross entropy and, where the attack has one, the penalty. What the net says is of the
        pictures themselves, also where the attack asks it about changes of them.
        """
        pictures, lead = Dataset.to_grey(self.asked), _lead(self.net(self.asked), self.wrong)
        norms = distances(self.faces, pictures)
        return pictures, {"loss": tf.nn.softplus(-lead).numpy(),
                          "probability of the wrong label": tf.sigmoid(lead).numpy(),
                          **{f"noise/{norm}, grey levels": norms[norm] for norm in ("l2", "l1", "linf")}}

    def _loss(self, logits, lead):
        """What DX shall make small: [N], of the net's logits [N, 2] and their lead [N]."""
        return -lead

    def _move(self, gradient, lead, fools):
        """The next DX, [N, 2304]: of the loss's gradient (zero outside the mask), lead [N] and fools [N] bool."""
        raise NotImplementedError

    def _step(self):
        before = self.dx.read_value()
        with tf.GradientTape() as tape:
            picture = self.x + self.dx
            saved = self._saved(self.dx)
            logits = self.ask(_straight_through(saved, picture), self.done)
            lead = _lead(logits, self.wrong)
            self._set_margin(logits, lead)
            loss = tf.reduce_sum(self._loss(logits, lead))
        gradient = tape.gradient(loss, self.dx) * self.mask
        self.asked.assign(saved)
        fools = lead > self.margin
        self._keep(saved, fools)
        dx = self._in_range(self._move(gradient, lead, fools))
        self.dx.assign(tf.where(fools[:, None], before, dx) if self.stops else dx)
        self.done.assign_add(1)

    def _set_margin(self, logits, lead):
        """At the first step, of the faces themselves, so that a net's scale is no matter: MARGIN or a share of their
        lead, at least what float32 tells apart."""
        known = 4.0 * np.finfo(np.float32).eps * tf.reduce_max(tf.abs(logits), axis=1)
        first = tf.maximum(MARGIN * tf.minimum(tf.abs(lead), 1.0), known)
        self.margin.assign(tf.where(self.done == 0, first, self.margin))

    def _saved(self, dx):
        """The pictures x + dx as the files would hold them: [N, 2304], course scale."""
        picture = self.x + dx
        return _whole(picture) if self.rounding else picture

    def _in_range(self, dx):
        return tf.clip_by_value(self.x + dx, Dataset.BLACK, Dataset.WHITE) - self.x

    def _keep(self, saved, fools):
        """Keep of each face the closest picture that fools, the last one while none does."""
        distance = DISTANCES[self.norm](saved - self.x)
        closer = fools & (self.keeps_last | (distance < self.closest))
        keep = closer | ~tf.math.is_finite(self.closest)
        self.best.assign(tf.where(keep[:, None], saved, self.best))
        self.closest.assign(tf.where(closer, distance, self.closest))


def _faces(faces):
    faces = np.asarray(faces)
    if faces.dtype != np.uint8 or faces.ndim != 2 or faces.shape[1] != Dataset.DIM or not len(faces):
        raise Dataset.UserError(f"faces: expected [N, {Dataset.DIM}] uint8, one face or more, "
                                f"found {list(faces.shape)} {faces.dtype}")
    return faces


def _wrong(wrong, count):
    wrong = np.asarray(wrong)
    if wrong.shape != (count,) or wrong.dtype.kind not in "iu" or not np.isin(wrong, (0, 1)).all():
        raise Dataset.UserError(f"wrong labels: expected {count} whole numbers, 0 (man) or 1 (woman), found "
                                f"{list(wrong.shape)} {wrong.dtype} with {np.unique(wrong).tolist()[:5]}")
    return wrong.astype(np.int64)


def _mask(mask):
    mask = np.asarray(mask)
    if mask.shape != (Dataset.DIM,) or mask.dtype != bool or not mask.any():
        raise Dataset.UserError(f"mask: expected [{Dataset.DIM}] bool, true for one pixel or more, found "
                                f"{list(mask.shape)} {mask.dtype}, {np.count_nonzero(mask)} pixels not zero")
    return mask


def _steps(steps):
    if steps < 1:
        raise Dataset.UserError(f"steps {steps}: expected 1 or more")
    return steps


def _whole(x):
    """x, course scale, in whole grey levels."""
    return tf.round(x * Dataset.GREY_LEVELS) / Dataset.GREY_LEVELS


def _straight_through(seen, x):
    """`seen`, what rounding or the like made of x; the gradient is x's."""
    return x + tf.stop_gradient(seen - x)


def logits_of(net, pictures):
    """What a net says of pictures [N, 2304], course scale: logits [N, 2] float32. UserError for any other shape."""
    logits = tf.convert_to_tensor(net(pictures))
    if logits.shape.rank not in (None, 2) or logits.shape.rank and logits.shape[1] not in (None, 2):
        raise Dataset.UserError(f"the net answers {list(logits.shape)} about pictures {list(pictures.shape)}; expected "
                                "two numbers a face, one for man and one for woman")
    return tf.cast(logits, tf.float32)


def _signs(wrong):
    """1 in the column of the wrong label, -1 in the other: [N, 2] of labels [N]."""
    return 2.0 * tf.one_hot(wrong, 2) - 1.0


def _lead(logits, wrong):
    """How far the wrong label's logit is above the other: [N], of logits [N, 2] and labels [N]."""
    return tf.reduce_sum(logits * _signs(wrong), axis=1)


def _l2_ball(dx, radius):
    """Rows of dx [N, 2304] outside an L2 ball scaled back to it."""
    return dx * (radius / tf.maximum(tf.norm(dx, axis=1, keepdims=True), radius))


def _unit(rows):
    """Rows scaled to an L2 norm of 1: [N, 2304]; a row of zeros stays zero."""
    return tf.math.divide_no_nan(rows, tf.norm(rows, axis=1, keepdims=True))


def _turning(gradient, lead):
    """How far along gradients [N, 2304] a linear net of such leads [N] would say both labels alike: [N]."""
    return tf.math.divide_no_nan(tf.abs(lead), tf.norm(gradient, axis=1))


def without_gradient(net, faces):
    """Whether a net hides from gradients: [N] bool of faces [N, 2304] uint8.

    True where the gradient of the lead vanishes, or is so small that a linear net of it would say the other label no
    nearer than black is to white in all pixels. Attacks see nothing there; that they fail tells nothing of the face.
    """
    x = tf.constant(Dataset.to_float(_faces(faces)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        lead = _lead(logits_of(net, x), tf.zeros(len(faces), tf.int64))
    gradient = tape.gradient(lead, x)
    return (tf.norm(gradient, axis=1) * Dataset.SIDE <= tf.abs(lead)).numpy()


def _falling(first, last, steps):
    """A number that falls from `first` to `last` along half a cosine: a function of the step."""
    return tf.keras.optimizers.schedules.CosineDecay(first, steps, alpha=last / first)


class Misleading(Attack):
    """The course's search (slides "Build an adversarial image"): train the Variable DX, and nothing else.

    loss = cross entropy of the net's answer to the wrong label + weight x penalty of DX. Where no weight is given each
    face looks for its own: it grows while the file fools and shrinks while it does not, so DX settles where the net's
    answer turns (the idea of DDN, Rony et al. 2019).

    Under l2 each weight has a DX where the loss is least as long as the gradient of the cross entropy stays what it is:
    against that gradient, and of a length that is the inverse of the weight. What a face looks for is this length; DX
    goes a share of the way there, SHARE at first, less and less along half a cosine, as the length's changes do. Under
    l1 DX takes steps of STEP down that gradient, scaled to a largest entry of 1 where a pixel can still go its way, and
    then each pixel comes nearer to zero by a share of the step (soft thresholding, Daubechies et al. 2004; in attacks
    EAD, Chen et al. 2018): what is less steep than the share stays zero. Each face looks for this share. Under linf
    and none, and with a weight given, Adam trains DX. Where linf looks for its weight, DX is also kept one grey level
    (without rounding a twentieth) inside the smallest noise so far: the penalty alone moves one pixel at a time.

    norm   l2, l1, linf or none: which penalty keeps DX small
    weight of the penalty; None looks for it, face by face. Under none there is neither, and DX rests where a file fools
    rounding  False: the net sees floats, and what it then says of the file is left to chance
    seed   of DX's start, at random within a quarter of a grey level
    """
    SHARE, LENGTH_RATE = (0.5, 0.05), (0.2, 0.003)  # first and last, along half a cosine
    STEP, FIRST_CUT = (0.1, 0.004), 0.3             # course scale; share of the step
    FIRST_WEIGHT, WEIGHT_RATE = 30.0, 1.05          # of linf
    LEARNING_RATE = 0.02  # of Adam on DX, in the course's scale: 5 grey levels; falls to zero along half a cosine

    def __init__(self, net, faces, wrong, norm="l2", weight=None, steps=300, rounding=True, mask=None, seed=0):
        super().__init__(net, faces, wrong, steps, mask)
        if norm == "none" and weight is not None:
            raise Dataset.UserError(f"weight {weight:g}: norm none has no penalty to weigh; leave the weight out")
        self.norm, self.stops, self.looks_for_weight = _one_of(norm, PENALTIES), norm == "none", weight is None
        self.settles, self.shrinks = (norm == name and weight is None for name in ("l2", "l1"))
        self.rounding = rounding
        # One for all faces: what is found of a face shall not depend on those beside it.
        start = tf.random.stateless_uniform([Dataset.DIM], [seed, 0], -0.25, 0.25) / Dataset.GREY_LEVELS
        self.dx.assign(tf.broadcast_to(start * self.mask, self.x.shape))
        first = (0.0 if norm == "none" else self.FIRST_WEIGHT) if weight is None else float(weight)
        self.weight = tf.Variable(tf.fill([len(faces)], first))
        self.length, self.cut = (tf.Variable(tf.fill([len(faces)], value)) for value in (0.0, self.FIRST_CUT))
        self.share, self.length_rate, self.stride = (_falling(*ends, steps) for ends in (
            self.SHARE, self.LENGTH_RATE, self.STEP))
        self.optimizer = tf.keras.optimizers.Adam(_falling(self.LEARNING_RATE, 0.0, steps))
        self.optimizer.build([self.dx])

    def result(self):
        return super().result() if self.norm == "none" else dataclasses.replace(super().result(),
                                                                                weight=self.weight.numpy())

    def watched(self):
        pictures, curves = super().watched()
        penalty = self.weight * PENALTIES[self.norm](self.asked - self.x)
        return pictures, curves | {"loss": curves["loss"] + penalty.numpy(), "weight": self.weight.numpy()}

    def _loss(self, logits, lead):
        if self.settles or self.shrinks:
            return super()._loss(logits, lead)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(self.wrong, logits)
        return cross_entropy + self.weight * PENALTIES[self.norm](self.dx)

    def _move(self, gradient, lead, fools):
        if self.settles:
            return self._settle(gradient, lead, fools)
        if self.shrinks:
            return self._shrink(gradient, fools)
        self.optimizer.apply_gradients([(gradient, self.dx)])
        if not self.looks_for_weight:
            return self.dx
        self.weight.assign(tf.where(fools, self.weight * self.WEIGHT_RATE, self.weight / self.WEIGHT_RATE))
        if self.norm != "linf":
            return self.dx
        inside = self.closest - 1.0 / Dataset.GREY_LEVELS if self.rounding else 0.95 * self.closest
        reach = tf.maximum(inside, 0.0)[:, None]
        return tf.clip_by_value(self.dx, -reach, reach)

    def _settle(self, gradient, lead, fools):
        """DX a share of the way to -length x the gradient's direction; without a length yet, that of a linear net."""
        slope = tf.norm(gradient, axis=1)
        rate = 1.0 + self.length_rate(self.done)
        length = tf.where(self.done == 0, _turning(gradient, lead), self.length * tf.where(fools, 1.0 / rate, rate))
        # One pixel's grey level is the least noise, all pixels from black to white the most.
        self.length.assign(tf.clip_by_value(length, 1.0 / Dataset.GREY_LEVELS, Dataset.SIDE))
        # Where both labels are alike, the cross entropy is half as steep as the lead.
        self.weight.assign(0.25 * Dataset.DIM * slope / self.length)
        share = self.share(self.done)
        return (1.0 - share) * self.dx - share * self.length[:, None] * _unit(gradient)

    def _shrink(self, gradient, fools):
        """DX a step down the gradient, and each pixel's change less by a share of the step."""
        room = tf.where(gradient < 0.0, Dataset.WHITE - self.x - self.dx, self.x + self.dx - Dataset.BLACK)
        free = tf.cast(room > 0.5 / Dataset.GREY_LEVELS, tf.float32)
        steepest = tf.reduce_max(tf.abs(gradient) * free, axis=1)
        rate, stride = 1.0 + self.length_rate(self.done), self.stride(self.done)
        self.cut.assign(tf.clip_by_value(self.cut * tf.where(fools, rate, 1.0 / rate), 0.001, 2.0))
        # Where both labels are alike, the cross entropy is half as steep as the lead.
        self.weight.assign(0.5 * Dataset.DIM * self.cut * steepest)
        dx = self.dx - stride * tf.math.divide_no_nan(gradient, steepest[:, None])
        return tf.sign(dx) * tf.nn.relu(tf.abs(dx) - stride * self.cut[:, None])


def _one_of(norm, known):
    if norm not in known:
        raise Dataset.UserError(f"norm {norm}: this attack has {', '.join(known)}")
    return norm


class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018): steps of 2.5 radius / steps along the gradient (its sign under
    linf), each followed by the projection onto the ball around the face.

    norm    linf or l2: the ball;  radius  of it, course scale; by default 8 grey levels, L2 1.0 of a 0..1 image
    random_start  begin at a random point of the ball, which takes the first step;  seed  of that point

    The ball is one of files: no saved picture lies outside.
    Raises Dataset.UserError for a radius below one grey level, which no file can hold.
    """
    RADIUS = {"linf": 8.0 / Dataset.GREY_LEVELS, "l2": 255.0 / Dataset.GREY_LEVELS}
    stops = True

    def __init__(self, net, faces, wrong, norm="linf", radius=None, steps=40, random_start=False, mask=None, seed=0):
        super().__init__(net, faces, wrong, steps, mask)
        self.norm = _one_of(norm, self.RADIUS)
        self.radius = _radius(self.RADIUS[norm] if radius is None else radius)
        self.random_start, self.seed = random_start, seed

    def _move(self, gradient, lead, fools):
        direction = tf.sign(gradient) if self.norm == "linf" else _unit(gradient)
        dx = self.dx - 2.5 * self.radius / self.steps * direction
        if self.random_start:
            dx = tf.where(self.done == 0, self._random_point(), dx)
        return self._into_ball(dx)

    def _random_point(self):
        if self.norm == "linf":
            return tf.random.stateless_uniform(self.x.shape, [self.seed, 1], -self.radius, self.radius) * self.mask
        # The distance of a random point of a ball of 2304 dimensions from the middle is almost the radius.
        return self.radius * _unit(tf.random.stateless_normal(self.x.shape, [self.seed, 1]) * self.mask)

    def _into_ball(self, dx):
        """The point of the ball nearest to dx, and shrunk until its file lies inside too."""
        if self.norm == "linf":
            whole = math.floor(self.radius * Dataset.GREY_LEVELS) / Dataset.GREY_LEVELS
            return tf.clip_by_value(dx, -whole, whole)
        dx = _l2_ball(dx, self.radius)
        outside = self._outside(dx)
        while tf.reduce_any(outside):
            dx = tf.where(outside, 0.995 * dx, dx)
            outside = self._outside(dx)
        return dx

    def _outside(self, dx):
        return tf.norm(self._saved(self._in_range(dx)) - self.x, axis=1, keepdims=True) > self.radius


def _radius(radius):
    levels = radius * Dataset.GREY_LEVELS
    if not 1.0 <= levels < math.inf:
        raise Dataset.UserError(f"radius {levels:g} grey levels: expected 1 or more; a file holds whole grey levels")
    return radius


class WholeBall(PGD):
    """PGD that goes on after the file fools and keeps the last picture: what fools one net by far fools others too."""
    stops = False

    def _keep(self, saved, fools):
        self.best.assign(saved)
        self.closest.assign(tf.where(fools, 0.0, math.inf))


def push(net, x, wrong, radius, steps, seed):
    """What PGD makes of faces from a random point of the L2 ball on, for adversarial training (Madry et al. 2018).

    Pure operations, for the inside of a compiled step; seen are floats, as nothing is saved.

    net     [N, 2304] in the course's scale -> [N, 2] logits
    x       [N, 2304] float32, course scale;  wrong  [N] int, the label to push towards
    radius  of the ball, course scale;  seed  [2] int32
    returns [N, 2304] float32: pictures, none further than the radius from its face
    """
    dx = radius * _unit(tf.random.stateless_normal(tf.shape(x), seed))
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(dx)
            lead = _lead(logits_of(net, x + dx), wrong)
        dx = _l2_ball(dx + 2.5 * radius / steps * _unit(tape.gradient(lead, dx)), radius)
        dx = tf.clip_by_value(x + dx, Dataset.BLACK, Dataset.WHITE) - x
    return x + dx


class FGSM(PGD):
    """The fast gradient sign method (Goodfellow et al. 2015): DX = radius x sign of the gradient, in one pass.

    radius  of every pixel's change, course scale; what exceeds whole grey levels is left off. UserError below one.
    """

    def __init__(self, net, faces, wrong, radius=PGD.RADIUS["linf"], mask=None):
        super().__init__(net, faces, wrong, "linf", radius, 1, mask=mask)


class DeepFool(Attack):
    """DeepFool (Moosavi-Dezfooli et al. 2016), for two classes: the shortest way to where the net, were it linear, says
    both labels alike, |lead| / |gradient| along the gradient, and OVERSHOOT of it further; again until the net does."""
    OVERSHOOT = 0.02
    stops = True

    def __init__(self, net, faces, wrong, steps=50, mask=None):
        super().__init__(net, faces, wrong, steps, mask)

    def _move(self, gradient, lead, fools):
        way = tf.math.divide_no_nan(self.margin - lead, tf.reduce_sum(tf.square(gradient), axis=1))
        return self.dx - (1.0 + self.OVERSHOOT) * way[:, None] * gradient


class JSMA(Attack):
    """The saliency map attack (Papernot et al. 2016): one pixel after another, that of the steepest gradient of those
    untouched, is set to black or white, whichever raises the lead.

    The paper's map of two classes is the gradient's size; it takes pixels in pairs, here they come one by one.

    steps  most pixels changed
    """
    norm, stops = "l0", True

    def __init__(self, net, faces, wrong, steps=300, mask=None):
        super().__init__(net, faces, wrong, steps, mask)

    def _move(self, gradient, lead, fools):
        way = tf.where(gradient < 0.0, Dataset.WHITE, Dataset.BLACK) - self.x
        free = tf.cast((self.dx == 0.0) & (way != 0.0) & (gradient != 0.0), tf.float32)
        pixel = tf.one_hot(tf.argmax(tf.abs(gradient) * free, axis=1), Dataset.DIM)
        return self.dx + pixel * free * self.mask * way


class CarliniWagner(Attack):
    """Carlini and Wagner's L2 attack (2017): Adam on |DX|^2 + constant x max(-lead, 0), where x + DX is a tanh.

    Each face looks for the least constant that fools, in ROUNDS searches (fewer where they had less than SEARCH steps):
    ten times as large after one that failed, a tenth after one that fooled, and the geometric mean once both were seen.
    Other than in the paper the step size falls along half a cosine within each. A pixel of 0 or 255 begins so far out
    that it hardly moves in 100 steps.

    steps  of all searches together
    """
    ROUNDS, SEARCH = 5, 20
    FIRST_CONSTANT = 0.1
    LEARNING_RATE = 0.02  # of Adam on the argument of the tanh

    def __init__(self, net, faces, wrong, steps=500, mask=None):
        super().__init__(net, faces, wrong, steps, mask)
        self.round = math.ceil(steps / min(max(steps // self.SEARCH, 1), self.ROUNDS))
        middle, self.half = (Dataset.WHITE + Dataset.BLACK) / 2.0, (Dataset.WHITE - Dataset.BLACK) / 2.0
        self.middle = middle
        self.start = tf.atanh(0.9999 * (self.x - middle) / self.half)  # the very black and white are at infinity
        self.w = tf.Variable(self.start)
        self.constant = tf.Variable(tf.fill([len(faces)], self.FIRST_CONSTANT))
        self.low, self.high = (tf.Variable(tf.fill([len(faces)], bound)) for bound in (0.0, math.inf))
        self.fooled = tf.Variable(tf.fill([len(faces)], False))  # in this search
        self.optimizer = tf.keras.optimizers.Adam(_falling(self.LEARNING_RATE, 0.0, self.round))
        self.optimizer.build([self.w])

    def _loss(self, logits, lead):
        return tf.reduce_sum(tf.square(self.dx), axis=1) + self.constant * tf.nn.relu(2.0 * self.margin - lead)

    def _move(self, gradient, lead, fools):
        slope = self.half * (1.0 - tf.square(tf.tanh(self.w)))
        self.optimizer.apply_gradients([(gradient * slope, self.w)])
        self.fooled.assign(self.fooled | fools)
        done = self.done + 1
        if done % self.round == 0 and done < self.steps:
            self._next_search()
        return (self.middle + self.half * tf.tanh(self.w) - self.x) * self.mask

    def _next_search(self):
        self.high.assign(tf.where(self.fooled, self.constant, self.high))
        self.low.assign(tf.where(self.fooled, self.low, self.constant))
        between = tf.where(self.low > 0.0, tf.sqrt(self.low * self.high), self.high / 10.0)
        self.constant.assign(tf.where(tf.math.is_finite(self.high), between, self.low * 10.0))
        self.fooled.assign(tf.zeros_like(self.fooled))
        self.w.assign(self.start)
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))


class DDN(Attack):
    """Decoupled direction and norm (Rony et al. 2019): a step along the gradient's direction, from 1 down to 0.01 along
    half a cosine, then DX is scaled to a norm that shrinks by GAMMA where the picture fools and grows where not.

    Other than in the paper the norm begins where a linear net would turn, at most at the paper's FIRST_NORM, and
    changes by 4 / steps where that is more: twenty steps of the paper's could not come below a third of FIRST_NORM.

    rounding  False: the net sees floats, and what it then says of the file is left to chance
    """
    GAMMA = 0.05
    FIRST_NORM = 1.0  # course scale

    def __init__(self, net, faces, wrong, steps=300, rounding=True, mask=None):
        super().__init__(net, faces, wrong, steps, mask)
        self.rounding = rounding
        self.rate, self.gamma = _falling(1.0, 0.01, steps), min(max(self.GAMMA, 4.0 / steps), 0.5)
        self.length = tf.Variable(tf.zeros([len(faces)]))

    def _move(self, gradient, lead, fools):
        first = tf.clip_by_value(_turning(gradient, lead), 1.0 / Dataset.GREY_LEVELS, self.FIRST_NORM)
        self.length.assign(tf.where(self.done == 0, first,
                                    self.length * tf.where(fools, 1.0 - self.gamma, 1.0 + self.gamma)))
        return self.length[:, None] * _unit(self.dx - self.rate(self.done) * _unit(gradient))


class SigmaZero(Attack):
    """sigma-zero (Cina et al. 2024): Adam on max(-lead, 0) + a smooth count of the pixels changed, mean of
    DX^2 / (DX^2 + SIGMA), its gradient scaled to a largest entry of 1; then what of DX lies below a threshold is set to
    zero. The threshold rises where the picture fools and falls where not."""
    SIGMA = 1e-3
    FIRST_THRESHOLD = 0.3  # course scale
    THRESHOLD_RATE = 0.01
    norm = "l0"

    def __init__(self, net, faces, wrong, steps=300, mask=None):
        super().__init__(net, faces, wrong, steps, mask)
        self.rate = _falling(1.0, 0.1, steps)
        self.threshold = tf.Variable(tf.fill([len(faces), 1], self.FIRST_THRESHOLD))
        self.optimizer = tf.keras.optimizers.Adam(self.rate)
        self.optimizer.build([self.dx])

    def _loss(self, logits, lead):
        square = tf.square(self.dx)
        return tf.nn.relu(2.0 * self.margin - lead) + tf.reduce_mean(square / (square + self.SIGMA), axis=1)

    def _move(self, gradient, lead, fools):
        largest = tf.reduce_max(tf.abs(gradient), axis=1, keepdims=True)
        self.optimizer.apply_gradients([(tf.math.divide_no_nan(gradient, largest), self.dx)])
        change = self.THRESHOLD_RATE * self.rate(self.done) * tf.where(fools[:, None], 1.0, -1.0)
        self.threshold.assign(tf.clip_by_value(self.threshold + change, 0.0, 1.0))
        dx = self._in_range(self.dx)
        return tf.where(tf.abs(dx) < self.threshold, 0.0, dx)


# What may become of a picture after it was saved

QUALITIES = 50, 95  # of JPEG
SHIFT = 2.0         # pixels, the most
LIGHT = 0.15        # the most: share of the contrast, and brightness as a share of the way from black to white
LUMINANCE = np.array([  # what JPEG divides by at quality 50 (ITU-T T.81, table K.1)
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]], np.float32)
DCT = np.sqrt([[1 / 8]] + 7 * [[1 / 4]]) * np.cos(np.pi / 8 * np.outer(np.arange(8), np.arange(8) + 0.5))
DCT = DCT.astype(np.float32)  # of 8 pixels
CHANGES = {  # name: the change of pictures [N, 2304] by draws [2, N] in [-1, 1)
    "jpeg": lambda x, draws: jpeg(x, tf.round(sum(QUALITIES) / 2 + (QUALITIES[1] - QUALITIES[0]) / 2 * draws[0])),
    "shift": lambda x, draws: shift(x, SHIFT * draws[0], SHIFT * draws[1]),
    "light": lambda x, draws: light(x, LIGHT * draws[0], LIGHT * draws[1]),
}


def jpeg(x, quality):
    """Pictures as a grey JPEG file shows them, but where libjpeg's whole numbers round a wave of a block otherwise.

    x        [N, 2304] float32, course scale;  quality  [N] float32, whole numbers in 50..100, as libjpeg counts
    returns  [N, 2304]; gradients pass each rounding straight through (Shin and Song 2017 make it a cubic)
    """
    table = tf.floor((LUMINANCE * (200.0 - 2.0 * quality[:, None, None]) + 50.0) / 100.0)
    table = tf.maximum(table, 1.0)[:, None, :, None, :]
    blocks = tf.reshape(Dataset.GREY_LEVELS * x, [-1, Dataset.SIDE // 8, 8, Dataset.SIDE // 8, 8])
    waves = 8.0 * tf.einsum("ui,nrisj,vj->nrusv", DCT, blocks, DCT)
    ratio = _straight_through(tf.round(waves), waves) / (8.0 * table)  # libjpeg rounds twice
    whole = tf.sign(ratio) * tf.floor(tf.abs(ratio) + 0.5)
    blocks = tf.einsum("ui,nrusv,vj->nrisj", DCT, table * _straight_through(whole, ratio), DCT)
    return _file(tf.reshape(blocks, [-1, Dataset.DIM]) / Dataset.GREY_LEVELS)


def shift(x, right, down):
    """Pictures [N, 2304], course scale, moved by parts of pixels: [N, 2304]; what enters is mirrored at the border.

    right, down  [N] float32, pixels in [-SHIFT, SHIFT]
    """
    reach = math.ceil(SHIFT)
    images = tf.reshape(x, [-1, Dataset.SIDE, Dataset.SIDE])
    images = tf.pad(images, [[0, 0], [reach, reach], [reach, reach]], "SYMMETRIC")
    way = tf.range(-reach, Dataset.SIDE + reach, dtype=tf.float32) - tf.range(Dataset.SIDE, dtype=tf.float32)[:, None]
    rows, columns = (tf.nn.relu(1.0 - tf.abs(way + by[:, None, None])) for by in (down, right))  # linear interpolation
    return _file(tf.reshape(tf.matmul(rows @ images, columns, transpose_b=True), [-1, Dataset.DIM]))


def light(x, contrast, brightness):
    """Pictures [N, 2304], course scale, in another light: x (1 + contrast) + brightness, cut at black and white.

    contrast, brightness  [N] float32, both in [-LIGHT, LIGHT]
    """
    return _file(x * (1.0 + contrast[:, None]) + brightness[:, None])


def changed(x, change, seed, count):
    """What a change of CHANGES makes of pictures, at random: [count, N, 2304] of x [N, 2304], course scale.

    seed  [2] int32; the draws, the same for all pictures, depend on it alone
    """
    draws = tf.random.stateless_uniform([2, count], seed, -1.0, 1.0)
    seen = CHANGES[change](tf.tile(x, [count, 1]), tf.repeat(draws, x.shape[0], axis=1))
    return tf.reshape(seen, [count, -1, Dataset.DIM])


def _file(x):
    """Pictures, course scale, as a file holds them: in range and in whole grey levels."""
    x = tf.clip_by_value(x, Dataset.BLACK, Dataset.WHITE)
    return _straight_through(_whole(x), x)


class Survivor:
    """What an attack asks in place of a net where the noise shall outlive changes of the file.

    At each step it asks the net about the picture and DRAWS new changes of each kind (expectation over transformation,
    Athalye et al. 2018). So few tell little of the many that may come: a kind's lead is the mean less twice the
    standard deviation. The answer is the least of these and of the file's own; its gradient is that of the mean over
    all that was asked, in which what fools least weighs most.

    net      [?, 2304] in the course's scale -> [?, 2] logits;  wrong  [N] int64 labels
    changes  names of CHANGES;  seed  of the draws, which depend on it and the step alone

    Raises Dataset.UserError for a change that does not exist.
    """
    DRAWS = 4

    def __init__(self, net, wrong, changes, seed=0):
        if unknown := [change for change in changes if change not in CHANGES]:
            raise Dataset.UserError(f"no change {unknown[0]!r} to survive; expected {', '.join(CHANGES)}")
        self.net, self.wrong, self.changes, self.seed = net, wrong, changes, seed
        self.views = 1 + self.DRAWS * len(changes)

    def __call__(self, x, step):
        """Logits [N, 2] of pictures x [N, 2304] at a step, whose lead is that of the file and its changes together."""
        first = (tf.cast(step, tf.int32) + 1) * len(CHANGES)
        seen = tf.concat([x[None], *(changed(x, change, [self.seed, first + number], self.DRAWS)
                                     for number, change in enumerate(self.changes))], axis=0)
        logits = self.net(tf.reshape(seen, [-1, Dataset.DIM]))
        leads = tf.reshape(_lead(logits, tf.tile(self.wrong, [self.views])), [self.views, -1])
        drawn = tf.reshape(leads[1:], [len(self.changes), self.DRAWS, -1])
        spread = tf.math.reduce_std(drawn, axis=1) * math.sqrt(self.DRAWS / (self.DRAWS - 1))
        least = tf.minimum(leads[0], tf.reduce_min(tf.reduce_mean(drawn, axis=1) - 2.0 * spread, axis=0))
        share = tf.stop_gradient(tf.nn.softmax(-leads / (tf.math.reduce_std(leads, axis=0) + MARGIN), axis=0))
        lead = tf.reduce_sum(share * leads, axis=0)
        return 0.5 * _straight_through(least, lead)[:, None] * _signs(self.wrong)


def survival(net, files, wrong, changes, count=100):
    """How often files fool a net after each change, of `count`: {change: [N] shares}.

    files  [N, 2304] uint8;  wrong  [N] int, what the net shall say of each

    JPEG is Pillow's, in files of qualities spread over the range; shifts and lights are such as no search has drawn.
    """
    shares = {}
    for change in changes:
        says = [tf.argmax(Dataset.finite(logits_of(net, tf.constant(Dataset.to_float(_changed_files(
            face, change, count))))), axis=1) for face in files]
        shares[change] = np.mean(np.array(says) == np.reshape(wrong, [-1, 1]), axis=1)
    return shares


def _changed_files(face, change, count):
    """A face [2304] uint8 after a change: [count, 2304] uint8."""
    if change == "jpeg":
        return np.stack([_pillow_jpeg(face, int(round(quality))) for quality in np.linspace(*QUALITIES, count)])
    x = tf.constant(Dataset.to_float(face[None]))
    return Dataset.to_grey(changed(x, change, [-1, 0], count)[:, 0])  # no step's seed is negative


def _pillow_jpeg(face, quality):
    file = io.BytesIO()
    Image.fromarray(face.reshape(Dataset.SIDE, Dataset.SIDE)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(-1)


ATTACKS = {"dx": Misleading, "fgsm": FGSM, "pgd": PGD, "deepfool": DeepFool, "jsma": JSMA, "cw": CarliniWagner,
           "ddn": DDN, "sigma-zero": SigmaZero}


def options(name):
    """The options, beside the mask of all, that an attack of ATTACKS takes: {name: default}."""
    return {option: parameter.default for option, parameter in inspect.signature(ATTACKS[name]).parameters.items()
            if option not in ("net", "faces", "wrong", "mask")}


def build(name, net, faces, wrong, mask=None, survive=(), **given):
    """An attack of ATTACKS by name; an option that is None is left to it. The noise outlives the CHANGES of `survive`.

    Raises Dataset.UserError for a name or option that does not exist, and what the attack raises.
    """
    if name not in ATTACKS:
        raise Dataset.UserError(f"unknown attack {name!r}; expected one of {', '.join(ATTACKS)}")
    given = {option: value for option, value in given.items() if value is not None}
    seed = given.get("seed", 0)
    if survive and "seed" not in options(name):
        given.pop("seed", None)  # of the changes alone
    if unknown := given.keys() - options(name):
        raise Dataset.UserError(f"attack {name} has no option {min(unknown)}; it has {', '.join(options(name))}")
    attack = ATTACKS[name](net, faces, wrong, mask=mask, **given)
    if survive:
        attack.ask = Survivor(attack.net, attack.wrong, survive, seed)
        attack.views, attack.keeps_last = attack.ask.views, True
    return attack
