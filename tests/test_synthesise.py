import io
import shlex

import numpy as np
import pytest

import Console
import Dataset
import Main
import Main_inference
import Models
from DataBases import faces, fit, synthesise

from conftest import REAL_FACES, write_database


@pytest.fixture(scope="module")
def blobs():
    """[300, 2304] uint8 whose spread has five directions, and a group for each: (faces, group)."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(5, Dataset.DIM))
    group = np.arange(300) % 2
    codes = random.normal(size=(300, 5)) * [20, 12, 8, 5, 3] + np.outer(group, [15, 0, 0, 0, 0])
    return np.clip(np.rint(128 + codes @ directions), 0, 255).astype(np.uint8), group


def source(seed=0, model=None):
    return synthesise.Source(seed, model)


def written(folder, name):
    return [(folder / f"{kind}_{name}.bin").read_bytes() for kind in ("data", "gender")]


# The model

def test_eigenfaces_are_the_right_singular_vectors(blobs):
    both = faces.with_mirrors(blobs[0])
    mean, directions = faces.eigenfaces(both, 8)
    expected = np.linalg.svd(both - both.mean(0), full_matrices=False)[2][:8]
    np.testing.assert_allclose(mean, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(directions * expected, 1)), 1.0, atol=1e-3)


def test_mirrors_are_those_of_numpy(blobs):
    both = faces.with_mirrors(blobs[0])
    np.testing.assert_array_equal(both[300 + 7].reshape(48, 48), np.fliplr(blobs[0][7].reshape(48, 48)))


def test_the_model_has_each_group_s_mean_and_covariance(blobs):
    model = faces.fit(*blobs, components=10)
    both, group = faces.with_mirrors(blobs[0]), np.tile(blobs[1], 2)
    codes = (both - model.mean) @ model.eigenfaces.T
    for number in 0, 1:
        np.testing.assert_allclose(model.means[number], codes[group == number].mean(0), atol=1e-3)
        np.testing.assert_allclose(model.roots[number] @ model.roots[number].T - 1e-2 * np.eye(10),
                                   np.cov(codes[group == number].T, bias=True), rtol=1e-3, atol=0.5)


def test_samples_have_the_mean_and_the_covariance_of_the_model():
    directions = np.eye(Dataset.DIM, dtype=np.float32)[[5, 9]]
    model = faces.Model(np.full(Dataset.DIM, 100, np.float32), directions, np.float32([[10, -20]]),
                        np.float32([[[6, 0], [3, 4]]]))
    drawn = model.sample(20_000, np.random.default_rng(0)).astype(float)
    np.testing.assert_allclose(drawn[:, [5, 9]].mean(0), [110, 80], atol=0.2)
    np.testing.assert_allclose(np.cov(drawn[:, [5, 9]].T), [[36, 18], [18, 25]], rtol=0.05)
    assert (np.delete(drawn, [5, 9], 1) == 100).all()


def test_saved_and_loaded_it_is_the_same_within_its_8_bits(blobs, tmp_path):
    model = faces.fit(*blobs, components=10)
    faces.save(model, tmp_path / "faces.npz")
    read = faces.load(tmp_path / "faces.npz")
    for one, other in zip(model, read):
        assert one.shape == other.shape and other.dtype == np.float32
    np.testing.assert_array_equal(read.means, model.means)
    np.testing.assert_allclose(read.roots, model.roots, rtol=1e-3, atol=1e-4)
    most = np.abs(model.eigenfaces).max(1, keepdims=True)
    assert (np.abs(read.eigenfaces - model.eigenfaces) <= most / 254 * 1.001).all()


def zeros(save):
    held = io.BytesIO()
    save(held)
    return held.getvalue()


WHOLE = synthesise.MODEL.read_bytes()


@pytest.mark.parametrize("content", [
    b"", b"no npz",
    zeros(lambda file: np.savez(file, mean=np.zeros(3))), zeros(lambda file: np.save(file, np.zeros(3))),
    WHOLE[:len(WHOLE) // 2], WHOLE[:5000] + bytes(100) + WHOLE[5100:]],
    ids=["empty", "text", "another npz", "npy", "half", "damaged"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "faces.npz"
    path.write_bytes(content)
    with pytest.raises(Dataset.DataError, match="no model of faces|empty"):
        faces.load(path)


def test_the_model_that_ships_is_small_and_plain():
    files = [synthesise.MODEL, *synthesise.LABELLER.iterdir()]
    assert sum(path.stat().st_size for path in files) < 6e6
    with np.load(synthesise.MODEL, allow_pickle=False) as kept:
        assert {kept[name].dtype.kind for name in kept} <= {"f", "i"}


def test_where_the_labeller_is_sure_it_says_what_the_net_that_ships_says():
    shipped = Models.load(synthesise.SHIPPED)[0]
    both, alone = source(), synthesise.Source(0, teacher=shipped)
    grey = both.model.sample(2000, np.random.default_rng(0))
    sure = both.first(grey).numpy().max(1) >= synthesise.SURE
    assert 0.6 < sure.mean() < 0.9
    says, expected = both.answer(grey), alone.answer(grey)
    np.testing.assert_allclose(says[~sure], expected[~sure], atol=0.01)
    assert (says.argmax(1) == expected.argmax(1)).mean() > 0.998


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_faces_are_answered_whether_or_not_one_is_doubtful(count):
    asked = source()
    grey = asked.model.sample(200, np.random.default_rng(0))
    whole = asked.answer(grey)
    for first in range(0, 60, 3):
        np.testing.assert_allclose(asked.answer(grey[first:first + count]), whole[first:first + count], atol=0.02)


def test_a_base_that_appears_while_one_is_drawn_is_kept(tmp_path, monkeypatch):
    drawing = source()

    def draw(name, count):
        (tmp_path / "data_4.bin").write_bytes(b"the user's")
        yield np.zeros((4, Dataset.DIM), np.uint8), np.eye(2, dtype="<f4")[[0, 1, 0, 1]]
    monkeypatch.setattr(drawing, "draw", draw)
    with pytest.raises(Dataset.UserError, match="data_4.bin: exists already"):
        synthesise.write(drawing, "4", 4, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data_4.bin"]
    assert (tmp_path / "data_4.bin").read_bytes() == b"the user's"


# The databases

@pytest.mark.parametrize("name, count", [("10k", 10_000), ("test10k", 10_000), ("500", 500), ("my_2", 2)])
def test_sizes_by_name(name, count):
    assert synthesise.size_of(name) == count


@pytest.mark.parametrize("name", ["", "k", "ten", "1", "0k", "10m", "10k2x", "../10k", "9" * 5000])
def test_names_without_a_size_are_refused(name):
    with pytest.raises(Dataset.UserError, match="expected a size"):
        synthesise.size_of(name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    assert Console.run(synthesise.main, ["1001", "test1k", "--out", str(folder)]) == 0
    return folder


def test_a_base_has_its_size_balance_and_the_net_s_labels(base):
    dataset = Dataset.open_database(base / "data_1001.bin")
    assert dataset.label.sum(0).tolist() == [501, 500]
    grey = dataset.data.grey()
    assert (source().answer(grey).argmax(1) == dataset.label.argmax(1)).all()
    assert len(np.unique(grey, axis=0)) == 1001
    assert sorted(path.name for path in base.iterdir()) == [
        "data_1001.bin", "data_test1k.bin", "gender_1001.bin", "gender_test1k.bin"]


def test_the_test_base_shares_no_face_with_the_other(base):
    both = np.concatenate([Dataset.open_database(base / f"data_{name}.bin").data.grey() for name in ("1001", "test1k")])
    assert len(np.unique(both, axis=0)) == 2001


def test_the_same_name_and_seed_give_the_same_bytes(base, tmp_path):
    for folder, seed in ("same", 0), ("other", 1):
        list(synthesise.make(["1001"], tmp_path / folder, seed))
    assert written(tmp_path / "same", "1001") == written(base, "1001")
    assert written(tmp_path / "other", "1001")[0] != written(base, "1001")[0]


def test_it_reports_what_it_wrote(tmp_path, capsys):
    assert Console.run(synthesise.main, ["20", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'data_20.bin'}: 20 faces of nobody, ")


def test_labels_and_groups_that_exist_are_left_alone(tmp_path, capsys):
    for name in "gender_20.bin", "meta_20.csv":
        (tmp_path / name).write_bytes(b"mine")
        assert Console.run(synthesise.main, ["20", "--out", str(tmp_path)]) == 2
        assert f"{name}: exists already" in capsys.readouterr().err
        (tmp_path / name).unlink()


def test_more_faces_than_the_disk_holds_are_refused(tmp_path, capsys):
    assert Console.run(synthesise.main, ["99999999999k", "--out", str(tmp_path / "new" / "folder")]) == 2
    assert " GB are free; choose fewer" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_base_that_exists_is_left_alone(base, capsys):
    before = written(base, "test1k")
    assert Console.run(synthesise.main, ["30", "test1k", "--out", str(base)]) == 2
    assert "data_test1k.bin: exists already" in capsys.readouterr().err
    assert written(base, "test1k") == before
    assert not (base / "data_30.bin").exists()


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch, error, code):
    original, chunks = faces.Model.sample, []

    def sample(model, count, generator):
        if len(chunks) == 2:
            raise error
        chunks.append(count)
        return original(model, count, generator)
    monkeypatch.setattr(faces.Model, "sample", sample)
    assert Console.run(synthesise.main, ["10k", "--out", str(tmp_path)]) == code
    assert len(chunks) == 2 and list(tmp_path.iterdir()) == []


def test_interrupted_after_a_base_it_tells_which_are_missing(tmp_path, monkeypatch, capsys):
    out, original = str(tmp_path / "my bases"), synthesise.write

    def write(source, name, count, folder):
        if name == "test40":
            raise KeyboardInterrupt
        return original(source, name, count, folder)
    monkeypatch.setattr(synthesise, "write", write)
    assert Console.run(synthesise.main, ["20", "test40", "30", "20", "--seed", "3", "--out", out]) == 130
    monkeypatch.undo()
    told, command = capsys.readouterr().out.splitlines()[-2:]
    assert told == "interrupted; go on with"
    assert command.split("synthesise ")[1] == f"test40 30 --out '{out}' --seed 3"
    assert Console.run(synthesise.main, shlex.split(command)[3:]) == 0
    assert Console.run(synthesise.main, ["20", "test40", "30", "--seed", "3", "--out", str(tmp_path / "whole")]) == 0
    for name in "20", "test40", "30":
        assert written(tmp_path / "my bases", name) == written(tmp_path / "whole", name)


def test_main_without_a_database_makes_its_own_and_learns(in_folder, monkeypatch, capsys):
    monkeypatch.setattr(Dataset, "DATABASES", in_folder / "DataBases")
    monkeypatch.setattr(Dataset.default_databases, "__defaults__", (in_folder / "DataBases",))
    arguments = ["--nb-filter", "16", "--epochs", "2", "--batch-size", "64", "--augment", "flip", "--logs", "none"]
    assert Console.run(Main.main, [*arguments, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "holds no faces to learn from: making some of nobody" in out
    assert "9,500 faces to learn, 500 to validate, 10,000 to test" in out
    assert float(out.splitlines()[-1].split()[2]) > 80
    before = written(in_folder / "DataBases", "10k")
    assert Console.run(Main.main, ["--net", "small", "--epochs", "1", "--logs", "none", "--out", "second"]) == 0
    assert "of nobody" not in capsys.readouterr().out
    assert written(in_folder / "DataBases", "10k") == before
    if REAL_FACES.is_dir():  # faces of nobody teach about people
        assert Console.run(Main_inference.main, [str(REAL_FACES / "data_test4k.bin"), "--checkpoint", "run"]) == 0
        said = capsys.readouterr().out
        assert float(said.split("accuracy ")[1].split()[0]) > 78


def test_a_model_of_one_s_own_faces(tmp_path, capsys):
    database = write_database(tmp_path, "mine", 120)
    out = tmp_path / "mine.npz"
    assert Console.run(fit.main, [str(database), "--components", "20", "--out", str(out)]) == 0
    assert "20 eigenfaces of 120 faces" in capsys.readouterr().out
    drawn = faces.load(out).sample(400, np.random.default_rng(0)).reshape(-1, 48, 48).astype(float)
    top, bottom = drawn[:, 4:20, 12:36].mean((1, 2)), drawn[:, 28:44, 12:36].mean((1, 2))
    assert ((top - bottom > 30) | (bottom - top > 30)).mean() > 0.95  # of one kind or of the other


def test_a_face_that_two_databases_hold_is_fitted_once(tmp_path, capsys):
    database = write_database(tmp_path, "mine", 40)
    write_database(tmp_path, "head", 20, seed=0)
    Dataset.read_faces(database)[:20].tofile(tmp_path / "data_head.bin")
    assert Console.run(fit.main, [str(tmp_path / "data_head.bin"), str(database), "--components", "9", "--out",
                                  str(tmp_path / "x.npz")]) == 0
    out, err = capsys.readouterr()
    assert "9 eigenfaces of 40 faces" in out and "data_mine.bin: 20 faces left out" in err


def test_fewer_faces_than_components_make_a_model(tmp_path):
    grey = Dataset.read_faces(write_database(tmp_path, "few", 10))
    model = faces.fit(grey, np.arange(10) % 2)
    assert np.isfinite(model.roots).all() and model.sample(5, np.random.default_rng(0)).shape == (5, Dataset.DIM)


def test_a_model_needs_a_file_to_go_to(tmp_path, capsys):
    database = write_database(tmp_path, "mine", 10)
    assert Console.run(fit.main, [str(database), "--out", str(tmp_path)]) == 2
    assert "a folder; expected the file to write" in capsys.readouterr().err


def test_a_model_of_one_sex_alone_is_refused(tmp_path, capsys):
    database = write_database(tmp_path, "men", 10)
    np.eye(2, dtype="<f4")[np.zeros(10, int)].tofile(tmp_path / "gender_men.bin")
    assert Console.run(fit.main, [str(database), "--out", str(tmp_path / "x.npz")]) == 2
    assert "expected men and women" in capsys.readouterr().err
