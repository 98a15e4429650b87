"""The noise stays inside picture, mask and ball, the file is what fools, and distances are the file's, near the least;
on a linear net, where the least noise is known, each attack does what its paper says."""
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import Attacks
import Dataset
import Models
from conftest import write_database

MIDDLE = Attacks.box_mask((12, 12, 24, 24))


@pytest.fixture(scope="module")
def net(checkpoint):
    return Models.load(checkpoint)[0]


@pytest.fixture(scope="module")
def faces(tmp_path_factory, net):
    """Eight faces that the net calls right, some of them cut at black and white: (faces, wrong labels)."""
    dataset = Dataset.open_database(write_database(tmp_path_factory.mktemp("faces"), "faces", 30, seed=5))
    right = np.flatnonzero(dataset.logits(net).argmax(1) == dataset.label.argmax(1))[:8]
    return dataset.data.grey(right), 1 - dataset.label[right].argmax(1)


def search(name, net, faces, wrong, **options):
    attack = Attacks.build(name, net, faces, wrong, **options)
    for _ in attack.run():
        pass
    return attack


def mislead(net, faces, wrong, name="dx", **options):
    return search(name, net, faces, wrong, **options).result()


RUNS = {  # name: (attack, options, the share of faces that it misleads at least)
    **{f"dx {norm}": ("dx", {"norm": norm, "steps": 200}, 1.0) for norm in Attacks.PENALTIES},
    "fgsm": ("fgsm", {"radius": 100 / 256}, 0.5),
    "pgd linf": ("pgd", {"radius": 60 / 256}, 1.0),
    "pgd l2, random start": ("pgd", {"norm": "l2", "radius": 900 / 256, "random_start": True}, 1.0),
    "deepfool": ("deepfool", {}, 1.0),
    "jsma": ("jsma", {}, 1.0),
    "cw": ("cw", {}, 1.0),
    "ddn": ("ddn", {"steps": 100}, 1.0),
    "sigma-zero": ("sigma-zero", {"steps": 150}, 1.0),
}


def few_steps(name, options):
    return options | ({"steps": 20} if "steps" in Attacks.options(name) else {})


@pytest.mark.parametrize("mask", [None, MIDDLE], ids=["everywhere", "box"])
@pytest.mark.parametrize("name, options, share", RUNS.values(), ids=RUNS.keys())
def test_what_is_found_is_a_picture_that_fools(net, faces, tmp_path, name, options, share, mask):
    attack = search(name, net, *faces, mask=mask, **options)
    found = attack.result()
    assert found.modified.dtype == np.uint8
    np.testing.assert_array_equal(found.original, faces[0])
    np.testing.assert_array_equal(Dataset.to_float(found.modified), attack.best)  # in range, whole grey levels
    if mask is not None:
        np.testing.assert_array_equal(found.modified[:, ~mask], faces[0][:, ~mask])
    for number, face in enumerate(found.modified):
        face.tofile(tmp_path / "face.raw")
        read = Dataset.read_face(tmp_path / "face.raw")[0].reshape(1, -1)
        assert found.fools[number] == (int(tf.argmax(net(Dataset.to_float(read)), 1)[0]) == faces[1][number])
    assert found.fools.mean() >= share
    dx = Dataset.to_float(found.modified) - Dataset.to_float(faces[0])
    distance = {"l2": (dx**2).mean(1), "none": (dx**2).mean(1), "l1": np.abs(dx).mean(1), "linf": np.abs(dx).max(1),
                "l0": (dx != 0).sum(1)}[attack.norm]
    np.testing.assert_allclose(attack.closest.numpy()[found.fools], distance[found.fools], rtol=1e-5)


def test_every_attack_is_among_the_runs():
    assert {name for name, _, _ in RUNS.values()} == set(Attacks.ATTACKS)


@pytest.mark.parametrize("mask", [None, MIDDLE], ids=["everywhere", "box"])
@pytest.mark.parametrize("random_start", [False, True], ids=["from the face", "from a random point"])
@pytest.mark.parametrize("norm, radius", [("linf", 2.5), ("linf", 1.0), ("l2", 60.0), ("l2", 255.0)])
def test_no_file_of_pgd_lies_outside_the_ball(net, faces, norm, radius, random_start, mask):
    found = mislead(net, *faces, "pgd", norm=norm, radius=radius / 256, steps=10, random_start=random_start, mask=mask)
    reached = Attacks.distances(faces[0], found.modified)[norm]
    assert np.all(reached <= radius)
    assert np.all(reached[~found.fools] > (0.9 * radius if norm == "l2" else np.floor(radius) - 0.01))


def test_each_norm_is_least_under_its_own_penalty(net, faces):
    reached = {norm: Attacks.distances(faces[0], mislead(net, *faces, norm=norm).modified)
               for norm in ("l2", "l1", "linf", "none")}
    for norm in "l2", "l1", "linf":
        least = min(reached, key=lambda penalty: np.median(reached[penalty][norm]))
        assert least == norm
    assert np.median(reached["l1"]["pixels_changed"]) < 0.5 * np.median(reached["l2"]["pixels_changed"])


