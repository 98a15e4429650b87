"""Curves of accuracy against distance: the numbers by hand and in closed form, what is resumed, and the messages.

And adversarial training: what it is shown, and that it makes a net harder to mislead."""
import csv
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import Attacks
import Console
import Dataset
import Main
import Main_robustness
import Models
import Robustness
from conftest import write_database
from test_attacks import Linear, grey_faces, least_noise
from test_training import RECIPE, assert_same, finish, interrupt_at, trainer


def least(net, faces, labels, attack, norm, radii=(), **options):
    search = Robustness.least_distances(net, faces, labels, attack, norm, radii, **options)
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value


class Net(Linear):
    description = "{}"

    def __init__(self, seed):
        super().__init__(seed, 40.0)
        self.w = tf.Variable(self.w)


@pytest.fixture(scope="module")
def linear():
    """A linear net, six faces that it calls a woman, and their labels, all but the last two right."""
    return Net(1), grey_faces(6), np.array([1, 1, 1, 1, 0, 0])


@pytest.mark.parametrize("attack", ["dx", "deepfool", "ddn"])
def test_a_search_tells_the_closed_form_distance_and_none_where_the_net_errs(linear, attack):
    distance = least(*linear, attack, "l2")
    golden = least_noise(*linear[:2], "l2")[:4]
    assert np.all(distance[:4] > 0.999 * golden) and np.all(distance[:4] < 1.5 * golden)
    np.testing.assert_array_equal(distance[4:], 0.0)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_ball_is_searched_radius_by_radius(linear, attack):
    radii = [2, 5, 6, 7]
    golden = [next(radius for radius in radii if radius >= needed) for needed in least_noise(*linear[:2], "linf")[:4]]
    np.testing.assert_array_equal(least(*linear, attack, "linf", radii), [*golden, 0, 0])
    np.testing.assert_array_equal(least(*linear, attack, "linf", [2, 3]), [math.inf] * 4 + [0, 0])


@pytest.mark.parametrize("norm, radius", [("l2", 400.0), ("l1", 9000.0), ("l1", 19000.0), ("linf", 7.0)])
@pytest.mark.parametrize("attack", Robustness.BALLS)
def test_every_ball_lies_inside_the_distance(linear, attack, norm, radius):
    distance = least(*linear, attack, norm, [radius])
    assert np.all((distance <= radius) | np.isinf(distance))
    if norm == "linf" or attack == "pgd" and radius != 9000.0:
        assert np.all(np.isfinite(distance))


def test_a_radius_that_no_file_can_hold_asks_no_attack(linear):
    np.testing.assert_array_equal(least(*linear, "fgsm", "l2", [47.9]), [math.inf] * 4 + [0, 0])


def test_the_closest_is_kept_in_the_distance_asked_for(linear):
    near = least(*linear, "sigma-zero", "l2", steps=60)[:4]
    attack = Attacks.SigmaZero(linear[0], linear[1][:4], [0] * 4, 60)
    for _ in attack.run():
        pass
    found = attack.result()
    sparse = Attacks.distances(found.original, found.modified)["l2"]
    assert np.all(near <= sparse) and np.any(near < sparse)


DISTANCES = {"a": {"dx": np.array([0.0, 3.0, 5.0, math.inf]), "pgd": np.array([0.0, 4.0, math.inf, 2.0]),
                   "robust": np.array([0.0, 3.0, 5.0, 2.0])}}


def test_accuracy_by_hand():
    assert [Robustness.accuracy(DISTANCES["a"]["dx"], radius) for radius in (0, 2.9, 3, 5, 99)] == [
        0.75, 0.75, 0.5, 0.25, 0.25]


def test_table_by_hand():
    assert "\n".join(Robustness.table(DISTANCES, "l2", (51, 2.5, 4))) == """\
L2, 0..255     0   2.5     4    51 median
L2, 0..1   0.000 0.010 0.016 0.200
a
  dx       75.00 75.00 50.00 25.00    4.0
  pgd      75.00 50.00 25.00 25.00    3.0
  robust   75.00 50.00 25.00  0.00    2.5"""


