"""The noise stays inside picture and mask, the file is what fools, and distances are the file's, near the least."""
import numpy as np
import pytest
import tensorflow as tf

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


def mislead(net, faces, wrong, **options):
    search = Attacks.Misleading(net, faces, wrong, **options)
    for _ in search.run():
        pass
    return search.result()


@pytest.mark.parametrize("mask", [None, MIDDLE], ids=["everywhere", "box"])
@pytest.mark.parametrize("norm", Attacks.PENALTIES)
def test_what_is_found_is_a_picture_that_fools(net, faces, norm, mask):
    found = mislead(net, *faces, norm=norm, mask=mask)
    assert found.modified.dtype == np.uint8
    np.testing.assert_array_equal(found.original, faces[0])
    if mask is not None:
        np.testing.assert_array_equal(found.modified[:, ~mask], faces[0][:, ~mask])
    one_by_one = [int(tf.argmax(net(Dataset.to_float(face[None])), 1)[0]) for face in found.modified]
    np.testing.assert_array_equal(found.fools, one_by_one == faces[1])
    assert found.fools.all()


def test_each_norm_is_least_under_its_own_penalty(net, faces):
    reached = {norm: Attacks.distances(faces[0], mislead(net, *faces, norm=norm).modified)
               for norm in ("l2", "l1", "linf", "none")}
    for norm in "l2", "l1", "linf":
        least = min(reached, key=lambda penalty: np.median(reached[penalty][norm]))
        assert least == norm
    assert np.median(reached["l1"]["pixels_changed"]) < 0.5 * np.median(reached["l2"]["pixels_changed"])


class Linear(tf.Module):
    """logits = (0, w x + b): the least L2 noise is |w x + b| / |w| along w, the least Linf noise |w x + b| / |w|_1."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.w = tf.constant(random.normal(size=(Dataset.DIM, 1)), tf.float32)

    def __call__(self, x):
        return tf.concat([tf.zeros([tf.shape(x)[0], 1]), x @ self.w], axis=1)


def grey_faces(count):
    """Faces far from black and white, so that the closed forms hold."""
    return np.random.default_rng(0).integers(90, 166, (count, Dataset.DIM), np.uint8)


def least_noise(net, faces, order):
    margin = np.abs(net(Dataset.to_float(faces))[:, 1].numpy())
    return Dataset.GREY_LEVELS * margin / np.linalg.norm(net.w.numpy()[:, 0], {"l2": 2, "linf": 1}[order])


def test_linear_net_l2_is_near_the_closed_form():
    net, faces = Linear(1), grey_faces(6)
    wrong = 1 - tf.argmax(net(Dataset.to_float(faces)), 1).numpy()
    found = mislead(net, faces, wrong, norm="l2")
    ratio = Attacks.distances(faces, found.modified)["l2"] / least_noise(net, faces, "l2")
    assert found.fools.all()
    # Rounding to whole grey levels costs: the least noise spreads fractions of a level over all pixels.
    assert np.all(ratio > 0.99) and np.median(ratio) < 1.5


def test_linear_net_linf_is_the_closed_form_rounded_up():
    net, faces = Linear(2), grey_faces(6)
    wrong = 1 - tf.argmax(net(Dataset.to_float(faces)), 1).numpy()
    found = mislead(net, faces, wrong, norm="linf")
    assert found.fools.all()
    np.testing.assert_array_less(Attacks.distances(faces, found.modified)["linf"],
                                 np.ceil(least_noise(net, faces, "linf")) + 1.01)


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


def test_same_seed_same_noise(net, faces):
    one, again = (mislead(net, *faces, steps=60, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.modified, again.modified)


def test_a_face_that_is_called_so_already_needs_no_noise(net, faces):
    found = mislead(net, faces[0], 1 - faces[1], steps=20)
    assert found.fools.all()
    np.testing.assert_array_equal(found.modified, faces[0])


def test_box_by_hand():
    mask = Attacks.box_mask((3, 5, 2, 4)).reshape(48, 48)
    assert mask.sum() == 8
    assert mask[5:9, 3:5].all()
