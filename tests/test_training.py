"""Training: exact repeats and resumes, honest splits, the recipe's formulas, what it writes."""
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import Console
import Dataset
import Main
import Models
import Training
from conftest import REAL_FACES, write_database

RECIPE = Training.Recipe(epochs=2, batch_size=32, precision="float32")


def trainer(database, out, test="test", net="small", recipe=RECIPE, logs=None, **options):
    Training.make_deterministic(recipe.seed)
    learned, validation = Training.split(Dataset.open_database(database), recipe.validation, recipe.seed)
    measured = Dataset.open_database(database.parent / f"data_{test}.bin") if test else None
    net = Models.build(net, **options)
    return Training.Trainer(net, learned, validation, measured, recipe, out, logs, net.description)


def finish(training):
    for _ in training.run():
        pass
    return training


def interrupt_at(training, step):
    """Ctrl-C while the given step runs."""
    def learn(*arguments, whole=training.learn):
        if int(training.step) == step - 1:
            signal.raise_signal(signal.SIGINT)
        return whole(*arguments)
    training.learn = learn
    with pytest.raises(KeyboardInterrupt):
        finish(training)
    assert int(training.step) == step


def state(training):
    return [variable.numpy() for variable in [*training.net.variables, *training.optimizer.variables]]


def curve(training):
    """The curve without what a clock measured."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
            for row in training.curve]


def assert_same(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert curve(one) == curve(other)


DROPPING = dict(net="convnet", nb_block=2, nb_filter=4, dropout=0.3, batchnorm=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_result_bit_by_bit(database, tmp_path, precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    one, other = (finish(trainer(database, tmp_path / name, recipe=recipe, **DROPPING)) for name in "ab")
    assert_same(one, other)


def test_another_seed_another_result(database, tmp_path):
    one = finish(trainer(database, tmp_path / "a"))
    other = finish(trainer(database, tmp_path / "b", recipe=dataclasses.replace(RECIPE, seed=1)))
    assert np.abs(state(one)[0] - state(other)[0]).max() > 1e-3


@pytest.mark.parametrize("step", [1, 4, 6, 9])  # of 6 an epoch, 12 in all
def test_interrupted_and_resumed_ends_as_if_never_interrupted(database, tmp_path, step):
    whole = finish(trainer(database, tmp_path / "whole", **DROPPING))
    interrupt_at(trainer(database, tmp_path / "cut", **DROPPING), step)
    resumed = trainer(database, tmp_path / "cut", **DROPPING)
    resumed.resume()
    assert int(resumed.step) == step
    assert_same(finish(resumed), whole)
    for folder in "whole", "cut":
        net, _ = Models.load(tmp_path / folder)
        np.testing.assert_array_equal(net.variables[0], Models.load(tmp_path / "whole")[0].variables[0])


@pytest.mark.parametrize("step", [3, 9])
def test_killed_between_the_files_of_a_save_it_goes_on_from_the_save_before(database, tmp_path, monkeypatch, step):
    whole = finish(trainer(database, tmp_path / "whole"))
    interrupt_at(trainer(database, tmp_path / "cut"), step)
    cut = trainer(database, tmp_path / "cut")
    cut.resume()
    monkeypatch.setattr(cut, "_save", lambda manager: sys.exit("killed") if manager is cut.last else None)
    with pytest.raises(SystemExit):
        finish(cut)
    resumed = trainer(database, tmp_path / "cut")
    resumed.resume()
    assert int(resumed.step) == step
    assert_same(finish(resumed), whole)


@pytest.mark.parametrize("damaged, content", [
    ("metrics.json", b"{"), ("last/my_model-3.data-00000-of-00001", b"{"), ("metrics.json", b"[]"),
    ("metrics.json", b'{"curve": 3}'), ("metrics.json", b'{"curve": [{"step": 1}], "interval": [0, 0], "seconds": 1}')])
def test_damaged_training_is_not_resumed(database, tmp_path, damaged, content):
    interrupt_at(trainer(database, tmp_path), 3)
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(Models.NetworkError, match="damaged, nothing to go on from"):
        trainer(database, tmp_path).resume()


def test_order_depends_on_the_seed(database, tmp_path):
    orders = [trainer(database, tmp_path / str(seed), recipe=dataclasses.replace(RECIPE, seed=seed)).train.order(0)
              for seed in (0, 1)]
    assert np.any(orders[0] != orders[1])


def test_the_test_base_changes_nothing_but_its_own_figures(database, tmp_path):
    with_test, without = finish(trainer(database, tmp_path / "a")), finish(trainer(database, tmp_path / "b", test=None))
    for a, b in zip(state(with_test), state(without), strict=True):
        np.testing.assert_array_equal(a, b)
    for one, other in zip(with_test.curve, without.curve, strict=True):
        assert one["validation_accuracy"] == other["validation_accuracy"]
    assert with_test.result()["best_step"] == without.result()["best_step"]
    assert "test" not in without.result()


def test_split_parts_every_face_once(database):
    dataset = Dataset.open_database(database)
    learned, validation = Training.split(dataset, 0.1, seed=3)
    assert validation.nbdata == 20
    assert sorted([*learned.data.rows, *validation.data.rows]) == list(range(dataset.nbdata))
    np.testing.assert_array_equal(learned.label, dataset.label[learned.data.rows])


def test_what_is_learned_too_does_not_validate(tmp_path):
    faces = np.fromfile(write_database(tmp_path, "once", 30), np.uint8).reshape(-1, Dataset.DIM)
    for name, rows in ("twice", [*range(30), *range(20)]), ("same", [0] * 30):
        faces[rows].tofile(tmp_path / f"data_{name}.bin")
        np.eye(2, dtype="<f4")[np.array(rows) % 2].tofile(tmp_path / f"gender_{name}.bin")
    dataset = Dataset.open_database(tmp_path / "data_twice.bin")
    learned, validation = Training.split(dataset, 0.5, seed=0)
    assert learned.nbdata == 25 and 0 < validation.nbdata < 25
    contents = [{face.tobytes() for face in part.data.grey()} for part in (learned, validation)]
    assert not contents[0] & contents[1] and len(contents[0] | contents[1]) == 30
    with pytest.raises(Dataset.UserError, match="30 training faces: the 3 to keep for validation are all among"):
        Training.split(Dataset.open_database(tmp_path / "data_same.bin"), 0.1, seed=0)


def test_each_epoch_has_an_order_of_its_own(database, tmp_path):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, augment=("none",)))
    seen = np.concatenate([x.numpy() for _, x, _ in training.batches(0)])
    count = training.train.nbdata
    for epoch in 0, 1:
        np.testing.assert_array_equal(seen[count * epoch:count * (epoch + 1)],
                                      training.train.data[training.train.order(epoch)])


def test_a_long_epoch_is_measured_amid_it_and_the_last_step_always(database, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "MEASURE_STEPS", 4)
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, epochs=1)))
    assert [row["step"] for row in training.curve] == [4, 6]
    assert [row["epoch"] for row in training.curve] == [pytest.approx(4 / 6), 1.0]


def test_the_best_weights_have_the_least_of_the_loss_that_was_learned(database, tmp_path):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, loss="squared-error"))
    training.curve = [{"validation_squared_error": learned, "validation_cross_entropy": other}
                      for learned, other in ((0.2, 0.9), (0.3, 0.5))]
    assert training._best_row() is training.curve[0]


def test_how_many_are_right_is_counted_not_cut(database, tmp_path):
    training = trainer(database, tmp_path)
    training.measured["validation"].nbdata = 50
    training.curve = [{"step": 1, "validation_cross_entropy": 0.5, "validation_accuracy": 0.58, "test_accuracy": 0.5}]
    assert training.result()["validation"]["correct"] == 29  # 0.58 * 50 is 28.999...


def test_best_weights_are_those_of_the_best_validation(database, tmp_path):
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, epochs=6)))
    best = training.result()
    net, prefix = Models.load(tmp_path)
    assert prefix.endswith(f"my_model-{best['best_step']}")
    (row,) = [row for row in training.curve if row["step"] == best["best_step"]]
    assert row["validation_cross_entropy"] == min(row["validation_cross_entropy"] for row in training.curve)
    assert best["validation"]["accuracy"] == row["validation_accuracy"]
    for name in "validation", "test":
        assert training.measured[name].mean_accuracy(net) == best[name]["accuracy"]
        assert best[name]["correct"] == round(best[name]["accuracy"] * best[name]["faces"])
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(best))


def test_checkpoint_has_the_courses_paths_and_restores_in_a_students_script(database, tmp_path):
    training = finish(trainer(database, tmp_path, net="densenet", nb_block=2, nb_filter=4))
    names = {name for name, _ in tf.train.list_variables(Models.find_checkpoint(tmp_path))}
    for path in "list/0/block/1/w", "list/1/cv/b", "fc1/w", "fc2/b":
        assert f"net/{path}/.ATTRIBUTES/VARIABLE_VALUE" in names
    net = Models.build("densenet", nb_block=2, nb_filter=4)
    optimizer = tf.optimizers.Adam(0.5)
    optimizer.build(net.trainable_variables)
    checkpoint = tf.train.Checkpoint(step=tf.Variable(1), optimizer=optimizer, net=net)
    checkpoint.restore(Models.find_checkpoint(tmp_path)).assert_consumed()
    checkpoint.restore(Models.find_checkpoint(tmp_path / "last")).assert_existing_objects_matched().expect_partial()
    np.testing.assert_array_equal(net.fc1.w, training.net.fc1.w)
    assert int(optimizer.iterations) == int(checkpoint.step) == training.total
    assert float(optimizer.learning_rate) == pytest.approx(Training.peak_rate(training.recipe))  # 0 teaches nothing


LABELS = tf.constant([[1.0, 0.0]])


def changed(faces, changes, seed=(0, 1), labels=None):
    """Faces ([N, 2304] uint8) as `augment` changes them, [N, 48, 48] in the course's scale."""
    labels = tf.tile(LABELS, [len(faces), 1]) if labels is None else labels
    x, _ = Training.augment(tf.constant(faces), labels, set(changes), tf.constant(seed))
    return x.numpy().reshape(-1, 48, 48)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, Dataset.DIM), np.uint8)