def test_a_box_may_touch_the_edge():
    assert Attacks.box_mask((24, 40, 24, 8)).sum() == 192 and Attacks.box_mask((0, 0, 48, 48)).all()


@pytest.mark.parametrize("norm", Attacks.PENALTIES)
def test_what_is_found_of_a_face_does_not_depend_on_those_beside_it(net, faces, norm):
    together = mislead(net, *faces, norm=norm, steps=30)
    alone = mislead(net, faces[0][5:6], faces[1][5:6], norm=norm, steps=30)
    other = np.abs(together.modified[5].astype(int) - alone.modified[0])
    assert other.max() <= 1 and np.mean(other) < 0.01  # sums of batches round otherwise


class Linear(tf.Module):
    """logits = (0, w x + b): the least L2 noise is |w x + b| / |w| along w, the least Linf noise |w x + b| / |w|_1."""

    def __init__(self, seed, b=0.0):
        random = np.random.default_rng(seed)
        self.w, self.b = tf.constant(random.normal(size=(Dataset.DIM, 1)), tf.float32), b

    def __call__(self, x):
        return tf.concat([tf.zeros([tf.shape(x)[0], 1]), x @ self.w + self.b], axis=1)


def grey_faces(count):
    """Faces far from black and white, so that the closed forms hold."""
    return np.random.default_rng(0).integers(90, 166, (count, Dataset.DIM), np.uint8)


def least_noise(net, faces, order):
    margin = np.abs(net(Dataset.to_float(faces))[:, 1].numpy())
    return Dataset.GREY_LEVELS * margin / np.linalg.norm(net.w.numpy()[:, 0], {"l2": 2, "linf": 1}[order])


@pytest.fixture(scope="module", params=[40.0, -40.0], ids=["called a woman", "called a man"])
def linear(request):
    """A linear net, six faces that it calls alike, and the wrong labels: the least Linf noise is 5 to 7 grey levels."""
    net, faces = Linear(1, request.param), grey_faces(6)
    wrong = 1 - tf.argmax(net(Dataset.to_float(faces)), 1).numpy()
    assert np.all(wrong == (0 if request.param > 0 else 1))
    return net, faces, wrong


def steepest(linear):
    """w, turned such that noise along it raises the logit of the wrong label."""
    net, _, wrong = linear
    return net.w.numpy()[:, 0] * (2 * wrong[0] - 1)


def test_linear_net_linf_is_the_closed_form_rounded_up():
    net, faces = Linear(2), grey_faces(6)
    wrong = 1 - tf.argmax(net(Dataset.to_float(faces)), 1).numpy()
    found = mislead(net, faces, wrong, norm="linf")
    assert found.fools.all()
    np.testing.assert_array_less(Attacks.distances(faces, found.modified)["linf"],
                                 np.ceil(least_noise(net, faces, "linf")) + 1.01)


def test_linear_net_linf_without_rounding_goes_below_a_grey_level():
    net, faces = Linear(3, 3.6), np.full((1, Dataset.DIM), 128, np.uint8)
    attack = search("dx", net, faces, [0], norm="linf", rounding=False)
    least = least_noise(net, faces, "linf")
    assert 0.4 < least < 0.6
    assert Dataset.GREY_LEVELS * np.abs(attack.best).max() == pytest.approx(least, rel=0.1)


@pytest.mark.parametrize("steps", [30, 31])
def test_linf_stays_in_the_box_where_no_noise_is_needed(net, faces, steps):
    faces, wrong = faces[0], 1 - faces[1]
    found = mislead(net, faces, wrong, norm="linf", survive=("light",), steps=steps, mask=MIDDLE)
    np.testing.assert_array_equal(np.where(MIDDLE, found.original, found.modified), found.original)


@pytest.mark.parametrize("name, options", [("fgsm", {}), ("pgd", {"norm": "linf"})])
@pytest.mark.parametrize("radius", [4, 5, 6, 7, 8])
def test_linear_net_is_misled_by_the_radius_that_the_closed_form_asks(linear, name, options, radius):
    net, faces, wrong = linear
    found = mislead(*linear, name, radius=radius / 256, **options)
    np.testing.assert_array_equal(found.fools, radius >= least_noise(net, faces, "linf"))
    if name == "fgsm":
        np.testing.assert_array_equal(found.modified - faces.astype(int),
                                      np.tile(radius * np.sign(steepest(linear)), (6, 1)))


def test_linear_net_is_misled_by_pgd_in_the_l2_ball_that_the_closed_form_asks(linear):
    least = least_noise(*linear[:2], "l2")
    assert not mislead(*linear, "pgd", norm="l2", radius=0.995 * least.min() / 256).fools.any()
    assert mislead(*linear, "pgd", norm="l2", radius=1.02 * least.max() / 256).fools.all()


