"""Defences: purification in closed form and by NumPy, what gradients see of it, and the retraining loop."""
import dataclasses
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import Attacks
import Console
import Dataset
import Main
import Main_retrain
import Main_robustness
import Models
import Robustness
import Training
from DataBases import faces
from conftest import write_database
from test_attacks import grey_faces
from test_robustness import Net, least
from test_training import RECIPE, finish


# Purification

@pytest.fixture(scope="module")
def model():
    """A model of faces with eight directions, not quite orthonormal, as those on file."""
    random = np.random.default_rng(4)
    directions = np.linalg.qr(random.normal(size=(Dataset.DIM, 8)))[0].T + 1e-3 * random.normal(size=(8, Dataset.DIM))
    roots = np.tril(random.normal(size=(2, 8, 8))) + 3.0 * np.eye(8)
    return faces.Model(*(np.float32(part) for part in (random.uniform(90, 160, Dataset.DIM), directions,
                                                       5.0 * random.normal(size=(2, 8)), roots)))


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_purified_face_is_numpys_ridge_regression(model, noise):
    """The prior as further rows of a least-squares problem: its whitened codes are near zero."""
    parts = np.concatenate([mean + np.random.default_rng(0).standard_normal((400_000, 8)) @ root.T
                            for mean, root in zip(model.means, model.roots)])
    whitening = np.linalg.inv(np.linalg.cholesky(np.cov(parts.T)))
    middle = parts.mean(0)
    pictures = grey_faces(3)
    rows = np.concatenate([model.eigenfaces.T, noise * whitening])
    wanted = pictures - model.mean
    values = np.concatenate([wanted.T, np.tile((noise * whitening @ middle)[:, None], 3)])
    codes = np.linalg.lstsq(rows.astype(float), values, rcond=None)[0].T
    purified = Robustness.Purified(Net(1), model, noise).face(Dataset.to_float(pictures))
    np.testing.assert_allclose(256 * purified + 128, model.mean + codes @ model.eigenfaces, atol=0.02)
    if noise:
        assert np.abs(codes - np.linalg.lstsq(model.eigenfaces.T, wanted.T, rcond=None)[0].T).max() > 1.0


def test_a_face_of_the_model_is_left_as_it_is_without_noise(model):
    sampled = model.mean + np.random.default_rng(1).normal(size=(5, 8)) @ model.eigenfaces
    purified = Robustness.Purified(Net(1), model, 0.0)
    x = Dataset.to_float(sampled)
    np.testing.assert_allclose(purified.face(x), x, atol=1e-5)
    np.testing.assert_allclose(purified(x), Net(1)(x), atol=1e-3)
    x = Dataset.to_float(grey_faces(3))
    assert np.abs(purified.face(x) - x).max() > 0.01


def test_far_more_noise_than_faces_leaves_their_middle(model):
    blind = Robustness.Purified(Net(1), model, 1e6).face(Dataset.to_float(grey_faces(3)))
    middle = Dataset.to_float(model.mean + model.means.mean(0) @ model.eigenfaces)
    np.testing.assert_allclose(blind, np.tile(middle, (3, 1)), atol=1e-4)


