"""The bench of attacks counts right: found, files, repaired, false reports and passes, of answers known by hand; and
our attacks of papers do what those of Foolbox do."""
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import Dataset
import Models
from benchmarks import ablations, attacks as bench
from conftest import write_database
from test_attacks import Linear, grey_faces, mislead


def first_pixel(x):
    """Says woman where the first pixel is above 100.4 grey levels."""
    lead = 256 * x[:, :1] + 128 - 100.4
    return tf.concat([-lead, lead], axis=1)


def test_what_becomes_of_pictures_by_hand():
    faces = np.full((5, Dataset.DIM), 100, np.uint8)
    pictures = faces / 255
    pictures[0, 0] = 100.45 / 255      # fools, its file does not; 11 repairs of 0.5 % later it is 100.5 and more
    pictures[1, 7] = np.nan
    pictures[2] = 0.0                  # black, and called a man
    pictures[3, 0] = 1.5               # outside; its file is white there
    pictures[4, 0] = 101 / 255         # as it should be
    wrong = np.ones(5, int)
    row = bench.judge(first_pixel, faces, wrong, "l2", pictures, reported=np.array([True, True, True, True, False]))
    assert row == {"found": 0.4, "distance": np.inf, "files": 0.4, "files_distance": pytest.approx(78 / 255),
                   "repaired": 0.6, "repaired_distance": pytest.approx(155 / 255),
                   "area": pytest.approx((1 + 155 + 1 + 2 * 510) / 255 / 5), "nan": 1, "black": 1, "outside": 1,
                   "false": 3}
    found = bench.judge(first_pixel, faces[4:], wrong[4:], "l2", pictures[4:], reported=np.array([True]))
    assert found["distance"] == pytest.approx(1 / 255) and found["false"] == 0


@pytest.mark.parametrize("norm, floats, file", [("l2", np.hypot(1.2, 0.3), 1.0), ("l1", 1.5, 1.0), ("linf", 1.2, 1.0),
                                                ("l0", 2 * 255, 255)])
def test_distances_in_each_norm_by_hand(norm, floats, file):
    faces, noise = np.full((1, Dataset.DIM), 100, np.uint8), np.zeros((1, Dataset.DIM))
    noise[0, :2] = 1.2 / 255, 0.3 / 255  # the file has the first alone
    noise[0, 2] = 1e-9                   # what floats make of a pixel left as it is
    np.testing.assert_allclose(bench.lengths(noise, norm), floats / 255, rtol=1e-6)
    np.testing.assert_allclose(bench.far(first_pixel, faces, np.array([1]), norm, noise, [1.0]), file / 255)


def test_ablations_of_other_settings_are_not_mixed(tmp_path):
    database = write_database(tmp_path, "some", 20)
    options = ablations.Options(str(database), epochs=4, out=str(tmp_path / "out"))
    ablations.hold_out(options)
    (tmp_path / "out" / "base-0").mkdir()
    ablations.hold_out(dataclasses.replace(options, seeds=1, rows=("base",)))
    with pytest.raises(Dataset.UserError, match="holds trainings of other databases or epochs"):
        ablations.hold_out(dataclasses.replace(options, epochs=8))


def test_repair_takes_the_first_scale_whose_file_fools():
    face, noise = np.full((1, Dataset.DIM), 100, np.uint8), np.zeros((1, Dataset.DIM))
    noise[0, :2] = 0.45 / 255, 0.6 / 255  # the second pixel is rounded up at once, the first from a scale of 1.112 on
    wrong = np.array([1])
    assert bench.far(first_pixel, face, wrong, "l2", noise, [1.0, 1.1]) == np.inf
    np.testing.assert_allclose(bench.far(first_pixel, face, wrong, "l2", noise, bench.REPAIRS), np.sqrt(2) / 255)


def contest(monkeypatch, attack, name="Foolbox one more"):
    monkeypatch.setitem(bench.CONTESTANTS["l2"], name, (attack, [{}]))
    faces = grey_faces(3)
    return bench.compete(name, {}, Linear(1, 40.0), faces, np.zeros(3, int), "l2", 10)


def test_a_crash_of_a_toolkit_is_reported_and_one_of_ours_is_not_hidden(monkeypatch):
    def crash(*_):
        raise KeyError("no\nsuch")
    assert bench.line(contest(monkeypatch, crash)) == r"crashed: KeyError: 'no\nsuch'"
    with pytest.raises(KeyError, match="such"):
        contest(monkeypatch, crash, "dx one more")


def test_passes_are_counted_a_face(monkeypatch):
    def ask(net, faces, wrong, passes, settings):
        x = tf.constant(Dataset.to_float(faces))
        for _ in range(passes):
            with tf.GradientTape() as tape:
                tape.watch(x)
                answer = net(x)
            tape.gradient(answer, x)
        net(x[:1])  # a third of the faces
        return faces / 255, np.zeros(3, bool)
    row = contest(monkeypatch, ask)
    assert (row.forward, row.backward) == (10 + 1 / 3, 10)
    assert (row.found, row.files, row.false) == (0.0, 0.0, 0)