def test_no_change_is_the_pixel_scale():
    faces = noise(8)
    np.testing.assert_array_equal(changed(faces, []).reshape(8, -1), Dataset.to_float(faces))


def test_flip_mirrors_about_every_other_face():
    faces = noise(64)
    x, plain = changed(faces, ["flip"]), Dataset.to_float(faces).reshape(-1, 48, 48)
    same = np.abs(x - plain).max((1, 2)) < 1e-4
    mirrored = np.abs(x - plain[:, :, ::-1]).max((1, 2)) < 1e-4
    assert np.all(same ^ mirrored)
    assert 16 < same.sum() < 48


@pytest.mark.parametrize("change", [*Training.AUGMENTATION])
def test_each_change_depends_on_its_seed_alone_and_stays_a_picture(change):
    faces = noise(40)
    one, again, other = (changed(faces, [change], seed) for seed in ((0, 5), (0, 5), (0, 6)))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 0.02
    assert one.min() >= Dataset.BLACK and one.max() <= Dataset.WHITE


@pytest.mark.parametrize("change, moved", [("shift", 3.0 * math.sqrt(2)), ("rotation", 24 * math.sqrt(2) * 0.17),
                                           ("scale", 3.4)])
def test_a_dot_moves_no_further_than_the_change_allows(change, moved):
    face = np.zeros((48, 48), np.uint8)
    face[10:13, 22:25] = 255
    x = changed(np.tile(face.reshape(1, -1), (50, 1)), [change]) + 0.5
    rows = (x.sum(2) * np.arange(48)).sum(1) / x.sum((1, 2))
    columns = (x.sum(1) * np.arange(48)).sum(1) / x.sum((1, 2))
    far = np.hypot(rows - 11, columns - 23) - 0.1
    assert 0.15 * moved < far.max() <= moved


def test_mirrored_turned_and_scaled_the_middle_stays():
    face = np.zeros((48, 48), np.uint8)
    face[21:27, 21:27] = 255
    x = changed(np.tile(face.reshape(1, -1), (50, 1)), ["flip", "rotation", "scale"]) + 0.5
    for axis in 1, 2:
        np.testing.assert_allclose((x.sum(axis) * np.arange(48)).sum(1) / x.sum((1, 2)), 23.5, atol=0.1)


def test_cutout_is_drawn_over_the_whole_face():
    grey = changed(np.full((50, Dataset.DIM), 255, np.uint8), ["cutout"]) == 0.0
    rows, columns = ([np.flatnonzero(face.any(axis)).mean() for face in grey] for axis in (1, 0))
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.5


def test_light_is_a_line_of_the_grey_levels():
    face = np.arange(2304, dtype=np.float64) / 2304 * 64 + 96
    x = changed(np.tile(face.astype(np.uint8), (50, 1)), ["contrast", "brightness"]).reshape(50, -1)
    plain = Dataset.to_float(face.astype(np.uint8))
    lines = np.array([np.polyfit(plain, row, 1) for row in x])
    assert abs(np.corrcoef(lines.T)[0, 1]) < 0.5  # each has a draw of its own
    for row in x:
        gain, offset = np.polyfit(plain, row, 1)
        np.testing.assert_allclose(row, gain * plain + offset, atol=1e-5)
        assert 0.75 <= gain <= 1.25 and abs(offset) <= 0.12


def test_sharpness_adds_a_share_of_what_a_3x3_mean_takes_away():
    faces = np.tile(noise(1), (30, 1)) // 8 + 112
    plain = Dataset.to_float(faces[0]).reshape(48, 48)
    padded = np.pad(plain, 1, "reflect")
    mean = sum(padded[i:i + 48, j:j + 48] for i in range(3) for j in range(3)) / 9
    shares = []
    for x in changed(faces, ["sharpness"]):
        shares.append(((x - plain) * (plain - mean)).sum() / ((plain - mean)**2).sum())
        np.testing.assert_allclose(x, plain + shares[-1] * (plain - mean), atol=1e-5)
    assert -1.0 <= min(shares) < -0.5 and 0.5 < max(shares) <= 1.0