def test_the_gradient_through_it_is_the_finite_difference(checkpoint, model):
    net = Robustness.Purified(Models.load(checkpoint)[0], model, 2.0)
    x = tf.constant(Dataset.to_float(grey_faces(1)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        lead = net(x)[0, 1] - net(x)[0, 0]
    gradient = tape.gradient(lead, x).numpy()
    step = 0.02 * gradient / np.linalg.norm(gradient)
    above, below = (net(x + sign * step)[0].numpy() for sign in (1, -1))
    assert (above[1] - above[0]) - (below[1] - below[0]) == pytest.approx(
        2 * np.sum(step * gradient), rel=0.02)


def test_an_attack_through_it_needs_the_closed_form_noise(model):
    """Of a linear net: the lead over the length of the weights' part that is left."""
    net, pictures = Net(1), grey_faces(6)
    purified = Robustness.Purified(net, model, 0.0)
    x = Dataset.to_float(pictures)
    net.b += 2.0 - float(tf.reduce_mean(purified(x)[:, 1]))
    golden = 256 * purified(x)[:, 1] / tf.norm(purified.gain @ (purified.eigenfaces @ net.w))
    distance = least(purified, pictures, np.ones(6, int), "ddn", "l2", steps=200)
    assert np.all(distance > 0.999 * golden) and np.all(distance < 1.1 * golden)


def test_what_purifies_otherwise_is_another_net(checkpoint, model):
    net = Models.load(checkpoint)[0]
    other = model._replace(mean=model.mean + 1)
    prints = {Robustness.net_fingerprint(each) for each in (
        net, *(Robustness.Purified(net, *options) for options in ((model, 0.0), (model, 2.0), (other, 0.0))))}
    assert len(prints) == 4 and Robustness.net_fingerprint(Robustness.Purified(net, model, 2.0)) in prints


def test_purified_nets_stand_beside_the_net_also_in_a_transfer(run, in_folder, checkpoint):
    few = write_database(in_folder, "few", 10, seed=3)
    shutil.copytree(checkpoint, "net")  # a short name
    command = [few, "--checkpoint", "net", "--radii", "600", "--purify", "0", "30", "--steps", "4"]
    names = ["net", "net, purified 0.0", "net, purified 30.0"]
    code, out, _ = run(Main_robustness, *command, "--attack", "ddn", "--no-show")
    assert code == 0 and out.splitlines()[3::2] == names
    code, out, _ = run(Main_robustness, *command, "--transfer")
    assert code == 0 and [line.split("  ")[0] for line in out.splitlines()[3:]] == names


# Retraining

def finish_parts(parts):
    for _ in parts.run():
        pass


@pytest.fixture(scope="module")
def retrained(database, checkpoint, tmp_path_factory):
    """One round against files within L2 450, and a second search: (Retraining, its rows)."""
    recipe = dataclasses.replace(RECIPE, epochs=8, augment=("flip",))
    Training.make_deterministic(0)
    parts = Training.split(Dataset.open_database(database), 0.1, 0)
    retraining = Robustness.Retraining(Models.load(checkpoint)[0], *parts, recipe, "ddn", {"steps": 25}, 450.0, 100,
                                       tmp_path_factory.mktemp("retrained"))
    return retraining, list(retraining.run(1, finish_parts, lambda trainer, *_: finish(trainer)))


def test_a_round_of_retraining_leaves_fewer_faces_to_mislead(retrained):
    first, second = retrained[1]
    assert (first["round"], second["round"]) == (0, 1)
    assert first["misled"] > 80 and second["attacked"] > 80
    assert second["misled"] < 0.5 * first["misled"]
    assert second["validation"] >= first["validation"]


def test_what_is_learned_misleads_the_net_before_and_has_the_right_label(retrained, checkpoint):
    retraining, (first, _) = retrained
    files = Dataset.open_database(retraining.out / "data_round1.bin")
    assert files.nbdata == first["misled"]
    assert files.mean_accuracy(Models.load(checkpoint)[0]) == 0.0
    assert files.mean_accuracy(retraining.net) > 0.5
    faces = retraining.learned.data.grey()
    away = np.linalg.norm(files.data.grey()[:, None].astype(np.float32) - faces, axis=2)
    assert np.all(away.min(1) <= 450.0)
    assert np.median(away.min(1)) == pytest.approx(first["median"], rel=1e-4)
    np.testing.assert_array_equal(files.label, retraining.learned.label[away.argmin(1)])


COMMAND = ["--steps", "6", "--faces", "40", "--rounds", "2", "--epochs", "1", "--batch-size", "16", "--radius", "900"]


def test_what_the_net_was_tested_on_is_not_learned(run, database, in_folder):
    """Main.py left these faces out, as `10k` begins with `1k`; its seed keeps the faces that validate apart."""
    faces, labels = Dataset.read_faces(database), Dataset.open_database(database).label
    (in_folder / "data_few.bin").write_bytes(faces[:20].tobytes())
    (in_folder / "gender_few.bin").write_bytes(labels[:20].astype("<f4").tobytes())
    assert run(Main, "--train", database, "--test", "data_few.bin", "--net", "perceptron", "--epochs", "1", "--seed",
               "7", "--validation", "0.2", "--logs", "none", "--out", "a")[0] == 0
    command = ["--from", "a", "--train", database, *COMMAND, "--rounds", "1", "--out"]
    count = len(faces) - 20
    code, out, err = run(Main_retrain, *command, "b")
    assert code == 0
    assert out.startswith(f"{count - round(0.2 * count)} faces to learn, {round(0.2 * count)} to validate; ")
    assert err == f"{database}: 20 faces left out, which data_few.bin or another --train holds\n"
    code, out, err = run(Main_retrain, *command, "c", "--seed", "0")
    assert "a was trained with another --train, --validation or --seed: it may know faces that validate here" in err
    Path("data_few.bin").rename("moved.bin")
    code, out, err = run(Main_retrain, *command, "d")
    assert code == 0 and err == ("data_few.bin, which a was tested on, is not there: its faces are not left out; name "
                                 "it with --test\n")
    Path("moved.bin").rename("data_all.bin")
    Path("gender_few.bin").rename("gender_all.bin")
    code, out, err = run(Main_retrain, "--from", "a", "--train", "data_all.bin", "--test", "data_all.bin")
    assert code == 2 and "data_all.bin holds all faces of --train" in err


def test_interrupted_it_goes_on_and_ends_as_if_never_interrupted(run, database, checkpoint, monkeypatch):
    command = ["--from", checkpoint, "--train", database, *COMMAND]
    code, whole, err = run(Main_retrain, *command, "--out", "whole")
    assert (code, err) == (0, "") and whole.endswith("net in whole/round2\n")
    assert [line.split()[0] for line in whole.splitlines()[2:5]] == ["0", "1", "2"]
    calls, build = [], Attacks.build

    def build_twice(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return build(*arguments, **options)

    def learn(trainer, _):
        for _ in trainer.run():
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Attacks, "build", build_twice)
        assert run(Main_retrain, *command, "--out", "cut")[:2] == (130, "\n".join(whole.splitlines()[:2]) + (
            "\n\ninterrupted, and saved in cut; the same command goes on\n"))
        patch.setattr(Console, "learn", learn)
        monkeypatch.setattr(Training, "REPORT_STEPS", 2)
        assert run(Main_retrain, *command, "--out", "cut")[0] == 130
    assert len(calls) == 4  # of three parts the second again
    assert run(Main_retrain, *command, "--out", "cut")[1] == whole.replace("whole/", "cut/")
    nets = [Models.load(f"{folder}/round2")[0] for folder in ("whole", "cut")]
    for one, other in zip(*(net.variables for net in nets), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(Robustness.Retraining, "run", lambda *_: pytest.fail("it attacks first"))
    code, _, err = run(Main_retrain, *command, "--out", "cut", "--learning-rate", "0.1")
    assert code == 2
    assert err == "Main_retrain.py: cut: holds a retraining with other options; choose another --out\n"


def test_where_nothing_misleads_nothing_is_learned(run, database, checkpoint, in_folder):
    code, out, _ = run(Main_retrain, "--from", checkpoint, "--train", database, *COMMAND, "--radius", "1")
    assert code == 0
    assert out.splitlines()[2].split()[2:4] == ["0", "-"]
    assert out.splitlines()[3:] == ["ddn finds no file within L2 1 grey levels that misleads it",
                                    f"nothing learned: {checkpoint} stays"]
    assert not list(in_folder.rglob("data_*.bin"))


MISTAKES = {
    "no net": ([], ["--from"], "the following arguments are required: --from"),
    "no faces": ([], ["--train"], "the following arguments are required: --train"),
    "no rounds": (["--rounds", "0"], [], "--rounds: 0: expected 1 or more"),
    "unknown attack": (["--attack", "jsma"], [], "invalid choice: 'jsma'"),
    "radius no file can hold": (["--radius", "0.5"], [], "--radius: 0.5: expected a number in [1, 12240]"),
    "no such database": (["--train", "nowhere.bin"], [], "nowhere.bin: expected a name such as 10k"),
    "no such checkpoint": (["--from", "nowhere"], [], "nowhere: no checkpoint"),
}


@pytest.mark.parametrize("more, without, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(run, database, checkpoint, in_folder, more, without, words):
    given = {"--from": checkpoint, "--train": database}
    command = [word for flag, value in given.items() if flag not in without for word in (flag, value)]
    code, out, err = run(Main_retrain, *command, *more)
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err, err
    assert not list(in_folder.iterdir())


@pytest.fixture
def retraining(database, checkpoint, tmp_path):
    parts = Training.split(Dataset.open_database(database), 0.1, 0)
    return Robustness.Retraining(Models.load(checkpoint)[0], *parts, RECIPE, "ddn", {"steps": 6}, 900.0, 40, tmp_path)


def test_each_round_attacks_faces_of_its_own_with_the_options_given(retraining, monkeypatch):
    asked, build = [], Attacks.build
    monkeypatch.setattr(Attacks, "build", lambda *given, **options: asked.append(options) or build(*given, **options))
    searches = []
    for _ in range(2):
        searches.append(retraining._search())
        retraining.found.append(None)
    first, second = ({face.tobytes() for face in search.faces} for search in searches)
    assert first != second
    for _ in searches[0].run():
        pass
    assert asked and all(options == {"steps": 6} for options in asked)


def test_the_table_shows_the_accuracy_on_faces_that_validate(retraining):
    retraining.validation.label = retraining.validation.label[:, ::-1]
    first = next(retraining.run(1, finish_parts, None))
    assert first["validation"] < 0.5


@pytest.mark.parametrize("change", [
    dict(radius=800.0), dict(count=39), dict(options={"steps": 7}), dict(attack="dx"),
    dict(recipe=dataclasses.replace(RECIPE, learning_rate=0.1)), dict(learned=None)])
def test_nets_of_another_retraining_are_not_taken_for_its_own(retraining, change):
    given = dict(net=retraining.net, learned=retraining.learned, validation=retraining.validation, recipe=RECIPE,
                 attack="ddn", options={"steps": 6}, radius=900.0, count=40, out=retraining.out)
    Dataset.write_whole(retraining.out / "round1" / Models.DESCRIPTION, retraining.description.encode())
    same = dataclasses.replace(RECIPE, start="spelled/otherwise", learning_rate=Training.peak_rate(RECIPE))
    Robustness.Retraining(**given | dict(recipe=same))
    if "learned" in change:  # one pixel of the last face
        data = retraining.learned.data
        faces = data.grey()
        faces[-1, -1] ^= 1
        path = retraining.out / "data_other.bin"
        faces.tofile(path)
        retraining.learned.label.astype("<f4").tofile(path.with_name("gender_other.bin"))
        change = dict(learned=Dataset.open_database(path))
    with pytest.raises(Dataset.UserError, match="holds a retraining with other options"):
        Robustness.Retraining(**given | change)


def test_each_round_learns_the_files_of_all_rounds_beside_the_faces(retraining):
    files, count = grey_faces(5), retraining.learned.nbdata
    one = retraining._training("round1", files[:3], np.array([0, 1, 0]))
    two = retraining._training("round2", files[3:], np.array([1, 1]))
    assert (one.train.nbdata, two.train.nbdata) == (count + 3, count + 5)
    np.testing.assert_array_equal(two.train.data.grey(slice(count, None)), files)


def test_the_next_round_begins_with_the_best_weights(retraining):
    retraining.recipe = dataclasses.replace(RECIPE, epochs=1)

    def work(search):
        for _ in search.run():
            pass
    list(retraining.run(1, work, finish))
    for one, other in zip(retraining.net.variables, Models.load(retraining.out / "round1")[0].variables, strict=True):
        np.testing.assert_array_equal(one, other)