def least(net, faces, norm):
    """The median distance, 0..1, at which a Linear net turns: along w under l2 and linf, else pixel by pixel."""
    lead, w = net(Dataset.to_float(faces))[:, 1].numpy(), net.w.numpy()[:, 0] * 255 / 256
    if norm in ("l2", "linf"):
        return np.median(np.abs(lead)) / np.linalg.norm(w, {"l2": 2, "linf": 1}[norm])
    x = faces / 255
    room = np.where(w * lead[:, None] > 0, x, 1 - x)  # of each pixel to black or white
    gain = np.abs(w) * room
    order = np.argsort(-np.abs(w) * np.ones_like(x) if norm == "l1" else -gain, axis=1)
    room, gain = (np.cumsum(np.take_along_axis(each, order, axis=1), axis=1) for each in (room, gain))
    return np.median([np.interp(abs(goal), g, r) if norm == "l1" else np.searchsorted(g, abs(goal)) + 1
                      for goal, g, r in zip(lead, gain, room)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm, name, toolkit, most", [
    ("l2", "dx", "tensorflow", 1.02), ("l2", "dx, floats", "tensorflow", 1.01), ("l2", "Foolbox DDN", "foolbox", 1.1),
    ("l2", "Foolbox C&W", "foolbox", 1.1), ("l2", "Foolbox DeepFool", "foolbox", 1.1), ("l2", "ART C&W", "art", 1.2),
    ("l2", "ART DeepFool", "art", 1.1), ("l1", "dx", "tensorflow", 1.1), ("l1", "Foolbox FMN", "foolbox", 1.02),
    ("l1", "Foolbox EAD", "foolbox", 1.3), ("l1", "ART EAD", "art", 1.7), ("linf", "dx", "tensorflow", 1.1),
    ("linf", "Foolbox FMN", "foolbox", 1.01), ("linf", "Foolbox DeepFool", "foolbox", 1.05),
    ("l0", "sigma-zero", "tensorflow", 1.1), ("l0", "jsma", "tensorflow", 1.1), ("l0", "Foolbox FMN", "foolbox", 1.1)])
def test_contestants_come_near_the_least_noise_of_a_linear_net_within_their_budget(norm, name, toolkit, most):
    pytest.importorskip(toolkit)
    net, faces = Linear(1, 40.0), grey_faces(4)
    wrong = 1 - net(Dataset.to_float(faces)).numpy().argmax(1)
    row = bench.compete(name, bench.CONTESTANTS[norm][name][1][0], net, faces, wrong, norm, 200)
    assert row.found == row.repaired == 1.0 and row.false == 0
    assert 0.99 < row.distance / least(net, faces, norm) < most
    assert row.forward <= 202 and 0 < row.backward <= 202


def test_the_grid_by_hand():
    assert bench.grid({"a": 1, "b": 2}, a=[1, 3], b=[4]) == [{"a": 1, "b": 2}, {"a": 3, "b": 2}, {"a": 1, "b": 4}]


def row(repaired, seconds=1.0):
    """A Row of this repaired median, which counts for the other medians too."""
    return bench.Row(1.0, repaired, 1.0, repaired, 1.0, repaired, repaired, 0, 0, 0, 0, 10.0, 10.0, seconds)


ROWS = {("dx", 100): row(0.19), ("Foolbox DDN", 100): row(0.2), ("ART C&W", 100): KeyError("no"),
        ("dx", 500): row(0.18), ("Foolbox DDN", 500): row(0.21), ("ART C&W", 500): row(np.inf),
        ("ART C&W", 1000): row(0.1), ("dx", 20): row(0.3), ("ART C&W", 20): row(np.inf)}


def test_the_best_peer_within_a_budget_may_be_one_of_fewer_passes():
    assert bench.best_peer(ROWS, 500) == ("Foolbox DDN", 100) and bench.best_peer(ROWS, 1000) == ("ART C&W", 1000)
    assert bench.compare(ROWS, 500) == ("500 passes: best repaired peer Foolbox DDN of 100, 0.2000; times it: dx 0.900")
    assert bench.compare(ROWS, 20) == "20 passes: no toolkit's attack whose repaired files have a median"


def test_the_race_ends_where_the_rival_was(capsys):
    net, faces = Linear(1, 40.0), grey_faces(3)
    wrong = 1 - net(Dataset.to_float(faces)).numpy().argmax(1)
    bench.race(net, faces, wrong, "l2", "dx", "repaired_distance", ("Foolbox DDN", 500), row(100.0, seconds=1e9))
    assert capsys.readouterr().out.endswith("; Foolbox DDN 100.0000 after 500, 1000000000.0 s: 0.00 of its time\n")
    bench.race(net, faces, wrong, "l2", "dx", "repaired_distance", ("Foolbox DDN", 500), row(np.inf))
    assert capsys.readouterr().out == ("dx: no race for repaired_l2, as Foolbox DDN of 500 misled fewer than half of "
                                       "the faces\n")