@pytest.mark.parametrize("norm", Robustness.RADII)
def test_the_table_fits_a_terminal(norm):
    distances = {"checkpoints/resnet-20261122-093000": {"sigma-zero": np.array([7000.4, 9000.0])}}
    assert max(map(len, Robustness.table(distances, norm, Robustness.RADII[norm]))) <= 80


def test_values_by_hand():
    options = {"dx": {"steps": 9, "weight": None}, "pgd": {"steps": 5, "radius": 2.0}}
    lines = Robustness.sheet_of_values(DISTANCES, "linf", (4,), "few", options).splitlines()
    assert lines[0] == ("checkpoint,attack,norm,radius_grey_levels,radius_unit_interval,faces,correct,accuracy,"
                        "database,options")
    assert lines[1:4] == ["a,dx,linf,0,0,4,3,0.75,few,steps=9", "a,dx,linf,4,0.0156863,4,2,0.5,few,steps=9",
                          "a,pgd,linf,0,0,4,3,0.75,few,steps=5 radius=2.0"]
    assert lines[5:] == ['a,robust,linf,0,0,4,3,0.75,few,"least of dx, pgd"',
                         'a,robust,linf,4,0.0156863,4,1,0.25,few,"least of dx, pgd"']


def test_nets_of_ones_own_need_what_tells_them_apart(linear, tmp_path):
    def bench(net):
        return Robustness.Bench({"own": net}, linear[1], linear[2].tolist(), {"fgsm": {}}, "linf", [6], tmp_path, 4)

    with pytest.raises(Dataset.UserError, match="`description`, a text, and `variables`"):
        bench(lambda x: linear[0](x))
    own = tf.keras.Sequential([tf.keras.Input([Dataset.DIM]), tf.keras.layers.Dense(2)])
    own.description = "of one's own"
    own_bench = bench(own)
    for _ in own_bench.run():
        pass
    assert own_bench.distances()["own"]["fgsm"].shape == linear[2].shape


def test_the_curve_is_drawn_through_every_loss():
    pytest.importorskip("matplotlib")
    where, accuracy = Robustness.curve(DISTANCES["a"]["dx"], 6)
    assert where == [0, 0, 3, 5, 6]
    assert [*accuracy] == [100, 75, 50, 25, 25]
    picture = Robustness.plot(DISTANCES, "l2", (6,))
    assert picture.size == (960, 600)
    assert np.asarray(picture.convert("L")).std() > 10


def test_names_of_nets_are_no_formulas_and_all_stand_in_the_legend(monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn, savefig = [], figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *given, **how: drawn.append(self) or savefig(
        self, *given, **how))
    Robustness.plot({"a$b^$c_": DISTANCES["a"], "_b": DISTANCES["a"]}, "l2", (6,))
    shown = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert len(shown) == 2 * len(DISTANCES["a"])
    assert shown[0].startswith(r"a\$b^\$c_, ") and shown[-1].startswith("./_b, ")


def test_progress_counts_the_steps_of_a_part(linear, tmp_path):
    attacks = {"deepfool": {"steps": 4}, "fgsm": {}}
    bench = Robustness.Bench({"linear": linear[0]}, *linear[1:], attacks, "linf", [5, 6], tmp_path, 3)
    done = [faces for faces, _ in bench.run()]
    assert done == sorted(done) and 0 < done[0] < 3 and done[-1] == bench.total
    assert len(set(done)) > 4


def test_what_is_asked_for_in_other_words_is_the_same_measurement(linear, tmp_path):
    def parts(attacks, radii):
        return [path for *_, path, _ in Robustness.Bench({"linear": linear[0]}, *linear[1:], attacks, "l2", radii,
                                                         tmp_path, 3).parts]

    one = parts({"ddn": {}, "pgd": {"steps": None}}, [16, 32])
    assert one == parts({"ddn": {"steps": 300}, "pgd": {"steps": 40}}, [32.0, 16.0])
    assert not set(one) & {*parts({"ddn": {"steps": 30}, "pgd": {"steps": 30}}, [16, 32])}


