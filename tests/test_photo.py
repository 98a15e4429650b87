"""DataBases/photo.py: faces found in photos of any size, aligned, and what the scripts say of them.

The faces are the mean face of benchmarks/mean_woman.png, nobody's photograph, drawn into pictures.
"""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import Console
import Dataset
import Main_adversarial
import Main_inference
from DataBases import photo
from conftest import REAL_FACES

SIDE = Dataset.SIDE
SHEET = Path(Console.__file__).parent / "benchmarks" / "mean_woman.png"


def mean_face():
    """The 48x48 face that the strip mean_woman.png shows first, four times enlarged."""
    with Image.open(SHEET) as sheet:
        return sheet.convert("L").crop((8, 8, 200, 200)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def draw(canvas, middle, side, degrees=0.0):
    """Draw the mean face on a PIL picture: `middle` (x, y) and `side` in pixels, turned clockwise."""
    grey = canvas.convert("L")
    turn = np.radians(degrees)
    x, y = side / SIDE * np.array([np.cos(turn), np.sin(turn)])
    inverse = np.linalg.inv([[x, -y], [y, x]])
    steps = np.column_stack([inverse, np.array([SIDE / 2, SIDE / 2]) - inverse @ middle])
    options = canvas.size, Image.Transform.AFFINE, steps.ravel()
    face = mean_face().transform(*options, Image.Resampling.BICUBIC)
    inside = Image.new("L", (SIDE, SIDE), 255).transform(*options)
    grey.paste(face, mask=inside)
    return grey.convert("RGB")


def background(width, height):
    """A smooth picture without a face."""
    down, across = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    return Image.fromarray(np.rint(60 + 80 * across + 60 * down).astype(np.uint8)).convert("RGB")


def matching(face, other):
    """The correlation of two faces, their outermost pixels left out."""
    inner = (slice(4, -4), slice(4, -4))
    return np.corrcoef(np.asarray(face, float)[inner].ravel(), np.asarray(other, float)[inner].ravel())[0, 1]


# The transform


@pytest.mark.parametrize("degrees, scale, shift", [(0, 1, (0, 0)), (37, 210, (340, 120)), (-120, 0.3, (-5, 9))])
def test_similarity_finds_the_transform_that_moved_the_points(degrees, scale, shift):
    turn = np.radians(degrees)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    found = photo.similarity(photo.TEMPLATE, photo.TEMPLATE @ matrix.T + shift)
    np.testing.assert_allclose(found, np.column_stack([matrix, shift]), atol=1e-9 * scale)


def test_similarity_is_the_least_squares_solution():
    """Of scattered points: x' = a x - b y + c, y' = b x + a y + d, solved as linear equations."""
    random = np.random.default_rng(0)
    source, target = random.normal(size=(2, 5, 2))
    (x, y), one, none = source.T, np.ones(5), np.zeros(5)
    equations = np.concatenate([np.column_stack([x, -y, one, none]), np.column_stack([y, x, none, one])])
    a, b, c, d = np.linalg.lstsq(equations, target.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(photo.similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-12)


def test_similarity_never_mirrors():
    turn = photo.similarity(photo.TEMPLATE, photo.TEMPLATE * (-1, 1))[:, :2]
    assert np.linalg.det(turn) > 0


@pytest.mark.parametrize("degrees, side", [(0, 48), (0, 700), (25, 133), (-160, 60)])
def test_cut_shows_what_lies_under_each_pixel(degrees, side):
    """A smooth picture, whose grey level is known everywhere, read at the middles of the 48x48 pixels."""
    size = 900
    down, across = np.mgrid[0:size, 0:size] + 0.5
    grey = Image.fromarray(np.rint(20 + 0.15 * across + 0.08 * down).astype(np.uint8))
    turn = np.radians(degrees)
    matrix = side * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shift = np.array([450, 450]) - matrix @ (0.5, 0.5)
    rows, columns = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    x, y = np.tensordot(matrix, [columns, rows], 1) + shift[:, None, None]
    found = photo.cut(grey, np.column_stack([matrix, shift]))
    assert np.abs(found - (20 + 0.15 * x + 0.08 * y)).max() <= 1.5


def test_cut_passes_no_pixel_over():
    board = Image.fromarray((np.indices((600, 600)).sum(0) % 2 * 255).astype(np.uint8))
    found = photo.cut(board, np.array([[480.0, 0, 60], [0, 480.0, 60]]))
    assert np.abs(found - 127.5).max() <= 2


def test_cut_of_the_whole_is_the_picture_as_pillow_reduces_it():
    grey = mean_face().resize((480, 480), Image.Resampling.BICUBIC)
    found = photo.cut(grey, np.array([[480.0, 0, 0], [0, 480.0, 0]]))
    expected = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS), int)
    assert np.abs(found - expected).max() <= 1


def test_outside_the_photo_its_edge_goes_on():
    grey = Image.fromarray(np.repeat(np.array([[30, 200]], np.uint8), [50, 50], axis=1).repeat(100, axis=0))
    found = photo.cut(grey, np.array([[300.0, 0, -100], [0, 300.0, -100]]))
    np.testing.assert_array_equal(found[:, :20], 30)
    np.testing.assert_array_equal(found[:, 28:], 200)


