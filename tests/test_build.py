"""python -m DataBases.build: each public set, on a folder of its exact structure that the test makes."""
import collections
import csv
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import Console
import Dataset
from DataBases import build, photo, sources
from conftest import REAL_FACES
from test_photo import background, detector, draw, matching, mean_face  # noqa: F401  detector is a fixture

SIDE = Dataset.SIDE


def portrait(number, side=SIDE):
    """A picture like no other: [side, side] uint8, smooth as a face is."""
    coarse = np.random.default_rng(number).integers(0, 256, (9, 9), np.uint8)
    return np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def save(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr(build.sys, "argv", ["build.py"])

    def run(*arguments):
        code = Console.run(build.main, [str(argument) for argument in arguments])
        return code, *capsys.readouterr()
    return run


def base(folder, name):
    """(faces [N, 2304] uint8, women [N] int, meta rows or None) of a written base, read as the project reads it."""
    data, gender, meta = Dataset.database_files(name, folder)
    dataset = Dataset.DataSet(data, gender)
    rows = None
    if meta.exists():
        assert Dataset.read_groups(meta, dataset.nbdata)
        with open(meta, newline="") as file:
            rows = [tuple(row.values()) for row in csv.DictReader(file)]
    return dataset.data.grey(), dataset.label.argmax(1), rows


def known(folder, framing):
    """{bytes of a face: its file name} of all pictures below a folder that can be read."""
    return {framing(Dataset.read_picture(path)).tobytes(): path.name
            for path in folder.rglob("*") if path.suffix in (".jpg", ".png") and path.stat().st_size > 100}


# The sets


@pytest.fixture
def utkface(tmp_path):
    """40 pictures named as UTKFace names them, 200x200, 24 of men."""
    folder = tmp_path / "UTKFace"
    for number in range(40):
        name = f"{number + 1}_{int(number >= 24)}_{number % 5}_2017011{number:012}.jpg.chip.jpg"
        save(folder / name, portrait(number, 200))
    return folder


def test_utkface(utkface, tmp_path, run):
    save(utkface / "61_1_20170109142408075.jpg.chip.jpg", portrait(100, 200))
    save(utkface / "61_3_20170109150557335.jpg.chip.jpg", portrait(101, 200))
    (utkface / "9_0_1_20170111.jpg").write_bytes(b"no picture")
    code, out, err = run("utkface", utkface, "--names", "10", "20", "test12", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    files = known(utkface, sources.utkface_chip)
    seen = {}
    for name in "10", "20", "test12":
        faces, women, meta = base(tmp_path / "out", name)
        seen[name] = [files[face.tobytes()] for face in faces]
        for file, woman, (age, ethnicity) in zip(seen[name], women, meta, strict=True):
            parts = file.split("_")
            assert (int(parts[0]), int(parts[1])) == (int(age), woman)
            assert ethnicity == (parts[2] if len(parts) == 4 else "")
        assert len(set(seen[name])) == len(faces)
        assert women.sum() == len(faces) // 2
    assert seen["10"] == seen["20"][:10]
    assert not set(seen["20"]) & set(seen["test12"])
    lines = out.splitlines()
    assert f"{utkface}: 43 pictures, 41 faces (24 men, 17 women)" in lines
    assert "skipped      1  name without age_gender_ethnicity_date: 61_3_20170109150557335.jpg.chip.jpg" in lines
    assert "skipped      1  not a picture that can be read: 9_0_1_20170111.jpg" in lines
    assert f"{tmp_path / 'out' / 'data_test12.bin'}: 12 faces, 6 men, 6 women" in lines
    assert not [*(tmp_path / "out").glob(".*")]


def test_fairface(tmp_path, run):
    folder = tmp_path / "fairface"
    rows = {"train": [], "val": []}
    ages, races = list(sources.FAIRFACE_AGES), list(sources.FAIRFACE_RACES)
    for number in range(30):
        part = "train" if number < 20 else "val"
        save(folder / part / f"{number}.jpg", portrait(number, 224))
        rows[part].append((f"{part}/{number}.jpg", ages[number % 9], ("Male", "Female")[number % 2], races[number % 7]))
    rows["val"].append(("val/99.jpg", "20-29", "Male", "White"))
    for part, lines in rows.items():
        text = "\n".join(["file,age,gender,race,service_test", *(",".join([*line, "True"]) for line in lines)])
        (folder / f"fairface_label_{part}.csv").write_text(text + "\n")
    code, out, err = run("fairface", folder, "--names", "20", "test10", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "skipped      1  missing: 99.jpg" in out
    files = known(folder, sources.fairface_chip)
    for name in "20", "test10":
        for face, woman, (age, ethnicity) in zip(*base(tmp_path, name), strict=True):
            number = int(files[face.tobytes()].split(".")[0])
            assert woman == number % 2
            assert int(age) == sources.FAIRFACE_AGES[ages[number % 9]]
            assert int(ethnicity) == sources.FAIRFACE_RACES[races[number % 7]]


def spots(width, height, places):
    """A picture of a bright spot, or a list of them, one for each place (x, y) in pixels."""
    down, across = np.mgrid[0:height, 0:width] + 0.5
    for x, y in places:
        spot = 250 * np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * (width / 60) ** 2))
        yield Image.fromarray(spot.astype(np.uint8)).convert("RGB")


def where(face):
    """The middle of the bright spot in a face, (x, y) in sides of the face."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    return np.array([(columns * face).sum(), (rows * face).sum()]) / face.sum(dtype=float) / SIDE


@pytest.mark.parametrize("side, padding", [(224, 0.25), (448, 1.25)])
def test_fairface_is_brought_from_its_padding_to_the_framing(side, padding):
    """The outer eye corners and the nose of dlib's mean face, in a chip of that padding and in the databases."""
    mean = np.array([[0.1206, 0.2137], [0.8596, 0.2135], [0.4901, 0.6278]])
    places = (mean + padding) / (1 + 2 * padding) * side
    found = [where(sources.fairface_chip(picture)) for picture in spots(side, side, places)]
    np.testing.assert_allclose(found, [[0.229, 0.295], [0.757, 0.295], [0.493, 0.591]], atol=0.003)


def test_celeba_is_brought_to_the_framing():
    found = [where(sources.celeba_chip(picture)) for picture in spots(178, 218, sources.CELEBA_LANDMARKS)]
    np.testing.assert_allclose(found, photo.TEMPLATE, atol=0.025)


@pytest.mark.parametrize("deep", [False, True])
def test_celeba(tmp_path, run, deep):
    folder = tmp_path / "celeba"
    images, labels = (folder / "Img", folder / "Anno") if deep else (folder, folder)
    for number in range(1, 41):
        face = portrait(number, 218)[:, :178]
        save(images / "img_align_celeba" / f"{number:06}.jpg", face)
    labels.mkdir(exist_ok=True)
    lines = [f"{number:06}.jpg -1 {1 if number % 2 else -1:2}  1" for number in range(1, 41)]
    (labels / "list_attr_celeba.txt").write_text("40\nBald Male Young \n" + "\n".join(lines) + "\n")
    people = "\n".join(f"{number:06}.jpg {2880 + (number - 1) // 4}" for number in range(1, 41))
    (labels / "identity_CelebA.txt").write_text(people + "\n")
    code, out, err = run("celeba", folder, "--names", "24", "test16", "--out", tmp_path)
    assert (code, err) == (0, "")
    files = known(images, sources.celeba_chip)
    person = {}
    for name in "24", "test16":
        faces, women, meta = base(tmp_path, name)
        assert meta is None
        numbers = [int(files[face.tobytes()].split(".")[0]) for face in faces]
        assert women.tolist() == [1 - number % 2 for number in numbers]
        person[name] = {(number - 1) // 4 for number in numbers}
    assert not person["24"] & person["test16"]
    assert "10 groups of 2 to 4 faces stay on one side" in out


def test_lfw(tmp_path, run):
    folder = tmp_path / "lfw"
    names = {"male": [], "female": []}
    for number in range(12):
        sex, person = ("male", "female")[number % 2], f"Person_{number}"
        for picture in range(1, 4):
            save(folder / person / f"{person}_{picture:04}.jpg", portrait(10 * number + picture))
            if number < 6:  # as lists of pictures, and as lists of people
                names[sex].append(f"{person}_{picture:04}.jpg")
        if number >= 6:
            names[sex].append(person)
    save(folder / "Nobody" / "Nobody_0001.jpg", portrait(1000))
    save(folder / "Both" / "Both_0001.jpg", portrait(1001))
    for sex in names:
        (folder / f"{sex}_names.txt").write_text("\n".join([*names[sex], "Both_0001.jpg"]) + "\n")
    code, out, err = run("lfw", folder, "--names", "18", "test12", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "skipped      1  in both lists of names: Both_0001.jpg" in out
    assert "skipped      1  in no list of names: Nobody_0001.jpg" in out
    files, person = known(folder, sources.middle_face), {}
    for name in "18", "test12":
        faces, women, meta = base(tmp_path, name)
        numbers = [int(files[face.tobytes()].split("_")[1]) for face in faces]
        assert women.tolist() == [number % 2 for number in numbers]
        assert meta is None and women.sum() == len(women) / 2
        person[name] = set(numbers)
    assert not person["18"] & person["test12"]


def test_folder(tmp_path, run):
    folder = tmp_path / "mine"
    for number in range(20):
        save(folder / ("man", "woman")[number % 2] / f"{number}.png", portrait(number))
    for number in range(20, 24):
        save(folder / "woman" / "anna" / f"{number}.png", portrait(number))
    save(folder / "child" / "99.png", portrait(99))
    (folder / "man" / "notes.txt").write_text("these are my faces")
    code, out, err = run("folder", folder, "--names", "10", "test6", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert f"{folder}: 25 pictures, 24 faces (10 men, 14 women)" in out
    assert "not a picture that can be read: notes.txt" in out
    files = known(folder, sources.largest_face)
    for name in "10", "test6":
        faces, women, _ = base(tmp_path, name)
        for face, woman in zip(faces, women, strict=True):
            assert woman == (int(files[face.tobytes()][:-4]) % 2 or int(files[face.tobytes()][:-4]) >= 20)
    assert "1 groups of 2 to 4 faces" in out


def test_a_folder_s_people_and_what_is_hidden(tmp_path):
    for name in ("man/0.png", "man/anna/1.png", "man/anna/2019/2.png", "man/anna/2020/3.png", "woman/4.png",
                 "woman/.thumbs/5.png", "woman/.6.png"):
        save(tmp_path / name, portrait(0))
    found = {picture.path.name: picture.person for picture in sources.folder(tmp_path).pictures}
    assert found == {"0.png": None, "1.png": "man/anna", "2.png": "man/anna", "3.png": "man/anna", "4.png": None}
    hidden = tmp_path / ".hidden"  # the set itself may be in such a folder
    for name in "30_1_2_20170111.png", ".cache/31_1_2_20170111.png":
        save(hidden / name, portrait(0))
    assert [picture.age for picture in sources.utkface(hidden).pictures] == [30]


@pytest.mark.parametrize("text, words", [
    ('file,age,gender,race\n1.jpg,"20-29,Male,White\n2.jpg,20-29,Male,White\n', "after line 1: unexpected end"),
    ("age,gender,race,file\n20-29,Male\n", None)], ids=["stray quote", "short row"])
def test_a_damaged_table_is_named(tmp_path, text, words):
    (tmp_path / "fairface_label_train.csv").write_text(text)
    if words is None:
        assert sources.fairface(tmp_path) == sources.Listing([], {"no gender annotated": ["None"]})
        return
    with pytest.raises(Dataset.DataError, match=f"fairface_label_train.csv: not a table of .*{words}"):
        sources.fairface(tmp_path)


def test_faces_are_found_and_aligned(detector):  # noqa: F811
    picture = draw(draw(background(640, 480), (110, 110), 200), (330, 250), 150, -15)
    middle, largest = sources.middle_face(picture), sources.largest_face(picture)
    assert matching(middle, mean_face()) > 0.95 and matching(largest, mean_face()) > 0.95
    assert np.abs(middle.astype(int) - largest).max() > 5
    np.testing.assert_array_equal(middle, photo.align(picture.convert("L"), photo.find(picture)[1].landmarks))
    assert sources.largest_face(background(300, 200)) is None


def test_a_picture_without_a_face_is_skipped(tmp_path, run, detector):  # noqa: F811
    for number in range(8):
        save(tmp_path / "mine" / ("man", "woman")[number % 2] / f"{number}.png", portrait(number))
    background(120, 90).save(tmp_path / "mine" / "man" / "empty.png")
    code, out, _ = run("folder", tmp_path / "mine", "--names", "4", "test4", "--out", tmp_path)
    assert code == 0 and "skipped      1  no face found: empty.png" in out


def test_without_the_extra_pictures_that_are_not_aligned_are_refused(tmp_path, run, monkeypatch):
    monkeypatch.setattr(photo, "installed", lambda: False)
    for number in range(8):
        save(tmp_path / "mine" / ("man", "woman")[number % 2] / f"{number}.png", portrait(number, 90))
    code, _, err = run("folder", tmp_path / "mine", "--names", "4", "--out", tmp_path / "out")
    assert code == 2
    assert err == 'build.py: these pictures are not aligned: finding their faces takes pip install -e ".[photo]"\n'
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.skipif(not REAL_FACES.is_dir(), reason="no real faces beside the project")
def test_utkface_on_its_own_chips(tmp_path, run):
    """The faces are byte for byte those of the database that was made of these chips."""
    code, out, err = run("utkface", REAL_FACES / "chips", "--names", "80", "test30", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert ": 119 pictures, 119 faces (64 men, 55 women)" in out
    annotated = collections.defaultdict(set)  # some photographs are in it twice
    for name in "16k", "test4k":
        data, gender, meta = Dataset.database_files(REAL_FACES / f"data_{name}.bin")
        with open(meta, newline="") as file:
            rows = [tuple(row.values()) for row in csv.DictReader(file)]
        for face, woman, row in zip(Dataset.read_faces(data), Dataset.read_labels(gender)[:, 1], rows, strict=True):
            annotated[face.tobytes()].add((woman, row))
    matched = 0
    for name in "80", "test30":
        for face, woman, meta in zip(*base(tmp_path, name), strict=True):
            if face.tobytes() in annotated:
                assert (woman, meta) in annotated[face.tobytes()]
                matched += 1
    assert matched > 90


# One side or the other


def test_near_duplicates_are_those_that_correlate():
    """Against NumPy's corrcoef of the 24x24 block means, of each face and of its mirror image."""
    random = np.random.default_rng(0)
    faces = np.stack([portrait(number).ravel() for number in range(30)])
    faces[3] = np.clip(faces[2] * 0.7 + random.normal(20, 4, Dataset.DIM), 0, 255)
    faces[9] = faces[5].reshape(SIDE, SIDE)[:, ::-1].ravel()
    faces[20] = faces[10]
    faces[25] = faces[10]
    faces[28:] = 77  # nothing to compare
    fine = faces.reshape(30, 24, 2, 24, 2).mean((2, 4))
    expected = []
    for i in range(28):
        for j in range(i + 1, 28):
            both = [np.corrcoef(fine[i].ravel(), other.ravel())[0, 1] for other in (fine[j], fine[j][:, ::-1])]
            if max(both) >= 0.95:
                expected.append([i, j])
    assert expected == [[2, 3], [5, 9], [10, 20], [10, 25], [20, 25]]
    for block in (7, 4096):
        assert sorted(np.concatenate([*build.near_duplicates(faces, block)]).tolist()) == expected


def test_groups_join_near_duplicates_and_people():
    people = ["ann", None, None, "bob", "ann", None, "bob", None]
    group, pairs = build.groups([np.array([[1, 2], [2, 3]]), np.empty((0, 2), int), np.array([[5, 7]])], people)
    assert pairs == 3
    together = {frozenset(np.flatnonzero(group == one).tolist()) for one in group}
    assert together == {frozenset({0, 4}), frozenset({1, 2, 3, 6}), frozenset({5, 7})}


@pytest.mark.parametrize("share", [0.5, 0.2, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_choice_keeps_groups_apart_and_sexes_even(share, seed):
    random = np.random.default_rng([seed, int(100 * share)])
    labels = (random.random(3000) < share).astype(int)
    group = random.integers(0, 2000, 3000)
    bases = build.choose(("100", "1k", "test50", "test600"), labels, group, seed)
    assert {name: len(set(rows.tolist())) for name, rows in bases.items()} == {
        "100": 100, "1k": 1000, "test50": 50, "test600": 600}
    assert not set(group[bases["1k"]]) & set(group[bases["test600"]])
    assert bases["100"].tolist() == bases["1k"][:100].tolist()
    assert bases["test50"].tolist() == bases["test600"][:50].tolist()
    scarce = min(np.bincount(labels, minlength=2))
    for name, rows in bases.items():
        women = labels[rows].sum()
        if len(rows) <= 100 or scarce > 900:
            assert women == len(rows) // 2
        else:  # each side takes its share of those of whom there are too few
            few = min(women, len(rows) - women)
            assert abs(few - min(scarce * len(rows) / 1600, len(rows) / 2)) <= 0.1 * len(rows)


def test_the_test_base_is_drawn_from_everywhere():
    """The files of many sets are sorted, by age for one."""
    chosen = build.choose(("100", "test100"), np.arange(400) % 2, np.arange(400), 0)
    assert 150 < chosen["test100"].mean() < 250


def test_a_picture_changed_without_changing_its_size_is_another(tmp_path):
    path = tmp_path / "face.png"
    path.write_bytes(b"one")
    listing = sources.Listing([sources.Picture(path, 0, None)], {})
    before = build.fingerprint(listing)
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert build.fingerprint(listing) != before


def test_choice_depends_on_the_seed_alone():
    labels, group = np.arange(200) % 2, np.arange(200)
    one, again, other = (build.choose(("50", "test20"), labels, group, seed) for seed in (1, 1, 2))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
        assert one[name].tolist() != other[name].tolist()


def test_a_large_group_is_cut_where_small_ones_do_not_suffice():
    labels, group = np.arange(40) % 2, np.arange(40) // 20
    bases = build.choose(("10", "test10"), labels, group, 0)
    assert not set(group[bases["10"]]) & set(group[bases["test10"]])
    with pytest.raises(Dataset.UserError, match="2 groups of near-duplicates and people that stay on one side"):
        build.choose(("30", "test10"), labels, group, 0)


@pytest.mark.parametrize("count, names", [
    (999, ()), (1000, ("1k",)), (10_999, ("1k", "10k")), (11_000, ("1k", "test10k")), (13_233, ("1k", "test10k")),
    (23_705, ("1k", "10k", "test10k")), (97_698, ("1k", "10k", "test10k")),
    (202_599, ("1k", "10k", "100k", "test10k"))])
def test_default_names_are_those_that_fit(count, names):
    assert build.names_that_fit(count) == names


def test_groups_are_named_by_their_first_rows_whatever_the_order_of_the_pairs():
    random = np.random.default_rng(0)
    for count in 1, 50, 400:
        pairs = random.integers(0, count, (count // 2, 2))
        expected = list(range(count))  # the plain way: join one pair after another
        for one, other in pairs.tolist():
            low, high = sorted((expected[one], expected[other]))
            expected = [low if name == high else name for name in expected]
        assert build.groups(np.array_split(pairs, 3), [None] * count)[0].tolist() == expected
        chain = np.stack([np.arange(count - 1), np.arange(1, count)], 1)
        assert not build.groups([random.permutation(chain)], [None] * count)[0].any()


def test_near_duplicates_stay_on_one_side_whatever_the_seed(utkface, tmp_path, run):
    for number in range(10):  # brighter, mirrored, named as another's
        face = np.clip(portrait(number, 200)[:, ::-1] * 0.9 + 20, 0, 255).astype(np.uint8)
        save(utkface / f"50_{number % 2}_0_2018{number:04}.jpg.chip.jpg", face)
    for seed in range(3):
        code, out, _ = run("utkface", utkface, "--names", "20", "test10", "--out", tmp_path / str(seed), "--seed", seed)
        assert code == 0 and out.count("10 pairs of near-duplicates") == 1
        train, test = (base(tmp_path / str(seed), name)[0] for name in ("20", "test10"))
        both, *parts = (sum(map(len, build.near_duplicates(some))) for some in (
            np.concatenate([train, test]), train, test))
        assert both == sum(parts)


# Interruptions, and what lies there already


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def many(folder, count):
    for number in range(count):
        save(folder / ("man", "woman")[number % 2] / f"{number}.png", portrait(number))
    return folder


def test_interrupted_and_gone_on_ends_as_if_never_interrupted(tmp_path, run, monkeypatch):
    command = "folder", many(tmp_path / "mine", 150), "--names", "60", "test30", "--out"
    assert run(*command, tmp_path / "whole")[0] == 0
    made, make_part = [], build.make_part

    def interrupted(path, pictures):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(path.name)
        return make_part(path, pictures)

    monkeypatch.setattr(build, "make_part", interrupted)
    code, _, err = run(*command, tmp_path / "out")
    assert (code, err) == (130, "interrupted; the same command goes on\n")
    assert contents(tmp_path / "out") == {}
    monkeypatch.setattr(build, "make_part", lambda path, pictures: made.append(path.name) or make_part(path, pictures))
    code, out, _ = run(*command, tmp_path / "out")
    assert code == 0 and out.startswith("going on: 64 of 150 pictures were read before\n")
    assert made == [f"part_{number:06}.npz" for number in range(5)]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_interrupted_between_two_bases_goes_on(tmp_path, run, monkeypatch):
    command = "folder", many(tmp_path / "mine", 40), "--names", "20", "test10", "--out"
    assert run(*command, tmp_path / "whole")[0] == 0
    interrupt_before_the_test_base(*command, tmp_path / "out", run=run, monkeypatch=monkeypatch)
    assert contents(tmp_path / "out").keys() == {"gender_20.bin", "data_20.bin"}
    assert run(*command, tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def interrupt_before_the_test_base(*command, run, monkeypatch):
    write_all = Dataset.write_all

    def interrupted(base):
        if any(path.name == "data_test10.bin" for path in base):
            raise KeyboardInterrupt
        write_all(base)

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "write_all", interrupted)
        assert run(*command)[0] == 130


@pytest.mark.parametrize("name", ["gender_20.bin", "data_20.bin", "meta_20.csv", "gender_test10.bin"])
def test_what_came_since_the_interruption_is_not_written_over(tmp_path, run, monkeypatch, name):
    command = "folder", many(tmp_path / "mine", 40), "--names", "20", "test10", "--out", tmp_path / "out"
    interrupt_before_the_test_base(*command, run=run, monkeypatch=monkeypatch)
    theirs = tmp_path / "out" / name
    theirs.write_bytes(b"theirs")
    before = contents(tmp_path / "out")
    code, _, err = run(*command)
    assert code == 2 and f"{theirs}: exists already" in err
    assert contents(tmp_path / "out") == before
    theirs.unlink()
    assert run(*command)[0] == 0


def test_a_base_that_cannot_be_written_leaves_no_file_of_it(tmp_path, run):
    command = "folder", many(tmp_path / "mine", 40), "--names", "20", "test10", "--out", tmp_path / "out"
    write = Path.write_bytes
    with pytest.MonkeyPatch.context() as patch:
        def full(path, content):
            if len(content) == 20 * Dataset.DIM:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, content)
        patch.setattr(Path, "write_bytes", full)
        code, _, err = run(*command)
    assert code == 2 and "data_20.bin: cannot be written (No space left on device)" in err
    assert contents(tmp_path / "out") == {}
    assert run(*command, "--seed", 1)[0] == 0


def test_parts_of_pictures_that_have_changed_are_read_anew(tmp_path, run):
    folder = many(tmp_path / "mine", 40)
    assert run("folder", folder, "--names", "38", "test10", "--out", tmp_path / "out")[0] == 2
    (tmp_path / "out").mkdir(exist_ok=True)
    listing = sources.folder(folder)
    key = build.fingerprint(listing)
    work = build.working_folder(build.Options("folder", folder, out=tmp_path / "out"), key)
    build.begin(work, key)
    build.make_part(build.part(work, 0), listing.pictures[:32])
    save(folder / "man" / "0.png", portrait(500))
    code, out, _ = run("folder", folder, "--names", "20", "test10", "--out", tmp_path / "out")
    assert code == 0 and "going on" not in out


@pytest.mark.parametrize("spoil", [lambda part: part.write_bytes(b""), lambda part: part.write_bytes(b"junk"),
                                   lambda part: np.savez(part, faces=np.zeros(3)), lambda part: part.unlink(),
                                   lambda part: np.savez(part, faces=np.zeros((3, 2304)), reasons=[""] * 3)])
def test_a_damaged_or_missing_part_is_read_anew(tmp_path, spoil):
    listing = sources.folder(many(tmp_path / "mine", 40))
    work = tmp_path / "work"
    whole = build.read_faces(listing.pictures, work)
    original = build.run

    def spoiled(todo):
        yield from original(todo)
        spoil(build.part(work, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "run", spoiled)
        faces, reasons = build.read_faces(listing.pictures, work)
    np.testing.assert_array_equal(faces, whole[0])
    assert reasons == whole[1]


def test_pictures_of_one_grey_level_are_no_faces(tmp_path, run):
    folder = many(tmp_path / "mine", 40)
    for number, grey in enumerate((0, 128, 128, 255)):
        save(folder / "man" / f"blank{number}.png", np.full((48, 48), grey, np.uint8))
    code, out, _ = run("folder", folder, "--names", "20", "test10", "--out", tmp_path / "out")
    assert code == 0 and "skipped      4  of one grey level: blank0.png, blank1.png, blank2.png, ..." in out
    assert "no near-duplicates" in out


def test_parts_of_other_framings_are_not_gone_on_with(tmp_path, monkeypatch):
    listing = sources.folder(many(tmp_path / "mine", 4))
    key = build.fingerprint(listing)
    assert build.fingerprint(listing) == key
    monkeypatch.setattr(build, "CHUNK", 16)
    assert build.fingerprint(listing) != key


def test_why_pictures_are_not_usable_is_said_where_too_few_are(tmp_path, run):
    for folder in "man", "woman":
        (tmp_path / "mine" / folder).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "mine" / folder / f"{number}.png").write_bytes(b"no picture")
    code, _, err = run("folder", tmp_path / "mine", "--names", "2", "test2", "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1
    assert err.endswith("0 usable pictures (0 men, 0 women), 2 test2 take 4; skipped 6: not a picture that can be read "
                        "(0.png, ...)\n")


def test_two_sets_built_at_once_do_not_mix(tmp_path, run, monkeypatch):
    names = {"one": "20", "other": "test20"}
    for number in range(80):
        save(tmp_path / ("one", "other")[number % 2] / ("man", "woman")[number // 2 % 2] / f"{number}.png",
             portrait(number))

    def command(folder, out):
        return run("folder", tmp_path / folder, "--names", names[folder], "--out", tmp_path / out)

    for folder in names:
        assert command(folder, "apart")[0] == 0
    read, begun = build.run, []

    def meanwhile(todo):
        yield from read(todo)
        if not begun:
            begun.append(True)
            assert command("other", "together")[0] == 0

    monkeypatch.setattr(build, "run", meanwhile)
    assert command("one", "together")[0] == 0
    assert contents(tmp_path / "together") == contents(tmp_path / "apart")


def test_all_cores_give_what_one_gives(tmp_path, run, monkeypatch):
    command = "folder", many(tmp_path / "mine", 270), "--names", "100", "test50", "--out"
    assert run(*command, tmp_path / "many")[0] == 0
    monkeypatch.setattr(build, "FEW", 1000)
    code, out, _ = run(*command, tmp_path / "one")
    assert code == 0 and " of 270 pictures " in out and " pictures/s " in out
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_base_that_exists_is_not_written_over(utkface, tmp_path, run):
    mine = tmp_path / "data_10.bin"
    mine.write_bytes(b"mine")
    code, out, err = run("utkface", utkface, "--names", "10", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"build.py: {mine}: exists already; move it away, or choose other --names or another --out\n"
    for name in "gender_20.bin", "meta_20.csv":
        (tmp_path / name).write_bytes(b"mine")
        assert f"{name}: exists already" in run("utkface", utkface, "--names", "20", "--out", tmp_path)[2]
        (tmp_path / name).unlink()
    assert mine.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["UTKFace", "data_10.bin"]


# Mistakes


MISTAKES = {
    "unknown source": (["vggface", "."], "invalid choice: 'vggface'"),
    "no folder": (["utkface", "nowhere"], "nowhere: no such folder"),
    "name that is no size": (["utkface", ".", "--names", "10m"], "--names 10m: expected a size such as 1k"),
    "name of a number too long": (["utkface", ".", "--names", "9" * 5000], "expected a size such as 1k"),
    "name of none": (["utkface", ".", "--names", "0k"], "--names 0k: expected a size"),
    "no utkface": (["utkface", "."], ".: no picture named age_gender_ethnicity_date.jpg"),
    "no fairface": (["fairface", "."], ".: neither fairface_label_train.csv nor fairface_label_val.csv"),
    "no celeba": (["celeba", "."], ".: no list_attr_celeba.txt in it"),
    "no lfw": (["lfw", "."], ".: no male_names.txt in it"),
    "no folder of men": (["folder", "."], ".: expected pictures in its subfolders man and woman"),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake(in_folder, run, arguments, words):
    code, out, err = run(*arguments, "--out", "out")
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1
    assert list(in_folder.iterdir()) == []


@pytest.mark.parametrize("names, words", [
    ([], "too few for 1k 10k 100k test10k; name smaller ones, such as --names 32 test8"),
    (["--names", "30", "test11"], "40 usable pictures (24 men, 16 women), 30 test11 take 41; name smaller ones")])
def test_a_set_too_small_names_what_is_available(utkface, tmp_path, run, names, words):
    code, out, err = run("utkface", utkface, *names, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, words", [
    (b"file,age\ntrain/1.jpg,3-9\n", "expected the columns age,file,gender,race, found file,age"),
    (b"", "found nothing"), (b"\xff\xfe\x00", "not a text file")])
def test_labels_that_are_none(tmp_path, run, content, words):
    (tmp_path / "fairface_label_train.csv").write_bytes(content)
    code, _, err = run("fairface", tmp_path, "--out", tmp_path / "out")
    assert code == 2 and "fairface_label_train.csv" in err and words in err and err.count("\n") == 1


def test_celeba_without_the_attribute(tmp_path, run):
    (tmp_path / "img_align_celeba").mkdir()
    for text in "", "2\n", "1\nBald Young\n000001.jpg 1 1\n":
        (tmp_path / "list_attr_celeba.txt").write_text(text)
        code, _, err = run("celeba", tmp_path, "--out", tmp_path / "out")
        assert code == 2 and "list_attr_celeba.txt: no attribute Male" in err


def test_large_groups_are_learned_where_small_ones_suffice_to_test():
    labels, group = np.arange(400) % 2, np.r_[np.zeros(50, int), np.arange(1, 351)]
    for seed in range(8):
        assert 0 not in group[build.choose(("100", "test100"), labels, group, seed)["test100"]]


def test_the_seed_of_a_build_chooses_the_faces(tmp_path, monkeypatch):
    many(tmp_path / "mine", 40)
    monkeypatch.setattr(build.sys, "argv", ["build.py"])
    for seed in "0", "1":
        assert Console.run(build.main, ["folder", str(tmp_path / "mine"), "--names", "20", "test10", "--seed", seed,
                                        "--out", str(tmp_path / seed)]) == 0
    assert (tmp_path / "0/data_20.bin").read_bytes() != (tmp_path / "1/data_20.bin").read_bytes()


def test_fairfaces_annotations_are_the_databases():
    assert {race: Dataset.ETHNICITIES[code] for race, code in sources.FAIRFACE_RACES.items()} == {
        "White": "White", "Black": "Black", "East Asian": "Asian", "Southeast Asian": "Asian", "Indian": "Indian",
        "Latino_Hispanic": "other", "Middle Eastern": "other"}
    for band, age in sources.FAIRFACE_AGES.items():
        low, high = band.split("-") if "-" in band else (70, 70)
        assert int(low) <= age <= int(high)


def test_utkfaces_pictures_that_are_no_chips_are_searched(monkeypatch):
    monkeypatch.setattr(photo, "installed", lambda: True)
    monkeypatch.setattr(photo, "find", lambda picture: [])
    assert sources.utkface_chip(Image.new("RGB", (90, 60))) is None
    assert sources.utkface_chip(Image.new("RGB", (60, 60))).shape == (48, 48)