def test_robust_is_the_least_of_all_attacks_and_parts_join(linear, tmp_path):
    attacks = {"deepfool": {}, "fgsm": {}}
    bench = Robustness.Bench({"linear": linear[0]}, *linear[1:], attacks, "linf", [6, 5, 7], tmp_path, 4)
    assert (bench.total, bench.done) == (12, 0)
    for _ in bench.run():
        pass
    assert bench.done == 12
    found = bench.distances()["linear"]
    for attack in attacks:
        np.testing.assert_array_equal(found[attack], least(*linear, attack, "linf", [5, 6, 7]))
    np.testing.assert_array_equal(found["robust"], np.minimum(found["deepfool"], found["fgsm"]))


def test_a_net_of_two_names_is_attacked_once(linear, tmp_path):
    bench = Robustness.Bench({"one": linear[0], "other": linear[0]}, *linear[1:], {"ddn": {"steps": 3}}, "l2", [],
                             tmp_path, 4)
    assert bench.total == 6
    for _ in bench.run():
        pass
    assert bench.done == 6
    found = bench.distances()
    np.testing.assert_array_equal(found["one"]["ddn"], found["other"]["ddn"])


CHANGES = {
    "weights": dict(nets={"linear": Net(2)}), "faces": dict(faces=grey_faces(6)[::-1]),
    "labels": dict(labels=np.ones(6, int)), "options": dict(attacks={"fgsm": {}, "ddn": {"steps": 9}}),
    "distance": dict(norm="l2"), "radii": dict(radii=[4.0]),
}


@pytest.mark.parametrize("change, left", [(change, 6 if name in ("options", "radii") else 12)
                                          for name, change in CHANGES.items()], ids=CHANGES.keys())
def test_what_changed_is_measured_anew_and_nothing_else(linear, tmp_path, change, left):
    given = dict(nets={"linear": linear[0]}, faces=linear[1], labels=linear[2],
                 attacks={"fgsm": {}, "ddn": {"steps": 3}}, norm="linf", radii=[5.0], out=tmp_path, batch=6)
    for _ in Robustness.Bench(**given).run():
        pass
    assert Robustness.Bench(**given | {"nets": {"another name": linear[0]}}).done == 12
    bench = Robustness.Bench(**given | change)
    assert bench.total - bench.done == left


@pytest.fixture
def run(in_folder, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["Main_robustness.py"])
        code = Console.run(Main_robustness.main, [str(argument) for argument in arguments])
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def few(in_folder):
    return write_database(in_folder, "few", 10, seed=3)


def test_table_files_and_picture(run, few, checkpoint):
    pytest.importorskip("matplotlib")
    code, out, err = run(few, "--checkpoint", checkpoint, "--attack", "ddn", "fgsm", "--steps", "30", "--faces", "8",
                         "--radii", "200", "400", "--batch-size", "5")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"accuracy in % of 8 faces of {few}, by L2 distance of the saved files"
    written = _read("robustness/robustness_l2.csv")
    assert lines[3] == str(checkpoint)
    assert [line.split()[:-1] for line in lines[4:]] == [
        [row, *(f"{100 * share:.2f}"[:5] for share in shares)] for row, shares in written.items()]
    assert err == ("table saved as robustness/robustness_l2.csv\n"
                   "picture saved as robustness/robustness_l2.png\n")


def test_a_net_that_hides_its_gradient_is_not_praised_without_a_word(run, few, in_folder):
    net = Models.build("perceptron")
    net(tf.zeros([1, Dataset.DIM]))
    net.fc1.w.assign(1e6 * net.fc1.w)  # a sigmoid so steep has no gradient
    tf.train.Checkpoint(net=net).write("steep/my_model-1")
    Path("steep", Models.DESCRIPTION).write_text(net.description)
    code, _, err = run(few, "--checkpoint", "steep", "--attack", "fgsm", "--radii", "200")
    assert code == 0 and "steep: no gradient to follow from 10 of 10 faces; that attacks fail there does not" in err