def test_linear_net_deepfool_is_the_closed_form(linear):
    """Seen without rounding: one step, 2 % beyond the boundary, along w; a gradient, then two looks."""
    net, faces, wrong = linear
    attack = Attacks.DeepFool(net, faces, wrong)
    attack.rounding = False
    for _ in attack.run():
        pass
    assert int(attack.done) == 2  # the second finds that all are misled
    noise = attack.best.numpy() - Dataset.to_float(faces)
    golden = 1.02 * (least_noise(net, faces, "l2")[:, None] / 256 + Attacks.MARGIN / np.linalg.norm(net.w)) \
        * steepest(linear) / np.linalg.norm(net.w)
    np.testing.assert_allclose(noise, golden, atol=1e-5)


@pytest.mark.parametrize("name, most", [("dx", 1.03), ("deepfool", 1.03), ("cw", 1.03), ("ddn", 1.03)])
def test_linear_net_files_are_near_the_least_l2(linear, name, most):
    found = mislead(*linear, name)
    ratio = Attacks.distances(linear[1], found.modified)["l2"] / least_noise(*linear[:2], "l2")
    assert found.fools.all()
    assert np.all(ratio > 0.999) and np.all(ratio < most)


def test_linear_net_ddn_is_near_the_least_l2_after_a_few_steps(linear):
    found = mislead(*linear, "ddn", steps=20)
    ratio = Attacks.distances(linear[1], found.modified)["l2"] / least_noise(*linear[:2], "l2")
    assert found.fools.all() and np.all(ratio < 1.1)


def test_linear_net_cw_closes_in_on_the_least_constant(linear):
    """|DX|^2 + c (m - w DX) is least at DX = c w / 2, which fools from c = 2 m / |w|^2."""
    attack = search("cw", *linear)
    least = 2 * np.abs(linear[0](Dataset.to_float(linear[1]))[:, 1]) / np.linalg.norm(linear[0].w)**2
    assert np.all(attack.low < 1.02 * least) and np.all(attack.high < 2 * least) and np.all(attack.high > 0.8 * least)


@pytest.mark.parametrize("name", ["dx", "ddn"])
def test_without_rounding_what_the_file_says_is_left_to_chance(linear, name):
    """Its floats are nearer than any file that fools; rounding moves the answer either way, and that is said."""
    attack = search(name, *linear, rounding=False)
    found = attack.result()
    least = least_noise(*linear[:2], "l2")
    assert np.all(np.isfinite(attack.closest))
    noise = 256 * np.linalg.norm(attack.best - Dataset.to_float(linear[1]), axis=1)
    np.testing.assert_allclose(noise, least, rtol=5e-3)
    says = tf.argmax(linear[0](Dataset.to_float(found.modified)), 1).numpy()
    np.testing.assert_array_equal(found.fools, says == linear[2])
    assert mislead(*linear, name, rounding=True).fools.all() and not found.fools.all()


@pytest.mark.parametrize("steps", [60, 300])
def test_linear_net_the_weight_that_is_found_makes_the_least_noise_the_least_loss(linear, steps):
    """Where both labels are alike, cross entropy falls at |w| / 2 and the penalty rises at 2 weight |DX| / 2304."""
    least = least_noise(*linear[:2], "l2") / 256
    golden = 0.5 * np.linalg.norm(linear[0].w) / (2 * least / Dataset.DIM)
    np.testing.assert_allclose(mislead(*linear, steps=steps).weight, golden, rtol=0.05)


@pytest.mark.parametrize("name, scale", [("dx", 1e-5), ("dx", 0.01), ("dx", 100.0), ("ddn", 1e-5), ("deepfool", 1e-5)])
def test_the_search_of_l2_does_not_depend_on_the_scale_of_the_logits(linear, name, scale):
    net, faces, wrong = linear
    scaled, plain = (mislead(ask, faces, wrong, name).modified for ask in (lambda x: scale * net(x), net))
    np.testing.assert_allclose(*(Attacks.distances(faces, files)["l2"] for files in (scaled, plain)), rtol=0.02)


def rooms(linear):
    """How far each pixel can go, in x, in the direction that raises the lead: [6, 2304]."""
    grey = linear[1].astype(float)
    return np.where(steepest(linear) > 0, 255 - grey, grey) / 256


@pytest.mark.parametrize("steps, most", [(40, 1.5), (100, 1.12), (300, 1.05)])
def test_linear_net_files_are_near_the_least_l1(linear, steps, most):
    """The least fills the pixels of the largest weights, one after another, as far as black and white."""
    net, faces, wrong = linear
    weights = np.abs(net.w[:, 0])
    order = np.argsort(-weights)
    gains = np.cumsum((weights * rooms(linear))[:, order], 1)
    least = []
    for face, gain, room, lead in zip(faces, gains, rooms(linear), np.abs(net(Dataset.to_float(faces))[:, 1])):
        whole = int(np.sum(gain < lead))  # pixels that are filled
        before = gain[whole - 1] if whole else 0.0
        least.append(256 * (room[order[:whole]].sum() + (lead - before) / weights[order[whole]]))
    found = mislead(*linear, "dx", norm="l1", steps=steps)
    ratio = Attacks.distances(faces, found.modified)["l1"] / least
    assert found.fools.all() and np.all(ratio > 0.999) and np.all(ratio < most), ratio