@pytest.mark.parametrize("degrees", [0, 20, -35])
def test_aligned_landmarks_lie_where_the_framing_has_them(degrees):
    turn = np.radians(degrees)
    matrix = 300 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = photo.TEMPLATE @ matrix.T + (220, 180)
    down, across = np.mgrid[0:700, 0:700] + 0.5
    for number, (x, y) in enumerate(landmarks):
        spot = 250 * np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * 8 ** 2))
        face = photo.align(Image.fromarray(spot.astype(np.uint8)), landmarks).astype(float)
        rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
        middle = np.array([(columns * face).sum(), (rows * face).sum()]) / face.sum() / SIDE
        np.testing.assert_allclose(middle, photo.TEMPLATE[number], atol=0.005)


# Reading without a search


@pytest.mark.parametrize("name", ["face.png", "face.raw"])
def test_a_face_of_48x48_goes_in_untouched(tmp_path, name):
    face = np.asarray(mean_face())
    Dataset.write_whole(tmp_path / "face.raw", face.tobytes())
    Image.fromarray(face).save(tmp_path / "face.png")
    (read,) = photo.read(tmp_path / name)
    np.testing.assert_array_equal(read.grey, face)
    assert (read.note, read.box, read.view) == ("", None, None)


def test_without_the_extra_the_middle_square_and_the_better_way(tmp_path, monkeypatch):
    monkeypatch.setattr(photo, "installed", lambda: False)
    background(300, 200).save(tmp_path / "wide.png")
    (read,) = photo.read(tmp_path / "wide.png")
    np.testing.assert_array_equal(read.grey, Dataset.read_face(tmp_path / "wide.png")[0])
    assert read.note == ("300x200 pixels: the middle square was brought to 48x48; to have its face found: "
                         'pip install -e ".[photo]"')
    assert (read.box, read.view) == (None, None)


def test_outline_shows_the_box():
    view = np.asarray(photo.outline(Image.new("L", (400, 200), 90), (100, 50, 200, 100)))
    assert view.shape == (96, 192)
    rows, columns = np.nonzero(view == 255)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (49, 142, 25, 70)
    assert (view[40, 60:130] == 90).all()


# Searching


@pytest.fixture
def detector():
    pytest.importorskip("mtcnn", reason="the extra photo is not installed")


@pytest.mark.parametrize("size, middle, side, degrees", [
    ((640, 480), (200, 260), 200, 0), ((640, 480), (430, 230), 150, 18), ((300, 500), (140, 240), 190, -22),
    ((2400, 1800), (1500, 800), 700, 6)])
def test_a_face_is_found_and_brought_upright(tmp_path, detector, size, middle, side, degrees):
    draw(background(*size), middle, side, degrees).save(tmp_path / "photo.png")
    (read,) = photo.read(tmp_path / "photo.png")
    x, y, width, height = read.box
    assert read.note == f"face {width}x{height} at {x},{y}"
    np.testing.assert_allclose((x + width / 2, y + height / 2), middle, atol=0.15 * side)
    assert 0.5 * side < width <= height < 1.2 * side
    assert matching(read.grey, mean_face()) > 0.97
    assert max(read.view.size) == 192


def test_the_largest_face_and_with_every_each(tmp_path, detector):
    picture = draw(draw(background(640, 480), (120, 200), 120), (420, 220), 220, 8)
    picture.save(tmp_path / "two.png")
    (largest,) = photo.read(tmp_path / "two.png")
    assert largest.note.endswith(", the largest of 2")
    np.testing.assert_allclose(np.add(largest.box[:2], np.divide(largest.box[2:], 2)), (420, 220), atol=33)
    first, second = photo.read(tmp_path / "two.png", every=True)
    assert first.box == largest.box
    assert first.note.endswith(", 1 of 2") and second.note.endswith(", 2 of 2")
    np.testing.assert_allclose(np.add(second.box[:2], np.divide(second.box[2:], 2)), (120, 200), atol=18)
    np.testing.assert_array_equal(first.grey, largest.grey)
    assert matching(second.grey, mean_face()) > 0.95


def test_a_second_look_where_the_first_finds_nothing(monkeypatch):
    looks = []

    def look(picture, border, side):
        looks.append((border, side))
        return [photo.Found((0, 0, 9, 9), photo.TEMPLATE)] if border else []

    monkeypatch.setattr(photo, "look", look)
    assert len(photo.find(background(60, 60))) == 1
    assert looks == [(0.0, 1024), (0.5, 512)]


def test_boxes_and_landmarks_of_the_second_look_are_those_of_the_photo(detector):
    picture = draw(background(640, 480), (300, 240), 260)
    (first,), (second,) = photo.look(picture, 0.0, 1024), photo.look(picture, 0.5, 512)
    np.testing.assert_allclose(second.box, first.box, atol=0.1 * 260)
    np.testing.assert_allclose(second.landmarks, first.landmarks, atol=0.04 * 260)