def _read(path):
    """{attack: accuracies by ascending radius} of a CSV of one net."""
    shares = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["correct"]) / int(row["faces"]) == float(row["accuracy"])
            assert float(row["radius_unit_interval"]) == pytest.approx(float(row["radius_grey_levels"]) / 255, rel=1e-4)
            shares.setdefault(row["attack"], []).append(float(row["accuracy"]))
    return shares


def test_interrupted_it_says_how_to_go_on_and_repeats_nothing(run, few, checkpoint, in_folder, monkeypatch):
    asked = []

    def build(name, net, faces, wrong, stop=3, **options):
        asked.append(len(faces))
        if len(asked) == stop:
            raise KeyboardInterrupt
        return whole(name, net, faces, wrong, **options)

    whole = Attacks.build
    command = [few, "--checkpoint", checkpoint, "--attack", "ddn", "--steps", "20", "--batch-size", "3"]
    monkeypatch.setattr(Attacks, "build", build)
    code, out, err = run(*command)
    assert code == 130
    assert out == "\ninterrupted, and saved in robustness; the same command goes on\n"
    assert not list(in_folder.glob("robustness/*.*"))
    code, out, _ = run(*command)
    assert code == 0 and len(asked) == 5  # one of them broken off, and again
    again = run(*command)
    assert again[:2] == (0, out) and len(asked) == 5
    fresh = run(*command, "--out", "fresh")
    assert fresh[1] == out and len(asked) == 9