def test_cutout_greys_one_square_of_each_face():
    x = changed(np.full((50, Dataset.DIM), 255, np.uint8), ["cutout"])
    grey = x == 0.0
    assert np.all(grey | (x == Dataset.WHITE))
    assert grey.sum((1, 2)).max() == 256
    for face in grey:
        rows, columns = face.any(1), face.any(0)
        assert 8 <= rows.sum() <= 16 and 8 <= columns.sum() <= 16
        np.testing.assert_array_equal(face, rows[:, None] & columns[None])


def test_mixup_mixes_a_face_and_its_label_with_another_in_the_same_share():
    faces, labels = noise(64), np.eye(2, dtype=np.float32)[np.arange(64) % 2]
    x, mixed = Training.augment(tf.constant(faces), tf.constant(labels), {"mixup"}, tf.constant([0, 1]))
    share = np.where(np.arange(64) % 2, mixed[:, 1], mixed[:, 0])[:, None]
    plain = Dataset.to_float(faces)
    np.testing.assert_allclose(x, share * plain + (1 - share) * plain[::-1], atol=1e-5)
    np.testing.assert_allclose(mixed.numpy().sum(1), 1.0, atol=1e-6)
    assert np.mean((share < 0.1) | (share > 0.9)) > 0.3 and share.std() > 0.2  # Beta(0.4, 0.4)


@pytest.mark.parametrize("schedule, golden", [
    ("cosine", {0: 2e-4, 4: 1e-3, 9: 2e-3, 54: 1e-3, 99: 0.0}), ("constant", {4: 1e-3, 9: 2e-3, 99: 2e-3}),
    ("step", {4: 1e-3, 53: 2e-3, 54: 2e-4, 77: 2e-5, 99: 2e-5}),
    ("inverse", {4: 1e-3, 9: 2e-3, 54: 2e-3 / 10.5, 99: 1e-4})])
def test_schedules_by_hand(schedule, golden):
    for step, rate in golden.items():
        recipe = Training.Recipe(schedule=schedule, learning_rate=2e-3)
        assert float(Training.scheduled_rate(recipe, step, 100)) == pytest.approx(rate, rel=1e-4, abs=1e-9)


def test_no_warm_up_begins_at_the_peak_and_transfer_at_a_tenth():
    recipe = Training.Recipe(schedule="constant", warm_up=0.0)
    peak = Training.OPTIMIZERS["adam"][2]
    assert float(Training.scheduled_rate(recipe, 0, 100)) == pytest.approx(peak)
    assert Training.peak_rate(dataclasses.replace(recipe, start="pretrained")) == pytest.approx(peak / 10)
    assert Training.peak_rate(dataclasses.replace(recipe, start="pretrained", learning_rate=0.5)) == 0.5


def test_learning_rate_of_the_curve_is_the_schedules(database, tmp_path):
    training = finish(trainer(database, tmp_path))
    for row in training.curve:
        assert row["learning_rate"] == float(Training.scheduled_rate(RECIPE, row["step"] - 1, training.total))


@pytest.mark.parametrize("name", Training.OPTIMIZERS)
def test_optimizer_steps_as_its_formula(name):
    recipe = Training.Recipe(optimizer=name, learning_rate=0.1, weight_decay=0.5, schedule="constant")
    net = Models.build("perceptron", hidden=1)
    optimizer = Training.make_optimizer(recipe, net.trainable_variables)
    w, b = net.fc1.w, net.fc1.b
    before, gradients = w.numpy(), (0.5, -0.25)
    decayed = before
    velocity, square, mean = 0.0, 0.1 if name == "adagrad" else 0.0, 0.0
    for step, g in enumerate(gradients, 1):
        optimizer.apply_gradients([(tf.fill(v.shape, g), v) for v in net.trainable_variables])
        if name == "adam":
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            move = 0.1 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-7)
        elif name == "rmsprop":
            square = 0.9 * square + 0.1 * g * g
            move = 0.1 * g / math.sqrt(square + 1e-7)
        elif name == "adagrad":
            square += g * g
            move = 0.1 * g / math.sqrt(square + 1e-7)
        else:
            velocity = 0.0 if name == "sgd" else 0.9 * velocity
            velocity += 0.1 * g
            move = 0.1 * g + 0.9 * velocity if name == "nesterov" else velocity
        decayed = decayed * (1 - 0.1 * 0.5) - move
        bias = (0.0 if step == 1 else bias) - move
    np.testing.assert_allclose(w.numpy(), decayed, atol=2e-4)
    np.testing.assert_allclose(b.numpy(), bias, atol=2e-4)  # biases do not decay


P = math.exp(2) / (math.exp(2) + 1)  # what logits (2, 0) say of the first class


@pytest.mark.parametrize("changes, expected", [
    ({}, -(0.95 * math.log(P) + 0.05 * math.log(1 - P))), ({"label_smoothing": 0.0}, -math.log(P)),
    ({"loss": "generalized", "label_smoothing": 0.0}, (1 - P**0.7) / 0.7),
    ({"loss": "generalized"}, (0.95 * (1 - P**0.7) + 0.05 * (1 - (1 - P)**0.7)) / 0.7),
    ({"loss": "squared-error", "label_smoothing": 0.0}, 2 * (1 - P)**2),
    ({"loss": "bootstrap", "label_smoothing": 0.0},
     -((0.95 + 0.05 * P) * math.log(P) + 0.05 * (1 - P) * math.log(1 - P))),
    ({"l1": 0.01, "label_smoothing": 0.0}, -math.log(P) + 0.01)])
def test_losses_by_hand(database, tmp_path, changes, expected):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, **changes))
    for variable in training.net.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    training.net.fc.w[0, 0].assign(-1.0)  # multiplied by a zero: counts in the penalty alone
    training.net.fc.b.assign([2.0, 0.0])
    loss = training.learn([0, 0], tf.zeros([1, Dataset.DIM]), LABELS)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["cross-entropy", "generalized", "bootstrap"])
def test_a_net_that_is_sure_and_wrong_learns(database, tmp_path, loss):
    """Many filters without BatchNorm give first logits so far apart that softmax rounds to 0 and 1."""
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, loss=loss, label_smoothing=0.0))
    training.net.fc.w.assign(tf.zeros_like(training.net.fc.w))
    training.net.fc.b.assign([-150.0, 150.0])
    loss_there = float(training.learn([0, 0], tf.zeros([1, Dataset.DIM]), LABELS))
    assert math.isfinite(loss_there) and np.isfinite(training.net.fc.b.numpy()).all()
    assert loss_there == pytest.approx({"cross-entropy": 300.0, "generalized": 1 / 0.7, "bootstrap": 285.0}[loss])
    assert (training.net.fc.b.numpy() != [-150.0, 150.0]).all() == (loss != "generalized")  # that gives such faces up


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_teachers_answer_is_a_share_of_the_label(database, tmp_path, smoothing):
    recipe = dataclasses.replace(RECIPE, teaching=0.7, label_smoothing=smoothing)
    training = trainer(database, tmp_path, recipe=recipe)
    training.teacher = lambda x: tf.constant([[-1.0, 1.0]])
    training.net.fc.w.assign(tf.zeros_like(training.net.fc.w))
    training.net.fc.b.assign([2.0, 0.0])
    taught = 0.3 * (1 - smoothing / 2) + 0.7 / (1 + math.exp(2))
    loss = training.learn([0, 0], tf.zeros([1, Dataset.DIM]), LABELS)
    assert float(loss) == pytest.approx(-(taught * math.log(P) + (1 - taught) * math.log(1 - P)), rel=1e-4)