@pytest.mark.parametrize("points, boxes", [
    (photo.TEMPLATE * 100, [(0, 0, 100, 90)]), (np.ones_like(photo.TEMPLATE), [])], ids=["a face", "points on a point"])
def test_a_box_ends_where_the_photo_ends(monkeypatch, points, boxes):
    class Detector:
        @staticmethod
        def detect_faces(pixels):
            return [{"box": [-5, -3, 140, 130], "keypoints": dict(zip(photo.LANDMARKS, points))}]
    monkeypatch.setattr(photo, "_detector", lambda: Detector)
    assert [found.box for found in photo.look(background(100, 90), 0.0, 1024)] == boxes


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (40, 24), (47, 49), (20, 900)])
def test_small_and_narrow_pictures_are_searched_without_harm(tmp_path, detector, size):
    background(*size).save(tmp_path / "small.png")
    (read,) = photo.read(tmp_path / "small.png")
    np.testing.assert_array_equal(read.grey, Dataset.read_face(tmp_path / "small.png")[0])
    assert read.note == f"no face found in {size[0]}x{size[1]} pixels: the middle square was brought to 48x48"
    assert read.box is None


# The scripts


def call(script, *arguments):
    return Console.run(script.main, [str(argument) for argument in arguments])


def test_use_says_what_was_found_and_shows_it(in_folder, checkpoint, capsys, detector):
    draw(background(640, 480), (200, 260), 200).save("photo.png")
    mean_face().save("face.png")
    assert call(Main_inference, "photo.png", "face.png", "--checkpoint", checkpoint) == 0
    out, err = capsys.readouterr()
    (found,) = photo.read("photo.png")
    assert err == f"photo.png: {found.note}\npicture saved as inference.png\n"
    assert [line.split(":")[0] for line in out.splitlines()] == ["photo.png", "face.png"]
    with Image.open("inference.png") as sheet:
        assert sheet.size == (3 * 200 + 8, 232)
        photo_shown = np.asarray(sheet)[8:200, 8:200]
    np.testing.assert_array_equal(photo_shown[24:168], np.asarray(found.view))


def test_json_names_the_box_of_each_face(in_folder, checkpoint, capsys, detector):
    draw(draw(background(640, 480), (120, 200), 120), (420, 220), 220).save("two.png")
    mean_face().save("face.png")
    assert call(Main_inference, "two.png", "face.png", "--all", "--json", "--checkpoint", checkpoint) == 0
    out, err = capsys.readouterr()
    first, second, untouched = json.loads(out)
    assert err == ""
    assert (first["path"], second["path"], untouched["path"]) == ("two.png", "two.png", "face.png")
    assert "box" not in untouched
    for answer, face in zip((first, second), photo.read("two.png", every=True)):
        assert answer["box"] == list(face.box)
        assert answer["logits"] == pytest.approx(
            Console.ask(Main_inference.Models.load(checkpoint)[0], face.grey)["logits"], abs=1e-5)


def test_mislead_takes_the_face_of_a_photo(in_folder, checkpoint, capsys, detector):
    draw(background(640, 480), (430, 230), 150, 18).save("photo.png")
    (found,) = photo.read("photo.png")
    wrong = {"man": "woman", "woman": "man"}[
        Console.ask(Main_inference.Models.load(checkpoint)[0], found.grey)["label"]]
    assert call(Main_adversarial, "photo.png", wrong, "--json", "--checkpoint", checkpoint) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and report["box"] == list(found.box)
    np.testing.assert_array_equal(np.fromfile(report["paths"]["ori"], np.uint8), found.grey.ravel())
    with Image.open(report["paths"]["strip"]) as sheet:
        assert sheet.size == (4 * 200 + 8, 232)


def test_mislead_takes_every_face_of_a_photo(in_folder, checkpoint, capsys, detector):
    draw(draw(background(640, 480), (120, 200), 120), (420, 220), 220).save("two.png")
    call(Main_adversarial, "two.png", "woman", "--all", "--json", "--steps", "20", "--checkpoint", checkpoint)
    reports = json.loads(capsys.readouterr().out)
    for number, (report, face) in enumerate(zip(reports, photo.read("two.png", every=True), strict=True), 1):
        assert report["paths"]["ori"] == f"adv_two_{number}_ori.raw" and report["box"] == list(face.box)
        np.testing.assert_array_equal(np.fromfile(report["paths"]["ori"], np.uint8), face.grey.ravel())


@pytest.mark.skipif(not REAL_FACES.is_dir(), reason="no real faces beside the project")
def test_portraits_are_found(detector):
    """Each shows one face that takes most of it: a right box is one, and large."""
    found = 0
    for path in sorted((REAL_FACES / "photos").iterdir()):
        picture = Dataset.read_picture(path)
        faces = photo.find(picture)
        if faces:
            _, _, width, height = faces[0].box
            found += (width * height) ** 0.5 > 0.4 * min(picture.size)
    assert found >= 47