def test_linear_net_jsma_takes_the_pixels_of_the_largest_weights(linear):
    net, faces, wrong = linear
    found = mislead(*linear, "jsma")
    assert found.fools.all()
    order = np.argsort(-np.abs(net.w[:, 0]))
    margins = np.abs(net(Dataset.to_float(faces))[:, 1])
    for face, changed, room, margin in zip(faces, found.modified, rooms(linear), margins):
        gain = np.cumsum((np.abs(net.w[:, 0]) * room)[order])
        golden = face.copy()
        taken = order[:np.argmax(gain > margin) + 1]
        golden[taken] = np.where(steepest(linear) > 0, 255, 0)[taken]
        np.testing.assert_array_equal(changed, golden)


@pytest.mark.parametrize("name", ["dx", "fgsm", "pgd", "deepfool", "jsma", "ddn", "sigma-zero"])
def test_where_no_pixel_moves_the_answer_none_is_changed(name):
    net, faces = Linear(1, 1.0), grey_faces(2)
    net.w *= 0.0
    found = mislead(net, faces, [0, 0], name)
    assert not found.fools.any()
    np.testing.assert_array_equal(found.modified, faces)


def test_linear_net_sigma_zero_needs_few_pixels_more_than_the_least(linear):
    net, faces, wrong = linear
    found = mislead(*linear, "sigma-zero")
    assert found.fools.all()
    gain = np.cumsum(-np.sort(-np.abs(net.w[:, 0]) * rooms(linear), axis=1), axis=1)
    least = (gain <= np.abs(net(Dataset.to_float(faces))[:, 1])[:, None]).sum(1) + 1
    ratio = Attacks.distances(faces, found.modified)["pixels_changed"] / least
    assert np.all(ratio >= 1) and np.all(ratio < 1.3)


@pytest.mark.parametrize("name, options, _", RUNS.values(), ids=RUNS.keys())
def test_passes_are_counted(name, options, _):
    net, faces, wrong = Linear(1, 40.0), grey_faces(2), [0, 0]
    forward, backward = (tf.Variable(0, trainable=False) for _ in range(2))

    @tf.custom_gradient
    def counted(x):
        forward.assign_add(1)

        def gradient(upstream):
            backward.assign_add(1)
            return upstream
        return tf.identity(x), gradient

    found = mislead(lambda x: net(counted(x)), faces, wrong, name, **few_steps(name, options))
    assert (found.forward, found.backward) == (int(forward), int(backward))


def test_the_curves_of_a_step_by_hand():
    """The second step asks about the first one's DX, in whole grey levels."""
    net, faces = Linear(1, 40.0), grey_faces(2)
    attack = Attacks.Misleading(net, faces, [0, 0], "l1", weight=3.0, steps=10)
    attack.step()
    noise = np.round(256 * attack.dx.numpy())
    attack.step()
    pictures, curves = attack.watched()
    np.testing.assert_array_equal(pictures, faces + noise)
    lead = -net(Dataset.to_float(pictures))[:, 1].numpy()
    np.testing.assert_allclose(curves["probability of the wrong label"], 1 / (1 + np.exp(-lead)), rtol=1e-4)
    np.testing.assert_allclose(curves["loss"], np.log1p(np.exp(-lead)) + 3.0 * np.abs(noise / 256).mean(1), rtol=1e-4)
    for order, norm in (2, "l2"), (1, "l1"), (np.inf, "linf"):
        np.testing.assert_allclose(curves[f"noise/{norm}, grey levels"], np.linalg.norm(noise, order, axis=1))


def test_penalties_are_the_courses_formulas():
    dx = np.random.default_rng(0).normal(size=(3, Dataset.DIM)).astype(np.float32)
    golden = {"l2": (dx**2).mean(1), "l1": np.abs(dx).mean(1), "linf": np.abs(dx).max(1), "none": np.zeros(3)}
    for norm, value in golden.items():
        np.testing.assert_allclose(Attacks.PENALTIES[norm](dx), value, rtol=1e-5)


def test_distances_by_hand():
    original = np.array([[0, 10, 255, 7]], np.uint8)
    modified = np.array([[3, 10, 251, 7]], np.uint8)
    golden = {"l2": 5.0, "l1": 7.0, "linf": 4.0, "pixels_changed": 2}
    assert {name: value[0] for name, value in Attacks.distances(original, modified).items()} == golden


def test_amplified_is_fifty_times_the_noise_cut_at_white():
    result = Attacks.Result(np.array([[0, 10, 255]], np.uint8), np.array([[1, 10, 245]], np.uint8), None, None, 0)
    assert result.amplified.tolist() == [[50, 0, 255]]