def test_clipped_gradient_is_no_longer_than_asked(database, tmp_path):
    recipe = Training.Recipe(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, schedule="constant", warm_up=0.0,
                             clip_norm=1e-3)
    training = trainer(database, tmp_path, recipe=recipe)
    before = [variable.numpy() for variable in training.variables]
    training.learn([0, 0], tf.ones([4, Dataset.DIM]), tf.tile(LABELS, [4, 1]))
    moved = math.sqrt(sum(((v.numpy() - b)**2).sum() for v, b in zip(training.variables, before, strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_moving_average_by_hand():
    net = Models.build("small")
    average = Training.Average(net, 0.15)
    first = net.fc.b.numpy()
    expected = first
    for number, value in enumerate((1.0, 5.0, -2.0), 1):
        net.fc.b.assign([value, value])
        average.update(tf.constant(number, tf.int64))
        kept = min(0.15, number / (number + 9))
        expected = kept * expected + (1 - kept) * value
    with average.in_place():
        np.testing.assert_allclose(net.fc.b, expected, rtol=1e-6)
    np.testing.assert_array_equal(net.fc.b, [-2.0, -2.0])


def test_the_average_is_what_is_measured_and_kept(database, tmp_path):
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, epochs=1)))
    kept = Models.load(tmp_path)[0]
    assert np.abs(kept.fc.w - training.net.fc.w).max() > 1e-5
    with training.average.in_place():
        np.testing.assert_array_equal(kept.fc.w, training.net.fc.w)
    np.testing.assert_array_equal(Models.load(tmp_path / "last")[0].fc.w, training.net.fc.w)


def test_patience_ends_the_training_and_a_resume_does_not_revive_it(database, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=30, patience=2, learning_rate=1e-9)
    training = finish(trainer(database, tmp_path, recipe=recipe))
    best = training.curve.index(training._best_row())
    assert len(training.curve) == best + 3 < 30
    resumed = trainer(database, tmp_path, recipe=recipe)
    resumed.resume()
    assert finish(resumed).curve == training.curve


def test_frozen_layers_keep_their_moving_averages(database, tmp_path):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, freeze=1, averaging=0.0), **DROPPING)
    first, second = (layer.bn for layer in Training.weight_layers(training.net)[:2])
    before = first.mean.numpy(), second.mean.numpy()
    finish(training)
    np.testing.assert_array_equal(first.mean, before[0])
    assert np.any(second.mean != before[1])


def test_layers_that_are_no_longer_frozen_learn(database, tmp_path):
    training = trainer(database, tmp_path / "a", recipe=dataclasses.replace(RECIPE, freeze=1), **DROPPING)
    bn = Training.weight_layers(training.net)[0].bn
    assert bn.frozen
    before = bn.mean.numpy()
    again = Training.Trainer(training.net, training.train, training.measured["validation"], None, RECIPE,
                             tmp_path / "b", None, training.net.description)
    finish(again)
    assert np.any(bn.mean != before)


def test_a_training_leaves_the_dataset_that_it_was_given_as_it_is(database, tmp_path):
    dataset = Dataset.open_database(database, 50)
    dataset.seed = 5
    seen = [dataset.NextTrainingBatch()[0]]
    net = Models.build("small")
    Training.Trainer(net, dataset, dataset, None, RECIPE, tmp_path, None, net.description)
    list(Training.find_rate(Models.build("small"), dataset, RECIPE, steps=2))
    seen += [dataset.NextTrainingBatch()[0] for _ in range(3)]
    assert dataset.seed == 5 and len({face.tobytes() for part in seen for face in np.asarray(part)}) == 200


def test_a_training_in_a_thread_ends_as_any(database, tmp_path):
    training = trainer(database, tmp_path)
    thread = threading.Thread(target=finish, args=(training,))
    thread.start()
    thread.join()
    assert int(training.step) == training.total


@pytest.mark.parametrize("augment", ["flip", ("rotate",), ("flip", "rotate")])
def test_a_change_that_does_not_exist_is_refused(augment):
    with pytest.raises(Dataset.UserError, match="expected a tuple of flip, rotation"):
        Training.Recipe(augment=augment)


@pytest.mark.parametrize("net, freeze", [("convnet", 2), ("resnet", 3)])
def test_what_follows_frozen_layers_learns_on_what_it_is_asked_about(database, tmp_path, net, freeze):
    """Frozen BatchNorm uses its averages in training too, as measures and inference do."""
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, freeze=freeze, averaging=0.0), net=net,
                       nb_filter=4, batchnorm=True)
    frozen = Training.weight_layers(training.net)[:freeze]
    for layer in frozen:
        layer.bn.mean.assign(tf.random.normal(layer.bn.mean.shape))
    sequence = training.net.sequence()
    last = max(i for i, layer in enumerate(sequence) if isinstance(layer, tf.Module) and {frozen[-1]} & {
        layer, *layer.submodules})
    x = tf.constant(training.train.data[:5])
    np.testing.assert_array_equal(training.net(x, False, True, last=last + 1), training.net(x, last=last + 1))


def test_a_training_of_one_step_learns(database, tmp_path):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, epochs=1, batch_size=1000))
    before = [variable.numpy() for variable in training.variables]
    finish(training)
    assert training.total == 1
    assert any(np.any(variable != value) for variable, value in zip(training.variables, before, strict=True))


def test_trainings_of_one_name_have_logs_of_their_own(database, in_folder, capsys):
    common = ["--train", str(database), "--net", "small", "--epochs", "1"]
    for out, logs in ("a/run", "run"), ("b/run", "run-2"):
        assert Console.run(Main.main, [*common, "--out", out]) == 0
        assert f"checkpoints in {out}, summaries in logs/{logs}\n" in capsys.readouterr().out
    before = {path: path.stat().st_size for path in (in_folder / "logs" / "run").rglob("events*")}
    assert before
    assert Console.run(Main.main, ["--resume", "--out", "b/run", "--epochs", "2"]) == 0
    assert "checkpoints in b/run, summaries in logs/run-2\n" in capsys.readouterr().out
    assert {path: path.stat().st_size for path in (in_folder / "logs" / "run").rglob("events*")} == before


def test_logs_that_a_training_gets_when_resumed_are_its_own(database, in_folder, monkeypatch, capsys):
    common = ["--train", str(database), "--net", "small", "--epochs", "1"]
    assert Console.run(Main.main, [*common, "--out", "a/run"]) == 0
    assert Console.run(Main.main, [*common, "--out", "b/run", "--logs", "none"]) == 0
    capsys.readouterr()
    assert Console.run(Main.main, ["--resume", "--out", "b/run", "--logs", "logs", "--epochs", "2"]) == 0
    assert "summaries in logs/run-2\n" in capsys.readouterr().out
    (in_folder / "here").mkdir()
    monkeypatch.chdir(in_folder / "here")
    assert Console.run(Main.main, [*common, "--out", "."]) == 0
    assert "summaries in logs/here\n" in capsys.readouterr().out