def test_an_attack_of_another_norm_is_a_mistake():
    with pytest.raises(Dataset.UserError, match="--attacks 'ddn': expected some of 'dx', 'dx, floats', 'Foolbox FMN'"):
        bench.main(["--database", "none", "--norm", "linf", "--attacks", "ddn"])


@pytest.mark.parametrize("norm, names", [("l2", ["dx", "ddn"]), ("l1", ["dx", "dx, floats"])])
def test_the_table(tmp_path, checkpoint, capsys, norm, names):
    database = write_database(tmp_path, "faces", 20)
    bench.main(["--database", str(database), "--checkpoint", str(checkpoint), "--faces", "4", "--passes", "30",
                "--norm", norm, "--attacks", *names])
    first, head, _, *rows, last = capsys.readouterr().out.splitlines()
    assert first == "4 faces" and last == "30 passes: no toolkit's attack whose repaired files have a median"
    assert head.count(f"| {norm.capitalize()} |") == 2
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in names]
    for row in rows:
        assert row.count("|") == head.count("|")
        assert row.split(" | ")[13:15] == ["32", "30"] and row.split(" | ")[6] == "100.0 %"
    assert rows[0].split(" | ")[4] == "100.0 %"  # the files of a search that rounds


@pytest.fixture(scope="module")
def curved():
    """A perceptron of fixed weights, whose answer turns near some of the faces: (net, 20 faces, wrong labels)."""
    random = np.random.default_rng(0)
    net, faces = Models.build("perceptron", hidden=20), grey_faces(20)
    for variable, value in (net.fc1.w, 0.1 * random.normal(size=[Dataset.DIM, 20])), (net.fc1.b, np.zeros(20)), (
            net.fc2.w, random.normal(size=[20, 2])), (net.fc2.b, [0.0, 0.1]):
        variable.assign(value)
    wrong = 1 - net(Dataset.to_float(faces)).numpy().argmax(1)
    assert {*wrong} == {0, 1}
    return net, faces, wrong


def within(radius, name, net, faces, wrong, **settings):
    """The files [20, 2304] of an attack of Foolbox within a radius, in grey levels."""
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.TensorFlowModel(bench.UnitInterval(net), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(tf.constant(1 - wrong, tf.int64))
    pictures = getattr(foolbox.attacks, name)(**settings)(model, tf.constant(bench.images(faces)), criterion,
                                                         epsilons=radius / 255)[1]
    return np.round(255 * bench.flat(pictures)).astype(np.uint8)


@pytest.mark.parametrize("radius", [1, 2])
def test_fgsm_writes_the_files_of_foolbox(curved, radius):
    found = mislead(*curved, "fgsm", radius=radius / 256)
    assert found.fools.mean() > 0.2
    np.testing.assert_array_equal(found.modified, within(radius, "LinfFastGradientAttack", *curved))


@pytest.mark.parametrize("norm, name, radius", [("linf", "LinfPGD", 1), ("l2", "L2PGD", 60)])
def test_pgd_misleads_about_the_faces_that_foolbox_does(curved, norm, name, radius):
    net, _, wrong = curved
    found = mislead(*curved, "pgd", norm=norm, radius=radius / 256, steps=20)
    files = within(radius, name, *curved, rel_stepsize=2.5 / 20, steps=20, random_start=False)
    assert 0.2 < found.fools.mean() < 1.0
    differ = found.fools != (net(Dataset.to_float(files)).numpy().argmax(1) == wrong)
    assert differ.sum() <= (norm == "l2")  # our files are inside the ball, rounding may take Foolbox's out of it


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, options, peer, other, measure", [
    ("ddn", {"rounding": False}, "Foolbox DDN", {}, "distance"), ("ddn", {}, "Foolbox DDN", {}, "repaired_distance"),
    ("cw", {}, "Foolbox C&W", {"stepsize": 0.02, "initial_const": 0.1}, "repaired_distance"),  # as ours
    ("deepfool", {}, "Foolbox DeepFool", {}, "repaired_distance")])
def test_the_least_noise_is_as_foolbox_finds_it(curved, name, options, peer, other, measure):
    pytest.importorskip("foolbox")
    theirs = bench.compete(peer, bench.CONTESTANTS["l2"][peer][1][0] | other, *curved, "l2", 200)
    pictures, found = bench.ours(name)(*curved, 200, options)
    assert found.all() and theirs.found == 1.0
    ours = np.median(bench.lengths(pictures - curved[1] / 255, "l2"))
    assert 0.95 < ours / getattr(theirs, measure) < 1.05