def test_without_matplotlib_a_line_says_how_to_get_it(run, few, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run(few, "--checkpoint", checkpoint, "--attack", "fgsm", "--norm", "linf", "--radii", "9")
    assert code == 0
    assert err == ("table saved as robustness/robustness_linf.csv\n"
                   'no picture without Matplotlib: pip install ".[plots]"\n')


def test_a_ball_that_holds_no_file_is_named(run, few, checkpoint):
    code, out, err = run(few, "--checkpoint", checkpoint, "--attack", "pgd", "ddn", "--norm", "l1", "--radii", "20",
                         "48", "--steps", "2", "--no-show")
    assert code == 0 and "\npgd was not run below L1 48, where it can make no file\n" in f"\n{err}"
    assert out.splitlines()[4].split()[:3:2] == ["pgd", "-"]
    measured = {row: len(shares) for row, shares in _read("robustness/robustness_l1.csv").items()}
    assert measured == {"pgd": 2, "ddn": 3, "robust": 3}
    assert "not run" not in run(few, "--checkpoint", checkpoint, "--attack", "pgd", "ddn", "--norm", "l1", "--radii",
                                "48", "--steps", "2", "--no-show")[2]


MISTAKES = {
    "no such database": (["elsewhere.bin"], "elsewhere.bin: expected a name such as 10k"),
    "too many faces": (["FEW", "--faces", "11"], "data_few.bin: 11 faces asked for, it holds 10"),
    "unknown attack": (["FEW", "--attack", "magic"], "invalid choice: 'magic'"),
    "norm without a distance": (["FEW", "--norm", "none"], "invalid choice: 'none'"),
    "radius below a grey level": (["FEW", "--radii", "0.5"], "--radii: 0.5: expected a number in [1, 587520]"),
    "steps of none": (["FEW", "--attack", "fgsm", "--steps", "4"], "--steps 4: fgsm has no steps; leave it out"),
    "noise below none": (["FEW", "--purify", "-1"], "--purify: -1: expected a number in [0, 255]"),
    "attack of a transfer": (["FEW", "--transfer", "--attack", "pgd"], "--transfer makes its files by PGD; leave"),
    "substitute without a transfer": (["FEW", "--substitute", "small"], "--substitute does nothing without --transfer"),
    "questions without a substitute": (["FEW", "--transfer", "--queries", "9"], "needs both --substitute NET and"),
    "substitute without faces": (["FEW", "--transfer", "--substitute", "small"], "needs both --substitute NET and"),
    "too few faces to ask about": (["FEW", "--transfer", "--substitute", "small", "--query-faces", "FEW", "--queries",
                                    "11"], "data_few.bin: 11 faces asked for, it holds 10"),
    "folder that is a file": (["FEW", "--out", "FEW"], "data_few.bin/parts: the folder cannot be written"),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(run, few, checkpoint, in_folder, arguments, words):
    before = sorted(in_folder.rglob("*"))
    arguments = [few if argument == "FEW" else argument for argument in arguments]
    code, out, err = run(*arguments, "--checkpoint", checkpoint)
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err, err
    assert sorted(in_folder.rglob("*")) == before


def test_no_such_net(run, few):
    code, out, err = run(few, "--checkpoint", "nowhere")
    assert (code, out) == (2, "") and "nowhere: no checkpoint" in err


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_damaged_part_is_named(run, few, checkpoint, in_folder, content):
    command = [few, "--checkpoint", checkpoint, "--attack", "fgsm", "--norm", "linf", "--radii", "9"]
    run(*command)
    (part,) = in_folder.glob("robustness/parts/*.json")
    assert len(json.loads(part.read_text())) == 10
    part.write_text(content)
    code, out, err = run(*command)
    assert (code, out) == (2, "") and f"parts/{part.name}: damaged; expected 10 distances; delete it" in err


# Transfer

def test_files_of_a_linear_net_use_the_whole_ball_and_transfer_as_the_closed_form_says(linear, tmp_path):
    """Noise r w / |w| moves another net's logit by r w v / |w|."""
    net, faces, labels = linear
    others = {"same": net, "opposite": Net(1), "unlike": Net(2)}
    others["opposite"].w.assign(-net.w)
    others["opposite"].b = 40.0 - 2 * float(tf.reduce_mean(Dataset.to_float(faces) @ -net.w))
    transfer = Robustness.Transfer({"net": net}, faces, labels, "l2", [510.0], 10, tmp_path, 4)
    for _ in transfer.run():
        pass
    files = np.concatenate([Dataset.read_faces(path) for *_, path, _ in transfer.parts])
    noise = files.astype(float) - faces
    away = np.where(labels == 1, -1, 1)[:, None] * net.w.numpy()[:, 0]
    assert np.all(np.linalg.norm(noise, axis=1) <= 510)
    assert np.all((noise * away).sum(1) > 0.97 * 510 * np.linalg.norm(net.w))
    for name, other in others.items():
        says, after = (np.argmax(other(Dataset.to_float(picture)), 1) for picture in (faces, files))
        right = says == labels
        counted = transfer.fooled(others)["net", 510.0, name]
        assert tuple(counted) == (np.sum(right & (after != labels)), right.sum())
    assert transfer.fooled(others)["net", 510.0, "same"][0] == 4


def test_matrix_by_hand():
    fooled = {("a", 255, "a"): (4, 4), ("a", 255, "b"): (1, 3), ("s", 255, "a"): (2, 4), ("s", 255, "b"): (0, 0)}
    assert "\n".join(Robustness.matrix(fooled, "l2")) == """\
L2 255 grey levels, 1.000 of a 0..1 image
made on       a      b
a        100.00  33.33
s         50.00      -"""
    assert Robustness.matrix_of_values(fooled, "l2", "few", 40).splitlines()[:3] == [
        "attacked,norm,radius_grey_levels,radius_unit_interval,asked,called_right,fooled,database,steps",
        "a,l2,255,1,a,4,4,few,40", "a,l2,255,1,b,3,1,few,40"]


def test_where_names_are_too_long_for_a_terminal_numbers_stand_for_them():
    long = ["checkpoints/" + letter * 30 for letter in "ab"]
    fooled = {("substitute", 255, long[0]): (1, 4), ("substitute", 255, long[1]): (1, 2)}
    assert "\n".join(Robustness.matrix(fooled, "l2")) == f"""\
 1  {long[0]}
 2  {long[1]}
 3  substitute
L2 255 grey levels, 1.000 of a 0..1 image
made on      1      2
3        25.00  50.00"""


def test_a_substitute_learns_the_answers_alone(database, checkpoint, tmp_path):
    """The victim answers the contrary of the labels, so the substitute does."""
    net = Models.load(checkpoint)[0]

    def contrary(x):
        return -net(x)

    contrary.description, contrary.variables = net.description, net.variables
    faces = Dataset.open_database(database, nbdata=120)
    training = Robustness.substitute(contrary, faces, "perceptron", tmp_path)
    assert training.total == 20 and training.train.nbdata + training.measured["validation"].nbdata == 120
    np.testing.assert_array_equal(training.train.label, 1 - faces.label[training.train.data.rows])
    interrupt_at(training, 5)
    training = Robustness.substitute(contrary, faces, "perceptron", tmp_path)
    assert int(training.step) == 5
    finish(training)
    pupil = Models.load(training.out)[0]
    assert Dataset.open_database(database.parent / "data_test.bin").mean_accuracy(lambda x: pupil(x)) < 0.2


@pytest.mark.parametrize("more", [["--transfer", "--steps", "2"], ["--attack", "fgsm"]])
def test_a_radius_named_twice_counts_once(run, few, checkpoint, more):
    command = [few, "--checkpoint", checkpoint, *more]
    sheets = []
    for radii in ["600"], ["600", "600"]:
        assert run(*command, "--radii", *radii)[0] == 0
        sheets.append(next(Path("robustness").glob("*.csv")).read_text())
    assert sheets[0] == sheets[1]


def test_the_transfer_of_a_black_box(run, few, database, checkpoint):
    shutil.copytree(checkpoint, "net")  # a short name
    command = [few, "--transfer", "--checkpoint", "net", "--steps", "8", "--radii", "600", "--substitute", "small",
               "--query-faces", database, "--queries", "100", "--norm", "l2"]
    code, out, err = run(*command)
    lines = out.splitlines()
    assert (code, err) == (0, "table saved as robustness/transfer_l2.csv\n")
    assert lines[0].startswith("substitute of net: small, 100 queries, agrees with it on ")
    assert lines[2].startswith("L2 600 grey levels, 2.353 of a 0..1 image")
    assert [line.rsplit(None, 1)[0] for line in lines[4:]] == ["net", "substitute of net"]
    with open("robustness/transfer_l2.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line.rsplit(None, 1)[1] for line in lines[4:]] == [
        f"{100 * int(row['fooled']) / int(row['called_right']):.2f}" for row in rows]
    assert run(*command)[1] == out


# JumpReLU

def test_jump_relu_by_hand_and_its_gradient_is_a_smooth_jumps():
    x = np.float32([-1.0, 0.2, 0.5, 0.6, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(given := tf.constant(x))
        y = Robustness.jump_relu(given, 0.5)
    np.testing.assert_array_equal(y, np.float32([0.0, 0.0, 0.0, 0.6, 2.0]))
    share = 1 / (1 + np.exp(-8 * (x - 0.5)))
    golden = np.where(x > 0, share + x * 8 * share * (1 - share), 0)
    np.testing.assert_allclose(tape.gradient(y, given), golden, rtol=1e-5)


@pytest.mark.parametrize("name, options", [("small", {}), ("resnet", {"nb_filter": 4}), ("densenet", {"nb_block": 2})])
def test_every_relu_of_a_net_jumps(name, options):
    """At threshold 0 nothing changes; beyond all activations only the biases of the layers without ReLU are left."""
    x = tf.constant(Dataset.to_float(grey_faces(4)))
    net = Models.build(name, **options)
    answer, own = net(x), net.description
    np.testing.assert_array_equal(Robustness.with_jump(net, 0.0)(x), answer)
    assert net.description != own
    with pytest.raises(Dataset.UserError):
        Robustness.with_jump(net, 0.5)
    net = Models.build(name, **options)
    blind = Robustness.with_jump(net, 1e9)(x).numpy()
    np.testing.assert_array_equal(blind, np.tile(blind[:1], (4, 1)))
    assert np.any(answer[0] != answer[1])


def test_a_net_without_relu_has_no_place_for_a_jump():
    with pytest.raises(Dataset.UserError, match="--jump 0.5: a Perceptron without ReLU has no place for it"):
        Robustness.with_jump(Models.build("perceptron"), 0.5)


def test_jumps_stand_beside_the_net(run, few, checkpoint):
    command = [few, "--checkpoint", checkpoint, "--attack", "deepfool", "--steps", "4", "--radii", "600", "--no-show"]
    plain = run(*command)[1].splitlines()
    code, out, _ = run(*command, "--jump", "0", "1e9")
    lines = out.splitlines()
    assert code == 0 and lines[3:5] == plain[3:5]
    assert lines[5:7] == [f"{checkpoint}, jump 0.0", plain[4]]
    assert lines[7] == f"{checkpoint}, jump 1000000000.0" and lines[8].split()[1] == "50.00"


# Adversarial training

@pytest.mark.parametrize("radius", [3.0, 200.0, 2000.0])
def test_pushed_faces_stay_in_the_ball_and_the_range_and_raise_the_loss(checkpoint, radius):
    net = Models.load(checkpoint)[0]
    faces = np.random.default_rng(0).integers(0, 256, (12, Dataset.DIM), np.uint8)
    x, wrong = tf.constant(Dataset.to_float(faces)), np.arange(12) % 2
    pushed = Attacks.push(net, x, wrong, radius / 256, 3, (0, 1))
    assert np.all(256 * np.linalg.norm(pushed - x, axis=1) <= 1.0001 * radius)
    assert np.min(pushed) >= Dataset.BLACK and np.max(pushed) <= Dataset.WHITE
    rise = [tf.gather(net(picture), wrong, batch_dims=1) - tf.gather(net(picture), 1 - wrong, batch_dims=1)
            for picture in (x, pushed)]
    assert np.all(rise[1] > rise[0])


def test_pushed_faces_of_a_linear_net_go_along_its_weights(linear):
    """From a random point of the ball three steps end near the furthest: the lead falls by radius x |w|."""
    net, faces, _ = linear
    x = tf.constant(Dataset.to_float(faces))
    fall = net(x)[:, 1] - net(Attacks.push(net, x, [0] * 6, 1.0, 3, (0, 1)))[:, 1]
    assert np.all(fall > 0.94 * np.linalg.norm(net.w)) and np.all(fall <= 1.0001 * np.linalg.norm(net.w))


ADVERSARIAL = dataclasses.replace(RECIPE, adversarial=400.0, adversarial_steps=2)


def test_an_adversarially_trained_net_is_harder_to_mislead(database, tmp_path):
    test = Dataset.open_database(database.parent / "data_test.bin", nbdata=16)
    near = []
    for radius in (0.0, 500.0):
        recipe = dataclasses.replace(RECIPE, epochs=8, adversarial=radius, augment=("none",))
        training = finish(trainer(database, tmp_path / str(radius), net="perceptron", recipe=recipe))
        assert training.result()["test"]["accuracy"] == 1.0
        near.append(least(Models.load(tmp_path / str(radius))[0], test.data.grey(), test.label.argmax(1), "ddn", "l2",
                          steps=50))
    assert np.median(near[1]) > 1.05 * np.median(near[0])


def test_adversarial_training_resumes_bit_by_bit(database, tmp_path):
    options = dict(recipe=ADVERSARIAL, net="convnet", nb_block=1, nb_filter=4, dropout=0.3, batchnorm=True)
    whole = finish(trainer(database, tmp_path / "whole", **options))
    interrupt_at(trainer(database, tmp_path / "cut", **options), 4)
    resumed = trainer(database, tmp_path / "cut", **options)
    resumed.resume()
    assert_same(finish(resumed), whole)


@pytest.mark.parametrize("rise, steps", [(0.5, 12), (1.0, 24), (0.0, 1)])
def test_the_radius_rises_then_stays(database, tmp_path, monkeypatch, rise, steps):
    radii = []

    def push(net, x, wrong, radius, steps, seed):
        radii.append(256 * float(radius))
        return x

    monkeypatch.setattr(Attacks, "push", push)
    training = trainer(database, tmp_path, recipe=dataclasses.replace(ADVERSARIAL, epochs=4, adversarial_rise=rise))
    training.learn = training._learn
    training._measure = lambda *_: training.curve.append({})
    training._save_last = lambda: None
    finish(training)
    np.testing.assert_allclose(radii, np.minimum(np.arange(1, 25) / steps, 1.0) * 400, rtol=1e-5)


@pytest.mark.parametrize("loss, key", [("cross-entropy", "cross_entropy"), ("generalized", "generalized")])
def test_the_best_weights_are_those_that_are_best_when_attacked(database, tmp_path, loss, key):
    training = finish(trainer(database, tmp_path, recipe=dataclasses.replace(ADVERSARIAL, loss=loss)))
    attacked = {row[f"attacked_{key}"]: row["step"] for row in training.curve}
    assert training.result()["best_step"] == attacked[min(attacked)]
    assert all(row["attacked_cross_entropy"] > row["validation_cross_entropy"] for row in training.curve)


def test_without_a_radius_no_face_is_moved(database, tmp_path, monkeypatch):
    monkeypatch.setattr(Attacks, "push", None)
    training = finish(trainer(database, tmp_path))
    assert "attacked_accuracy" not in training.curve[-1]


def test_learning_shows_the_accuracy_when_attacked(database, in_folder, capsys):
    code = Console.run(Main.main, ["--train", str(database), "--net", "small", "--epochs", "1", "--adversarial", "100",
                                   "--out", "run"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[3].endswith("left   attacked") and len(lines[3]) == len(lines[4])
    row = json.loads((in_folder / "run" / "metrics.json").read_text())["curve"][-1]
    assert lines[4].split()[-2] == f"{100 * row['attacked_accuracy']:.2f}"


def test_files_of_other_steps_are_made_anew(checkpoint, in_folder, capsys):
    few = write_database(in_folder, "few", 4)
    for steps in "2", "5":
        assert Console.run(Main_robustness.main, [str(few), "--checkpoint", str(checkpoint), "--transfer",
                                                  "--radii", "100", "--steps", steps]) == 0
    parts = [path.read_bytes() for path in in_folder.glob("robustness/parts/*.bin")]
    assert len(parts) == 2 and parts[0] != parts[1]


def test_each_victim_has_a_substitute_of_its_own(checkpoint, database, tmp_path):
    nets = [Models.load(checkpoint)[0] for _ in range(2)]
    nets[1].fc.b.assign_add([9.0, 0.0])
    faces = Dataset.open_database(database, nbdata=40)
    outs = {Robustness.substitute(net, faces, "perceptron", tmp_path).out for net in nets}
    assert len(outs) == 2


def test_adversarial_training_pushes_so_many_steps_with_draws_of_each_step(database, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Attacks, "push", lambda net, x, wrong, radius, steps, seed: (
        asked.append((steps, tuple(map(int, seed)))) or x))
    training = trainer(database, tmp_path, recipe=ADVERSARIAL)
    for seed in (0, 1), (0, 2):
        training._learn(seed, tf.zeros([1, Dataset.DIM]), tf.constant([[1.0, 0.0]]))
    assert {steps for steps, _ in asked} == {ADVERSARIAL.adversarial_steps}
    assert len({seed for _, seed in asked} | {(0, 1), (0, 2)}) == 4  # not dropout's either


def test_files_of_another_ball_are_made_anew(checkpoint, tmp_path):
    net, done = Models.load(checkpoint)[0], []
    for radius in 300.0, 600.0, 600.0:
        misled = Robustness.Misled(net, grey_faces(2), np.array([0, 1]), "pgd", {"steps": 2}, radius, tmp_path, 4)
        done.append(misled.done)
        for _ in misled.run():
            pass
    assert done == [0, 0, 2]


@pytest.mark.parametrize("norm, noise", [("l2", 48.0), ("l1", 2304.0), ("linf", 1.0)])
def test_the_balls_of_fgsm_reach_as_far_as_the_distance(norm, noise):
    assert len(Robustness._runs("fgsm", norm, [noise])) == 1  # one grey level is the least that a file can hold
    (run,) = Robustness._runs("fgsm", norm, [5.0 * noise])
    assert run == {"radius": pytest.approx(5.0 / 256)}