def test_frozen_layers_keep_their_weights(database, tmp_path):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, freeze=2), net="resnet", nb_filter=4)
    layers = Training.weight_layers(training.net)
    before = [layer.w.numpy() for layer in layers]
    finish(training)
    same = [np.array_equal(layer.w, w) for layer, w in zip(layers, before, strict=True)]
    assert same == [True] * 2 + [False] * (len(layers) - 2)
    with pytest.raises(Dataset.UserError, match="one must learn"):
        trainer(database, tmp_path / "all", recipe=dataclasses.replace(RECIPE, freeze=len(layers)), net="resnet",
                nb_filter=4)


@pytest.mark.parametrize("net, options", [("nn4", {}), ("resnet", {"nb_filter": 4}), ("densenet", {"nb_filter": 4})])
def test_lsuv_gives_each_layer_variance_one(net, options):
    built = Models.build(net, **options)
    x = tf.constant(Dataset.to_float(noise(64)))
    Training.whiten(built, x, seed=3)
    layer = Training.weight_layers(built)[0]
    w = layer.w.numpy().reshape(-1, layer.w.shape[-1])
    gram = w @ w.T if len(w) < w.shape[1] else w.T @ w
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(len(gram)), atol=1e-4 * gram[0, 0])
    for layer in Training.weight_layers(built):
        seen = []
        normal, layer.bn = layer.bn, lambda y, *_: seen.append(float(tf.math.reduce_std(y))) or y
        built(x)
        layer.bn = normal
        assert seen[0] == pytest.approx(1.0, rel=1e-2)


def test_lsuv_draws_by_the_seed():
    nets = []
    for seed in 3, 4:
        nets.append(Models.build("small"))
        Training.whiten(nets[-1], tf.constant(Dataset.to_float(noise(32))), seed)
    assert np.abs(nets[0].cv1.w - nets[1].cv1.w).max() > 1e-3


def test_range_test_rises_and_ends_where_the_loss_explodes(database):
    recipe = dataclasses.replace(RECIPE, optimizer="momentum")
    tests = list(Training.find_rate(Models.build("small"), Dataset.open_database(database), recipe, steps=60))
    rates = [rate for rate, _ in tests]
    assert len(rates) <= 60  # of 9 epochs of 7 steps
    assert rates == sorted(rates) and rates[0] < 2e-6 and rates[-1] <= 10.0
    assert tests[0][1] == pytest.approx(0.7, abs=0.2)


def test_range_test_ends_at_four_times_the_least_loss(database, monkeypatch):
    losses = iter([1.0, 0.5, 0.4, *[300.0] * 50])

    class Told(Training.Trainer):
        def __init__(self, *given):
            super().__init__(*given)
            self.learn = lambda *_: next(losses)
    monkeypatch.setattr(Training, "Trainer", Told)
    assert len(list(Training.find_rate(Models.build("small"), Dataset.open_database(database), RECIPE, steps=20))) == 3


def test_range_test_asks_the_teacher_and_draws_by_the_seed(database):
    asked = []

    def teacher(x):
        asked.append(1)
        return tf.zeros([tf.shape(x)[0], 2])
    found = []
    for seed in 0, 1:
        Training.make_deterministic(0)
        recipe = dataclasses.replace(RECIPE, seed=seed, augment=("none",))
        found.append(list(Training.find_rate(Models.build("small"), Dataset.open_database(database), recipe, teacher,
                                             steps=2)))
    assert asked and found[0] != found[1]


def with_traits(database, out, share, known=True, **options):
    """A training that tells ages and ethnicities too; known  whether the faces have any: women are old, men Asian"""
    Training.make_deterministic(0)
    dataset = Dataset.open_database(database)
    dataset.traits = np.zeros((dataset.nbdata, 10), np.float32)
    if known:
        dataset.traits[dataset.label[:, 1] == 1, 4] = 1.0
        dataset.traits[dataset.label[:, 0] == 1, 7] = 1.0
    learned, validation = Training.split(dataset, RECIPE.validation, 0)
    net = Models.build("convnet", nb_block=2, nb_filter=4, batchnorm=True)
    return Training.Trainer(net, learned, validation, None, dataclasses.replace(RECIPE, traits=share, **options), out,
                            None, net.description)


