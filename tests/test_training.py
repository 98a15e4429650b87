"""Training: exact repeats and resumes, honest splits, the recipe's formulas, what it writes."""
import dataclasses
import json
import math
import signal

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


@pytest.mark.parametrize("damaged", ["metrics.json", "last/my_model-3.data-00000-of-00001"])
def test_damaged_training_is_not_resumed(database, tmp_path, damaged):
    interrupt_at(trainer(database, tmp_path), 3)
    (tmp_path / damaged).write_bytes(b"{")
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


def test_best_weights_are_those_of_the_best_validation(database, tmp_path):
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(RECIPE, epochs=6)))
    best = training.result()
    net, prefix = Models.load(tmp_path)
    assert prefix.endswith(f"my_model-{best['best_step']}")
    assert best["validation"]["accuracy"] == max(row["validation_accuracy"] for row in training.curve)
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
    optimizer = tf.optimizers.Adam(1e-3)
    optimizer.build(net.trainable_variables)
    checkpoint = tf.train.Checkpoint(step=tf.Variable(1, dtype=tf.int64), optimizer=optimizer, net=net)
    checkpoint.restore(Models.find_checkpoint(tmp_path / "last")).assert_existing_objects_matched().expect_partial()
    np.testing.assert_array_equal(net.fc1.w, training.net.fc1.w)
    assert int(optimizer.iterations) == training.total


def test_augmentation_without_amplitude_is_the_pixel_scale_or_its_mirror(monkeypatch):
    monkeypatch.setattr(Training, "AUGMENTATION", dict.fromkeys(Training.AUGMENTATION, 0.0))
    faces = np.random.default_rng(0).integers(0, 256, (64, Dataset.DIM), np.uint8)
    x = Training.augment(tf.constant(faces), tf.constant([0, 1])).numpy().reshape(-1, 48, 48)
    plain = Dataset.to_float(faces).reshape(-1, 48, 48)
    same = np.abs(x - plain).max((1, 2)) < 1e-4
    mirrored = np.abs(x - plain[:, :, ::-1]).max((1, 2)) < 1e-4
    assert np.all(same ^ mirrored)
    assert 16 < same.sum() < 48


def test_augmentation_depends_on_its_seed_alone_and_stays_a_picture():
    faces = tf.constant(np.random.default_rng(0).integers(0, 256, (40, Dataset.DIM), np.uint8))
    one, again, other = (Training.augment(faces, tf.constant(seed)).numpy() for seed in ([0, 5], [0, 5], [0, 6]))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 0.02
    assert one.min() >= Dataset.BLACK and one.max() <= Dataset.WHITE


@pytest.mark.parametrize("amplitude, moved", [("shift", 3.0), ("rotation", 24 * math.sqrt(2) * 0.17), ("scale", 3.4)])
def test_augmentation_moves_a_dot_no_further_than_its_amplitude(monkeypatch, amplitude, moved):
    whole = Training.AUGMENTATION[amplitude]
    monkeypatch.setattr(Training, "AUGMENTATION", dict.fromkeys(Training.AUGMENTATION, 0.0) | {amplitude: whole})
    face = np.zeros((48, 48), np.uint8)
    face[10:13, 22:25] = 255  # the mirror keeps it within a pixel of its place
    x = Training.augment(tf.constant(np.tile(face.reshape(1, -1), (50, 1))), tf.constant([0, 1])).numpy() + 0.5
    x = x.reshape(-1, 48, 48)
    rows = (x.sum(2) * np.arange(48)).sum(1) / x.sum((1, 2))
    columns = (x.sum(1) * np.arange(48)).sum(1) / x.sum((1, 2))
    far = np.hypot(rows - 11, columns - 23.5) - 0.6
    assert far.max() <= moved * (math.sqrt(2) if amplitude == "shift" else 1)
    assert far.max() > 0.3 * moved * (0.5 if amplitude != "shift" else 1)


def test_cosine_schedule_by_hand():
    golden = {0: 2e-4, 4: 1e-3, 9: 2e-3, 54: 1e-3, 99: 0.0}
    for step, rate in golden.items():
        assert float(Training.scheduled_rate(Training.Recipe(), step, 100)) == pytest.approx(rate, abs=1e-9)


def test_learning_rate_of_the_curve_is_the_schedules(database, tmp_path):
    training = finish(trainer(database, tmp_path))
    for row in training.curve:
        assert row["learning_rate"] == float(Training.scheduled_rate(RECIPE, row["step"] - 1, training.total))


@pytest.mark.parametrize("name", Training.OPTIMIZERS)
def test_optimizer_steps_as_its_formula(name):
    recipe = Training.Recipe(optimizer=name, learning_rate=0.1, weight_decay=0.5, schedule="constant")
    net = Models.build("perceptron", hidden=1)
    optimizer = Training.make_optimizer(recipe, net)
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


def test_label_smoothing_by_hand(database, tmp_path):
    training = trainer(database, tmp_path)
    training.net.fc.w.assign(tf.zeros_like(training.net.fc.w))
    training.net.fc.b.assign([2.0, 0.0])
    loss = training.learn([0, 0], tf.zeros([1, Dataset.DIM]), [[1.0, 0.0]])
    p = math.exp(2) / (math.exp(2) + 1)
    assert float(loss) == pytest.approx(-(0.95 * math.log(p) + 0.05 * math.log(1 - p)), rel=1e-5)


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
    assert "--resume goes on with seed 0, not 4" in capsys.readouterr().err
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
        write_database(in_folder, name, count)
    monkeypatch.setattr(Dataset.default_databases, "__defaults__", (in_folder,))
    assert Console.run(Main.main, ["--net", "small", "--epochs", "1", "--out", "run", "--logs", "none"]) == 0
    out = capsys.readouterr().out
    assert "76 faces to learn, 4 to validate, 120 to test" in out
    assert out.splitlines()[-1].endswith(" of 120)")
    assert not (in_folder / "logs").exists()