def test_a_heavier_weight_gives_less_noise(net, faces):
    light, heavy = (mislead(net, *faces, weight=weight, steps=150) for weight in (1.0, 200.0))
    both = light.fools & heavy.fools
    assert both.sum() > 3
    noise = [np.median(Attacks.distances(faces[0], found.modified)["l2"][both]) for found in (light, heavy)]
    assert noise[1] < 0.9 * noise[0]
    np.testing.assert_array_equal(heavy.weight, np.float32(200.0))


def test_a_weight_too_heavy_fools_nobody_and_says_so(net, faces):
    found = mislead(net, *faces, weight=1e9, steps=30)
    assert not found.fools.any()


@pytest.mark.parametrize("name, options, _", RUNS.values(), ids=RUNS.keys())
def test_same_noise_again(net, faces, name, options, _):
    one, again = (mislead(net, *faces, name, **few_steps(name, options)) for _ in range(2))
    np.testing.assert_array_equal(one.modified, again.modified)


@pytest.mark.parametrize("options", [{"name": "dx", "steps": 60}, {"name": "pgd", "random_start": True, "steps": 4}])
def test_the_seed_moves_the_start(net, faces, options):
    one, other = (mislead(net, *faces, seed=seed, **options) for seed in (3, 4))
    assert np.any(one.modified != other.modified)


@pytest.mark.parametrize("name, options, _", RUNS.values(), ids=RUNS.keys())
def test_a_face_that_is_called_so_already_needs_no_noise(net, faces, name, options, _):
    found = mislead(net, faces[0], 1 - faces[1], name, **few_steps(name, options))
    assert found.fools.all()
    np.testing.assert_array_equal(found.modified, faces[0])


def smooth_faces(count):
    """Waves and some noise, from black to white: [count, 2304] uint8."""
    random = np.random.default_rng(7)
    down, right = np.mgrid[:48, :48]
    waves = [np.sin(down / random.uniform(3, 9)) + np.cos(right / random.uniform(3, 9)) for _ in range(count)]
    grey = 128 + 70 * np.reshape(waves, [count, -1]) + random.normal(0, 6, [count, Dataset.DIM])
    return np.clip(grey, 0, 255).astype(np.uint8)


def pillow_jpeg(face, quality):
    file = io.BytesIO()
    Image.fromarray(face.reshape(48, 48)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file)).reshape(-1)


@pytest.mark.parametrize("faces", [smooth_faces(6), grey_faces(6)], ids=["waves", "noise"])
def test_jpeg_is_pillows(faces):
    """But for what libjpeg's whole numbers round otherwise, which now and then moves a wave of a block by one."""
    qualities = [50, 63, 75, 86, 95, 100]
    seen = Dataset.to_grey(Attacks.jpeg(tf.constant(Dataset.to_float(faces)), tf.constant(qualities, tf.float32)))
    files = np.stack([pillow_jpeg(face, quality) for face, quality in zip(faces, qualities)]).astype(int)
    off, lost = (np.abs(files - pictures).mean(1) for pictures in (seen, faces))
    assert np.all(off < 0.3) and np.all(off[:5] < 0.25 * lost[:5])
    assert np.all((np.abs(files - seen) > 1).mean(1) < 0.08)


def test_a_shift_by_hand():
    faces = smooth_faces(4)
    seen = Attacks.shift(tf.constant(Dataset.to_float(faces)), tf.constant([2.0, 0.0, 0.5, 0.0]),
                         tf.constant([-1.0, 0.0, 0.0, -1.75]))
    seen = (256 * seen.numpy() + 128).reshape(4, 48, 48)
    images = faces.reshape(4, 48, 48).astype(int)
    np.testing.assert_array_equal(seen[0, :-1, 2:], images[0, 1:, :-2])
    np.testing.assert_array_equal(seen[0, :-1, :2], images[0, 1:, 1::-1])
    np.testing.assert_array_equal(seen[0, -1], seen[0, -2])
    np.testing.assert_array_equal(seen[1], images[1])
    np.testing.assert_array_equal(seen[2, :, 1:], np.rint((images[2, :, 1:] + images[2, :, :-1]) / 2))
    np.testing.assert_array_equal(seen[3, :-2], np.rint((images[3, 1:-1] + 3 * images[3, 2:]) / 4))


def test_light_by_hand():
    x = Dataset.to_float([[0, 128, 168, 255], [100, 128, 140, 250]])
    seen = Dataset.to_grey(Attacks.light(tf.constant(x), tf.constant([0.1, -0.15]), tf.constant([8 / 256, 0.15])))
    assert seen.tolist() == [[0, 136, 180, 255], [143, 166, 177, 255]]  # 128 + (g - 128) (1 + c) + b, cut