def test_traits_are_learned_beside_man_and_woman(database, tmp_path):
    training = finish(with_traits(database, tmp_path, 1.0, epochs=6))
    net, head, part = training.net, training.head, training.train
    probabilities = tf.nn.softmax(head(net(tf.constant(part.data[:]), last=-1))[:, :5])
    assert np.mean(probabilities.numpy()[part.label[:, 1] == 1, 4]) > 0.5   # of the men's ages nothing was said
    restored, _ = Models.load(tmp_path / "last")
    for one, other in zip(net.variables, restored.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any("traits" in path for path in restored.variables_by_path())


def test_unknown_traits_teach_nothing(database, tmp_path):
    without = finish(with_traits(database, tmp_path / "a", 0.0))
    unknown = finish(with_traits(database, tmp_path / "b", 1.0, known=False))
    for one, other in zip(without.net.variables, unknown.net.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.any(unknown.head.w)


def test_traits_change_what_is_learned_and_are_resumed_bit_by_bit(database, tmp_path):
    whole = finish(with_traits(database, tmp_path / "whole", 0.3))
    interrupt_at(with_traits(database, tmp_path / "cut", 0.3), 7)
    resumed = with_traits(database, tmp_path / "cut", 0.3)
    resumed.resume()
    assert_same(finish(resumed), whole)
    np.testing.assert_array_equal(resumed.head.w, whole.head.w)
    without = finish(with_traits(database, tmp_path / "without", 0.0))
    assert np.abs(without.net.variables[0] - whole.net.variables[0]).max() > 1e-4


def test_the_loss_of_traits_by_hand(database, tmp_path):
    training = with_traits(database, tmp_path, 1.0)
    training.head.w.assign(tf.random.stateless_normal(training.head.w.shape, (1, 2)))
    features = tf.random.stateless_normal([3, training.head.w.shape[0]], (3, 4))
    traits = np.zeros((3, 10), np.float32)
    traits[0, 2] = traits[0, 5] = traits[1, 9] = 1.0
    z = (features @ training.head.w + training.head.b).numpy().astype(float)
    age, ethnicity = (part - np.log(np.exp(part).sum(1, keepdims=True)) for part in (z[:, :5], z[:, 5:]))
    expected = -(age[0, 2] + ethnicity[0, 0] + ethnicity[1, 4]) / 3
    assert float(training._traits_loss(features, tf.constant(traits))) == pytest.approx(expected, rel=1e-5)


def test_main_learns_traits_from_the_meta_file(tmp_path, in_folder, capsys):
    path = write_database(tmp_path, "known", 60)
    arguments = ["--train", str(path), "--epochs", "1", "--net", "small", "--logs", "none", "--traits", "0.3"]
    assert Console.run(Main.main, [*arguments, "--out", "a"]) == 2
    assert "meta_known.csv is missing" in capsys.readouterr().err
    (tmp_path / "meta_known.csv").write_text("age,ethnicity\n" + "30,1\n,\n" * 30)
    assert Console.run(Main.main, [*arguments, "--out", "a"]) == 0
    assert Console.run(Main.main, [*arguments, "--out", "b", "--augment", "mixup"]) == 0
    assert Console.run(Main.main, [*(a for a in arguments if a not in ("--net", "small")), "--from", "a", "--freeze",
                                   "1", "--out", "c"]) == 0
    assert Console.run(Main.main, [*arguments, "--find-lr"]) == 0


def test_main_learns_from_a_checkpoint_and_from_teachers(database, in_folder, capsys):
    common = ["--train", str(database), "--epochs", "1", "--logs", "none"]
    assert Console.run(Main.main, [*common, "--net", "convnet", "--nb-block", "2", "--nb-conv", "2", "--filter-size",
                                   "3x1", "1x3", "--lsuv", "--out", "first"]) == 0
    first = Models.load("first")[0]
    assert [tuple(layer.w.shape[:2]) for layer in Training.weight_layers(first)[:4]] == [(3, 1), (1, 3)] * 2
    assert Console.run(Main.main, [*common, "--from", "first", "--freeze", "4", "--out", "second"]) == 0
    assert capsys.readouterr().out.splitlines()[-6].startswith("ConvNet, ")
    second = Models.load("second/last")[0]
    same = [np.array_equal(one.w, other.w) for one, other in zip(*map(Training.weight_layers, (first, second)))]
    assert same == [True] * 4 + [False]
    assert json.loads((in_folder / "second" / "metrics.json").read_text())["curve"][0]["learning_rate"] < 5e-4
    assert Console.run(Main.main, [*common, "--from", "first", "--net", "nn4", "--out", "third"]) == 2
    assert "--from goes on with the net of first; leave --net out" in capsys.readouterr().err
    assert Console.run(Main.main, [*common, "--net", "small", "--teacher", "first", "second", "--balance", "sex",
                                   "--out", "fourth"]) == 0
    assert Console.run(Main.main, [*common, "--net", "perceptron", "--teacher", "fourth", "--out", "sixth"]) == 0
    assert Console.run(Main.main, [*common, "--net", "small", "--teacher", "sixth", "--out", "seventh"]) == 0
    assert Console.run(Main.main, [*common, "--filter-size", "3x", "--out", "fifth"]) == 2
    assert "--filter-size 3x: expected a width" in capsys.readouterr().err
    for net in "densenet", "resnet":
        assert Console.run(Main.main, [*common, "--net", net, "--filter-size", "3", "5", "--out", "fifth"]) == 2
        assert f"--filter-size 3 5: a {net} has one for all" in capsys.readouterr().err
    assert Console.run(Main.main, [*common, "--from", "first", "--lsuv", "--out", "third"]) == 2
    assert "leave --lsuv out" in capsys.readouterr().err
    assert Console.run(Main.main, [*common, "--initializer", "xavier", "--lsuv", "--out", "third"]) == 2
    assert "leave --initializer out" in capsys.readouterr().err


@pytest.mark.parametrize("net, given, kernels", [("nn4", ["5x1"], {(5, 1)}), ("nn4", ["3", "5x3"], {(3, 3), (5, 3)}),
                                                 ("densenet", ["3x1"], {(3, 1), (1, 1)})])
def test_filter_sizes_are_those_that_are_named(in_folder, net, given, kernels):
    built = Main.first_net(Main.Options(net=net, filter_size=given), in_folder, None)
    assert {tuple(layer.w.shape[:2]) for layer in Training.weight_layers(built) if len(layer.w.shape) == 4} == kernels


def write_head(database, path, count):
    """The first faces of a database as one of their own."""
    path.write_bytes(database.read_bytes()[:count * Dataset.DIM])
    labels = Dataset.database_files(database)[1].read_bytes()
    Dataset.database_files(path)[1].write_bytes(labels[:count * 8])


def test_a_database_named_twice_is_learned_once(database):
    again = database.parent / ".." / database.parent.name / database.name
    assert Main.databases(Main.Options(train=[str(database), str(again)]))[0].nbdata == 200


def test_what_is_measured_or_learned_already_is_left_out(database, tmp_path, capsys):
    """`10k` begins with `1k`: whichever is tested, or named twice, no face is on both sides."""
    head = tmp_path / "data_head.bin"
    write_head(database, head, 60)
    learned, measured = Main.databases(Main.Options(train=[str(database)], test=str(head)))
    assert capsys.readouterr().err == f"{database}: 60 faces left out, which --test or another --train holds\n"
    np.testing.assert_array_equal(learned.data.grey(), Dataset.open_database(database).data.grey()[60:])
    np.testing.assert_array_equal(learned.label, Dataset.open_database(database).label[60:])
    assert measured.nbdata == 60
    learned, _ = Main.databases(Main.Options(train=[str(head), str(database)]))
    np.testing.assert_array_equal(learned.data.grey(), Dataset.open_database(database).data.grey())
    learned, _ = Main.databases(Main.Options(train=[str(database), str(head)]))
    np.testing.assert_array_equal(learned.data.grey(), Dataset.open_database(database).data.grey())


def test_groups_and_traits_follow_the_faces_that_are_left(database, tmp_path):
    head = tmp_path / "data_head.bin"
    write_head(database, head, 60)
    for path, count in (database, 200), (head, 60):
        meta = Dataset.database_files(path)[2]
        meta = tmp_path / meta.name
        meta.write_text("age,ethnicity\n" + "".join(f"{row % 90},{row % 5}\n" for row in range(count)))
    for name in "data_learn.bin", "gender_learn.bin":
        (tmp_path / name).write_bytes(database.with_name(name).read_bytes())
    options = Main.Options(train=[str(tmp_path / "data_learn.bin")], test=str(head), balance="age", traits=0.5)
    learned, _ = Main.databases(options)
    whole, _ = Main.databases(dataclasses.replace(options, test=None))
    np.testing.assert_array_equal(learned.group, whole.group[60:])
    np.testing.assert_array_equal(learned.traits, whole.traits[60:])


def test_a_repeated_face_of_one_database_stays(database, tmp_path):
    twice = tmp_path / "data_twice.bin"
    for name in "data", "gender":
        (tmp_path / f"{name}_twice.bin").write_bytes(2 * database.with_name(f"{name}_learn.bin").read_bytes())
    assert Main.databases(Main.Options(train=[str(twice)]))[0].nbdata == 400


def test_ctrl_c_before_anything_was_saved_says_so(database, in_folder, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(Training.Trainer, "_open_summaries", interrupted)
    command = ["--train", str(database), "--net", "small", "--out", "checkpoints/cut"]
    assert Console.run(Main.main, command) == 130
    assert "interrupted at step 0 of 40, before anything was saved: begin again" in capsys.readouterr().out
    assert Console.run(Main.main, ["--resume"]) == 2
    assert "no training under checkpoints/ to go on with" in capsys.readouterr().err


def test_a_training_that_counted_its_steps_in_int64_goes_on(database, tmp_path):
    whole = finish(trainer(database, tmp_path / "whole"))
    cut = trainer(database, tmp_path / "cut")
    interrupt_at(cut, 4)
    for path in (tmp_path / "cut" / "last").glob("my_model*"):
        path.unlink()
    cut._checkpoint(tf.Variable(4, dtype=tf.int64)).save(str(tmp_path / "cut" / "last" / "my_model"))
    resumed = trainer(database, tmp_path / "cut")
    resumed.resume()
    assert_same(finish(resumed), whole)


def test_a_training_does_not_go_on_with_other_faces(database, in_folder, capsys):
    copy = in_folder / "data_copy.bin"
    for kind in "data", "gender":
        shutil.copy(database.with_name(database.name.replace("data", kind)), in_folder / f"{kind}_copy.bin")
    arguments = ["--net", "small", "--epochs", "1", "--train", str(copy), "--out", "run"]
    assert Console.run(Main.main, arguments) == 0
    labels = np.fromfile(in_folder / "gender_copy.bin", "<f4").reshape(-1, 2)
    labels[:, ::-1].tofile(in_folder / "gender_copy.bin")
    capsys.readouterr()
    assert Console.run(Main.main, ["--resume", "--out", "run", "--epochs", "2"]) == 2
    assert "run: the training databases are no longer those" in capsys.readouterr().err
    for folder in "run", "run/last":  # what is refused changes nothing
        assert json.loads((in_folder / folder / "network.json").read_text())["training"]["epochs"] == 1
    labels.tofile(in_folder / "gender_copy.bin")
    assert Console.run(Main.main, ["--resume", "--out", "run", "--epochs", "2"]) == 0


def test_resume_passes_over_trainings_of_other_scripts(database, in_folder, capsys):
    assert Console.run(Main.main, ["--net", "small", "--epochs", "1", "--train", str(database), "--logs", "none",
                                   "--out", "checkpoints/mine"]) == 0
    shutil.copytree("checkpoints/mine", "checkpoints/retrained/round1")
    other = in_folder / "checkpoints/retrained/round1/last/network.json"
    other.write_text(json.dumps({name: value for name, value in json.loads(other.read_text()).items()
                                 if name != "training"}))
    capsys.readouterr()
    assert Console.run(Main.main, ["--resume", "--epochs", "2"]) == 0
    assert "checkpoints in checkpoints/mine\n" in capsys.readouterr().out


def test_trainings_that_begin_in_the_same_second_have_folders_of_their_own(database, in_folder, monkeypatch, capsys):
    monkeypatch.setattr(Main.time, "strftime", lambda text: "now")
    folders = [Console.claim(Path("checkpoints/small-now")) for _ in range(2)]
    assert folders == [Path("checkpoints/small-now"), Path("checkpoints/small-now-2")]
    assert Console.run(Main.main, ["--net", "small", "--epochs", "1", "--train", str(database), "--logs", "none"]) == 0
    assert "checkpoints in checkpoints/small-now-3\n" in capsys.readouterr().out


def test_the_rate_counts_the_faces_that_there_are(database, tmp_path):
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, batch_size=4096)))
    assert training.faces_per_step == 190
    assert all(row["images_per_second"] * row["seconds"] / row["step"] <= 190 * 1.5 for row in training.curve[:1])


def test_main_finds_a_learning_rate(database, in_folder, capsys):
    assert Console.run(Main.main, ["--train", str(database), "--net", "small", "--find-lr"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "--learning-rate" in out[-1] and max(map(len, out)) < 80
    assert not list(in_folder.rglob("*.index"))


def test_summaries_of_the_course(database, tmp_path):
    training = finish(trainer(database, tmp_path / "out", logs=tmp_path / "logs"))
    events = {}
    for name in "train", "validation", "test":
        events[name] = EventAccumulator(str(tmp_path / "logs" / name), {"tensors": 0})
        events[name].Reload()
        for tag in "accuracy", "cross entropy":
            logged = [float(tf.make_ndarray(event.tensor_proto)) for event in events[name].Tensors(tag)]
            assert logged == pytest.approx([row[f"{name}_{tag.replace(' ', '_')}"] for row in training.curve])
    tags = events["train"].Tags()
    assert tags["graph"]
    assert {"learning rate", "unflat", "cv1/w", "cv1/w/mean", "cv1/w/max", "fc/w"} <= set(tags["tensors"])
    plugins = events["validation"].PluginTagToContent("hparams")
    assert b"learning_rate" in next(iter(plugins.values()))


def test_summaries_show_what_is_made_small_and_what_chooses(database, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1, loss="squared-error", adversarial=20.0)
    training = finish(trainer(database, tmp_path / "out", recipe=recipe, logs=tmp_path / "logs"))
    for name, tag, key in (("train", "loss", "loss"), ("validation", "squared error", "validation_squared_error"),
                           ("validation", "squared error when attacked", "attacked_squared_error"),
                           ("validation", "cross entropy", "validation_cross_entropy")):
        events = EventAccumulator(str(tmp_path / "logs" / name), {"tensors": 0})
        events.Reload()
        logged = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        assert logged == pytest.approx([row[key] for row in training.curve])


def test_main_says_that_it_stopped_early(database, in_folder, capsys):
    arguments = ["--train", str(database), "--net", "perceptron", "--epochs", "30", "--patience", "1", "--logs", "none",
                 "--learning-rate", "1e-9", "--out", "run"]
    assert Console.run(Main.main, arguments) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    said = f"stopped early: the least loss was after step {metrics['best_step']} (--patience 1)"
    assert len(metrics["curve"]) < 30 and capsys.readouterr().out.splitlines()[-2] == said
    assert Console.run(Main.main, ["--resume", "--out", "run", "--epochs", "60"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == said


def test_learns_what_can_be_learned(database, tmp_path):
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, epochs=20, precision="auto"),
                              net="resnet", nb_filter=8))
    assert training.result()["test"]["accuracy"] > 0.95


def test_main_says_the_accuracy_last_and_resume_refuses_other_options(database, in_folder, capsys):
    arguments = ["--train", str(database), "--test", str(database.parent / "data_test.bin"), "--net", "small",
                 "--epochs", "2", "--out", "run"]
    assert Console.run(Main.main, arguments) == 0
    out = capsys.readouterr().out.splitlines()
    test = json.loads((in_folder / "run" / "metrics.json").read_text())["test"]
    assert out[-1] == f"test accuracy {100 * test['accuracy']:.2f} %  ({test['correct']} of 60)"
    assert max(map(len, out[2:])) < 80
    saved = json.loads((in_folder / "run" / "network.json").read_text())
    assert saved["network"] == "SmallConvNet" and saved["training"]["epochs"] == 2
    assert Console.run(Main.main, ["--resume", "--out", "run", "--seed", "4"]) == 2
    assert "--resume goes on with --seed 0, not 4" in capsys.readouterr().err
    assert Console.run(Main.main, ["--resume", "--out", "run", "--epochs", "1"]) == 2
    assert "run: 4 steps are done, --epochs 1 are 2; ask for more, or leave it out" in capsys.readouterr().err
    assert json.loads((in_folder / "run" / "network.json").read_text()) == saved
    assert Console.run(Main.main, [*arguments[:-4], "--epochs", "3", "--resume", "--out", "run"]) == 0
    assert len(json.loads((in_folder / "run" / "metrics.json").read_text())["curve"]) == 3


@pytest.mark.skipif(not REAL_FACES.is_dir(), reason="no real faces beside the project")
def test_learns_real_faces(in_folder):
    arguments = ["--train", str(REAL_FACES / "data_16k.bin"), "--test", str(REAL_FACES / "data_test4k.bin"),
                 "--epochs", "3", "--out", "run"]
    assert Console.run(Main.main, arguments) == 0
    assert json.loads((in_folder / "run" / "metrics.json").read_text())["test"]["accuracy"] > 0.8


def test_without_databases_named_it_takes_the_largest_and_the_test_base(in_folder, monkeypatch, capsys):
    for name, count in ("1k", 40), ("10k", 80), ("test10k", 120):
        write_database(in_folder, name, count, seed=count)
    monkeypatch.setattr(Dataset.default_databases, "__defaults__", (in_folder,))
    assert Console.run(Main.main, ["--net", "small", "--epochs", "1", "--out", "run", "--logs", "none"]) == 0
    out = capsys.readouterr().out
    assert "76 faces to learn, 4 to validate, 120 to test" in out
    assert out.splitlines()[-1].endswith(" of 120)")
    assert not (in_folder / "logs").exists()


def test_split_depends_on_the_seed(database):
    one, other = (set(Training.split(Dataset.open_database(database), 0.1, seed)[1].data.rows) for seed in (3, 4))
    assert one != other


@pytest.mark.parametrize("change, rows, columns", [
    ("shift", (-2, 2), (-2, 2)), ("scale", (-0.7, 0.7), (0, 0)), ("rotation", (0, 0), (-1.3, 1.3))])
def test_a_dot_moves_to_all_sides_and_by_parts_of_pixels(change, rows, columns):
    face = np.zeros((48, 48), np.uint8)
    face[10:13, 22:25] = 255
    x = changed(np.tile(face.reshape(1, -1), (50, 1)), [change]) + 0.5
    moved = [(x.sum(axis) * np.arange(48)).sum(1) / x.sum((1, 2)) - first for axis, first in ((2, 11), (1, 23))]
    for way, (low, high) in zip(moved, (rows, columns)):
        assert way.min() <= low and way.max() >= high
    assert max(np.abs(way - np.rint(way)).max() for way in moved) > 0.2
    if change == "shift":
        assert abs(np.corrcoef(moved)[0, 1]) < 0.5


def test_every_step_has_draws_of_its_own_that_the_seed_determines(database, tmp_path):
    training = trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, seed=5))
    assert [seed.numpy().tolist() for seed, *_ in training.batches(3)] == [[5, step] for step in range(3, 12)]