@pytest.mark.parametrize("name", Attacks.CHANGES)
def test_gradients_pass_the_rounding_of_changes(name):
    """A picture that is lighter by one grey level is so after the change too, but for contrast: so its gradient adds
    up to the sum of what is passed back."""
    x = tf.constant(Dataset.to_float(grey_faces(2)))
    upstream = tf.random.stateless_normal([4, 2, Dataset.DIM], [0, 0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        seen = Attacks.changed(x, name, [3, 4], 4)
    slope = tf.reduce_sum(tape.gradient(seen, x, upstream), axis=1)
    factor = 1.0
    if name == "light":
        factor = 1.0 + Attacks.LIGHT * tf.random.stateless_uniform([2, 4], [3, 4], -1.0, 1.0)[0].numpy()[:, None]
    np.testing.assert_allclose(slope, (upstream.numpy().sum(2) * factor).sum(0), rtol=1e-3, atol=1e-2)


def test_changes_stay_within_their_range_and_reach_it():
    x = tf.constant(Dataset.to_float(np.full((1, Dataset.DIM), 192)))
    seen = Attacks.changed(x, "light", [0, 0], 300).numpy()[:, 0, 0] * 256
    assert 0.85 * 64 - 0.15 * 256 - 0.5 < seen.min() < 25 and 103 < seen.max() < 1.15 * 64 + 0.15 * 256 + 0.5
    line = np.zeros((48, 48))
    line[24, 24] = 255
    seen = Attacks.changed(tf.constant(Dataset.to_float(line.reshape(1, -1))), "shift", [0, 0], 300)
    down, right = np.nonzero(np.reshape(Dataset.to_grey(seen), (300, 48, 48)).sum(0))
    assert (down.min(), down.max(), right.min(), right.max()) == (22, 26, 22, 26)


def test_files_that_shall_outlive_changes_do(net, faces):
    plain = mislead(net, *faces, steps=100)
    found = mislead(net, *faces, steps=100, survive=list(Attacks.CHANGES))
    assert plain.fools.all() and found.fools.all()
    before, after = (Attacks.survival(net, files.modified, faces[1], Attacks.CHANGES) for files in (plain, found))
    for change in Attacks.CHANGES:
        assert after[change].shape == (8,)
        assert after[change].mean() > max(0.9, before[change].mean())
    assert np.median(Attacks.distances(faces[0], found.modified)["l2"]) \
        > np.median(Attacks.distances(faces[0], plain.modified)["l2"])


def test_survival_is_counted_on_pillows_files(net, faces):
    files = mislead(net, *faces, steps=100).modified
    shares = Attacks.survival(net, files, faces[1], ["jpeg"], 10)["jpeg"]
    says = [[int(tf.argmax(net(Dataset.to_float(pillow_jpeg(face, quality)[None])), 1)[0])
             for quality in (50, 55, 60, 65, 70, 75, 80, 85, 90, 95)] for face in files]
    np.testing.assert_allclose(shares, np.mean(np.array(says) == faces[1][:, None], axis=1))


def test_a_survivor_answers_by_hand():
    """Least of the file's own lead and, change by change, the mean less twice the standard deviation."""
    net, faces, wrong = Linear(1, 40.0), grey_faces(3), tf.constant([0, 1, 0], tf.int64)
    ask = Attacks.Survivor(net, wrong, ["jpeg", "light"], 5)
    x = tf.constant(Dataset.to_float(faces))
    sign = 2 * wrong.numpy() - 1
    kinds = [sign * np.reshape(net(tf.reshape(Attacks.changed(x, change, [5, 3 * 7 + number], ask.DRAWS), [-1, 2304]))
                               [:, 1], [ask.DRAWS, 3]) for number, change in enumerate(["jpeg", "light"])]
    golden = np.min([sign * net(x)[:, 1], *(kind.mean(0) - 2 * kind.std(0, ddof=1) for kind in kinds)], axis=0)
    logits = ask(x, tf.constant(6, tf.int64)).numpy()
    np.testing.assert_allclose(sign * (logits[:, 1] - logits[:, 0]), golden, rtol=1e-4)


@pytest.mark.parametrize("name", Attacks.ATTACKS)
def test_every_attack_may_be_asked_to_survive(net, faces, name):
    one, again = (mislead(net, *faces, name, **few_steps(name, {}), survive=["light"]) for _ in range(2))
    np.testing.assert_array_equal(one.modified, again.modified)
    views = 1 + Attacks.Survivor.DRAWS
    assert one.backward % views == 0 and one.forward == one.backward + views + 1


MISTAKES = {
    "a label that is none": ({"wrong": [2, 0]}, "wrong labels: expected 2 whole numbers, 0 (man) or 1 (woman), "
                             "found [2] int64 with [0, 2]"),
    "a label that is a word": ({"wrong": ["man", "man"]}, "wrong labels: expected 2 whole numbers"),
    "too few labels": ({"wrong": [1]}, "found [1] int64 with [1]"),
    "faces of another size": ({"faces": np.zeros((2, 100), np.uint8)}, "faces: expected [N, 2304] uint8, one face or "
                              "more, found [2, 100] uint8"),
    "faces in floats": ({"faces": np.zeros((2, Dataset.DIM))}, "found [2, 2304] float64"),
    "no faces": ({"faces": np.zeros((0, Dataset.DIM), np.uint8), "wrong": []}, "found [0, 2304] uint8"),
    "a mask of another shape": ({"mask": np.ones((48, 48), bool)}, "mask: expected [2304] bool, true for one pixel or "
                                "more, found [48, 48] bool"),
    "a mask of floats": ({"mask": np.ones(Dataset.DIM)}, "found [2304] float64"),
    "an empty mask": ({"mask": np.zeros(Dataset.DIM, bool)}, "found [2304] bool, 0 pixels not zero"),
    "an unknown attack": ({"name": "magic"}, "unknown attack 'magic'; expected one of dx, fgsm, "),
    "an option of another": ({"name": "fgsm", "steps": 9}, "attack fgsm has no option steps; it has radius"),
    "a change that is none": ({"survive": ["jpeg", "rain"]}, "no change 'rain' to survive; expected jpeg, shift, "
                              "light"),
    "no steps": ({"name": "ddn", "steps": 0}, "steps 0: expected 1 or more"),
    "a norm of another": ({"name": "pgd", "norm": "l1"}, "norm l1: this attack has linf, l2"),
    "no radius": ({"name": "pgd", "radius": 0.0}, "radius 0 grey levels: expected 1 or more"),
    "a radius below zero": ({"name": "fgsm", "radius": -2 / 256}, "radius -2 grey levels: expected 1 or more"),
    "a radius that is no number": ({"name": "pgd", "norm": "l2", "radius": np.nan}, "radius nan grey levels"),
    "a radius without end": ({"name": "fgsm", "radius": np.inf}, "radius inf grey levels"),
}


@pytest.mark.parametrize("mistake, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_refused(mistake, words):
    with pytest.raises(Dataset.UserError) as refused:
        Attacks.build(**{"name": "dx", "net": Linear(1), "faces": grey_faces(2), "wrong": [0, 1]} | mistake)
    assert words in str(refused.value)


def test_box_by_hand():
    mask = Attacks.box_mask((3, 5, 2, 4)).reshape(48, 48)
    assert mask.sum() == 8
    assert mask[5:9, 3:5].all()


@pytest.mark.parametrize("survive, kept", [((), 1), (("light",), 2)])
def test_what_is_kept_is_the_closest_and_of_survivors_the_last_that_fools(survive, kept):
    attack = Attacks.build("dx", Linear(1, 40.0), grey_faces(1), [0], survive=survive)
    for noise, fools in (1, True), (2, True), (3, False):
        attack._keep(attack.x + noise / 256, tf.constant([fools]))
    np.testing.assert_array_equal(attack.best, attack.x + kept / 256)


@pytest.mark.parametrize("first, least", [(-2.0, Attacks.MARGIN), (-0.5, 0.5 * Attacks.MARGIN), (-1e-9, 4 * 2.0**-20)])
def test_a_picture_fools_by_a_margin_of_the_faces_own_lead(first, least):
    """Of the third nothing is left beside logits of 8."""
    lead, middle = tf.Variable(first), 8.0 if first == -1e-9 else 0.0
    attack = Attacks.build("dx", lambda x: 0.0 * x[:, :2] + tf.stack([0.0, lead]) + middle, grey_faces(1), [1], steps=3)
    fooled = []
    for now in first, 0.7 * least, 1.4 * least:
        lead.assign(now)
        attack.step()
        fooled.append(bool(np.isfinite(attack.closest)))
    assert fooled == [False, False, True]


def saturated(net):
    """The same answers by a sigmoid so steep that nothing is left of its gradient, like a step."""
    return lambda x: tf.sigmoid(1e6 * net(x))


@pytest.mark.parametrize("hide, hidden", [(lambda net: net, False), (saturated, True)])
def test_a_net_that_hides_its_gradient_is_told(linear, hide, hidden):
    assert Attacks.without_gradient(hide(linear[0]), linear[1]).tolist() == [hidden] * len(linear[1])


def test_pushed_faces_begin_at_a_point_that_the_seed_determines():
    net, x = Linear(1, 40.0), tf.constant(Dataset.to_float(grey_faces(2)))
    one, again, other = (Attacks.push(net, x, [0, 0], 1.0, 2, (0, seed)).numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-4


def test_a_face_that_is_misled_is_left_as_it_is():
    net, faces = Linear(1, 40.0), grey_faces(2)
    attack = Attacks.build("pgd", net, faces, [1, 0], norm="l2", radius=1.0, steps=3)  # the first is called so already
    attack.step()
    assert not np.any(attack.dx[0]) and np.any(attack.dx[1])


def test_a_survivors_gradient_is_the_mean_in_which_what_fools_least_weighs_most():
    net, wrong = Linear(1, 40.0), tf.constant([0, 0], tf.int64)
    x = tf.constant(Dataset.to_float(grey_faces(2)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = Attacks.Survivor(net, wrong, ["light"], 5)(x, tf.constant(6))
        lead = tf.reduce_sum(logits[:, 0] - logits[:, 1])
    draws = Attacks.LIGHT * tf.random.stateless_uniform([2, 4], [5, 7 * 3], -1.0, 1.0)[0].numpy()
    seen = Attacks.changed(x, "light", [5, 7 * 3], 4)
    leads = -np.stack([net(x)[:, 1], *(net(view)[:, 1] for view in seen)])
    share = np.exp(-leads / (leads.std(0) + Attacks.MARGIN))
    share /= share.sum(0)
    factor = share[0] + (share[1:] * (1 + draws[:, None])).sum(0)
    np.testing.assert_allclose(tape.gradient(lead, x), -factor[:, None] * net.w.numpy()[:, 0], rtol=1e-3, atol=1e-4)


def test_the_seed_moves_what_a_survivor_draws():
    for name in Attacks.ATTACKS:
        attack = Attacks.build(name, Linear(1, 40.0), grey_faces(1), [0], survive=("light",), seed=5)
        assert attack.ask.seed == 5
    with pytest.raises(Dataset.UserError, match="attack ddn has no option seed"):
        Attacks.build("ddn", Linear(1, 40.0), grey_faces(1), [0], seed=5)


def test_survival_is_measured_on_changes_that_no_search_has_drawn():
    face = grey_faces(1)
    files = Attacks._changed_files(face[0], "light", 4)
    for step in range(30):
        drawn = Attacks.changed(tf.constant(Dataset.to_float(face)), "light", [0, step], 4)[:, 0]
        assert np.any(files != Dataset.to_grey(drawn)), step


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_seed_moves_pgds_start_in_every_ball(norm):
    points = []
    for seed in 3, 4:
        attack = Attacks.build("pgd", Linear(1, 40.0), grey_faces(1), [0], norm=norm, random_start=True, seed=seed)
        attack.step()
        points.append(attack.dx.numpy())
    assert np.abs(points[0] - points[1]).max() > 1e-3


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_the_weight_that_is_given_stays_and_the_one_looked_for_moves(norm):
    for given in 7.0, None:
        attack = Attacks.build("dx", Linear(1, 40.0), grey_faces(1), [0], norm=norm, weight=given, steps=3)
        first = float(attack.weight[0])
        attack.step()
        assert (float(attack.weight[0]) == first) is (given is not None)


@pytest.mark.parametrize("name", Attacks.ATTACKS)
def test_a_net_that_does_not_answer_with_two_numbers_is_refused(name):
    def one(x):
        return Linear(1)(x)[:, 1:]
    with pytest.raises(Dataset.UserError, match=r"the net answers \[.*, 1\] about pictures .* two numbers a face"):
        mislead(one, grey_faces(2), [0, 1], name, **few_steps(name, {}))


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16])
def test_a_net_may_answer_in_another_precision(net, faces, dtype):
    plain, cast = (mislead(ask, *faces, "ddn", steps=5) for ask in (net, lambda x: tf.cast(net(x), dtype)))
    assert cast.fools.mean() == plain.fools.mean() == 1.0


def test_a_net_that_answers_with_no_number_misleads_nobody():
    with pytest.raises(Dataset.UserError, match="answers with no number"):
        mislead(lambda x: Linear(1)(x) * np.nan, grey_faces(2), [0, 1], "ddn", steps=2)


def test_a_random_start_is_on_all_sides_of_the_face():
    attack = Attacks.build("pgd", Linear(1, 40.0), grey_faces(1), [0], norm="linf", random_start=True)
    attack.step()
    assert abs(np.sign(attack.dx).mean()) < 0.1


@pytest.mark.parametrize("steps, round_steps", [(1, 1), (5, 5), (39, 39), (40, 20), (100, 20), (500, 100)])
def test_the_searches_of_cw_have_steps_to_spare(steps, round_steps):
    assert Attacks.build("cw", Linear(1), grey_faces(1), [0], steps=steps).round == round_steps


def test_the_rate_of_cw_falls_within_each_search():
    attack = Attacks.build("cw", Linear(1), grey_faces(1), [0], steps=100)
    rate = attack.optimizer._learning_rate
    assert float(rate(0)) == pytest.approx(attack.LEARNING_RATE) and float(rate(attack.round)) == pytest.approx(0.0)


def test_more_steps_of_cw_find_no_more_noise_even_where_they_are_few():
    net = Linear(1)
    net.b = -float(tf.reduce_mean(Dataset.to_float(grey_faces(1)) @ net.w)) + 8.0
    found = [Attacks.distances(grey_faces(1), mislead(net, grey_faces(1), [0], "cw", steps=steps).modified)["l2"][0]
             for steps in (5, 40, 300)]
    assert 0.0 < found[2] <= found[1] <= found[0]


@pytest.mark.parametrize("steps, gamma", [(300, 0.05), (80, 0.05), (20, 0.2), (5, 0.5)])
def test_ddn_of_few_steps_takes_longer_ones(steps, gamma):
    assert Attacks.build("ddn", Linear(1), grey_faces(1), [0], steps=steps).gamma == pytest.approx(gamma)