def test_the_loss_of_traits_has_its_weight(database, tmp_path):
    targets = np.zeros((4, 12), np.float32)
    targets[:, [0, 3, 8]] = 1.0  # at first the head says each band and ethnicity alike: log 5 each
    faces = tf.zeros([4, Dataset.DIM])
    losses = [float(with_traits(database, tmp_path / str(share), share).learn([0, 0], faces, targets))
              for share in (0.1, 0.3)]
    assert losses[1] - losses[0] == pytest.approx(0.2 * 2 * math.log(5), rel=1e-3)


def test_the_loss_of_a_row_is_the_mean_since_the_row_before(database, tmp_path):
    training, losses = trainer(database, tmp_path), []

    def learn(*arguments, whole=training.learn):
        losses.append(float(whole(*arguments)))
        return losses[-1]
    training.learn = learn
    finish(training)
    assert [row["loss"] for row in training.curve] == pytest.approx(np.reshape(losses, [2, 6]).mean(1), rel=1e-4)


def test_other_pixels_are_other_faces(database, tmp_path):
    interrupt_at(trainer(database, tmp_path / "out"), 3)
    path = write_database(tmp_path, "learn", 200, seed=7)  # the same labels
    with pytest.raises(Dataset.UserError, match="no longer those"):
        trainer(path, tmp_path / "out", test=None).resume()


def test_seconds_add_up_over_rows_and_over_a_resume(database, tmp_path):
    training = trainer(database, tmp_path)
    training.seconds = 1000.0
    interrupt_at(training, 8)
    assert training.curve[0]["seconds"] > 1000 and training.seconds > training.curve[0]["seconds"]
    resumed = trainer(database, tmp_path)
    resumed.resume()
    assert resumed.seconds == training.seconds
    assert finish(resumed).curve[-1]["seconds"] > training.seconds


def test_parameters_counts_what_learns_without_batchnorms_averages(database, tmp_path):
    training = trainer(database, tmp_path, net="convnet", nb_block=1, nb_conv=1, nb_filter=4, batchnorm=True)
    averages = [variable for variable in training.net.variables if not variable.trainable]
    assert averages
    assert training.result()["parameters"] == sum(math.prod(v.shape) for v in training.net.variables) - sum(
        math.prod(v.shape) for v in averages)


def test_precision_is_what_is_asked_for():
    assert Training.compute_dtype("bfloat16") == tf.bfloat16 and Training.compute_dtype("float32") == tf.float32


def test_long_epochs_are_measured_amid(database, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "MEASURE_STEPS", 4)
    assert [row["step"] for row in finish(trainer(database, tmp_path)).curve] == [4, 8, 12]


def test_batchnorms_averages_are_averaged_in_their_own_place():
    net = Models.build("convnet", nb_block=1, nb_conv=1, nb_filter=4, batchnorm=True)
    average = Training.Average(net, 0.9)
    for variable in net.variables:
        variable.assign_add(tf.ones_like(variable))
    before = [variable.numpy() for variable in net.variables]
    average.update(tf.constant(1))
    with average.in_place():
        for variable, value in zip(net.variables, before, strict=True):
            np.testing.assert_allclose(variable, value - 0.1, atol=1e-5)


def test_images_per_second_by_a_stopped_clock(database, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(Training.time, "monotonic", lambda: now[0])
    training = trainer(database, tmp_path)

    def learn(*arguments, whole=training.learn):
        now[0] += 2.0
        return whole(*arguments)
    training.learn = learn
    finish(training)
    assert [row["seconds"] for row in training.curve] == [12.0, 24.0]
    assert [row["images_per_second"] for row in training.curve] == pytest.approx([190 / 6 / 2.0] * 2)


def test_main_takes_seed_and_share_of_validation(database, in_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(Training, "make_deterministic", lambda seed: asked.append(seed))

    def split(dataset, *given):
        asked.append(given)
        raise KeyboardInterrupt
    monkeypatch.setattr(Training, "split", split)
    command = ["--train", str(database), "--validation", "0.2", "--seed", "7", "--out", "run"]
    assert Console.run(Main.main, command) == 130
    assert asked == [7, (0.2, 7)]


def test_find_lr_advises_a_tenth_of_the_rate_of_the_least_loss(monkeypatch, capsys):
    monkeypatch.setattr(Training, "find_rate", lambda *_: iter([(1e-3, 0.7), (2e-2, 0.4), (0.3, 1.5)]))
    Main.range_test(None, None, None, None)
    assert capsys.readouterr().out.endswith("least loss at 2.0e-02; choose about a tenth of that: "
                                            "--learning-rate 2.0e-03\n")


def test_resume_takes_the_newest_training(in_folder):
    for name, when in ("b", 100), ("c", 300), ("a", 200):
        last = in_folder / "checkpoints" / name / "last"
        last.mkdir(parents=True)
        for folder in last, last.parent:
            (folder / "network.json").write_text(json.dumps({"training": {"seed": when}}))
        (last / "my_model-1.index").touch()
        os.utime(last, (when, when))
    options, out = Main.resumed({"resume": True})
    assert out == Path("checkpoints/c") and options.seed == 300
