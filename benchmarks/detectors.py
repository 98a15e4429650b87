"""What finds faces: mtcnn, dlib's and OpenCV's detectors on the same pictures, weights from their wheels alone.

    pip install mtcnn dlib-bin "opencv-python-headless<5"
    python benchmarks/detectors.py --pictures path/to/photos path/to/chips --sheets detectors
    python benchmarks/detectors.py --template path/to/data_16k.bin path/to/data_aaf.bin path/to/data_scut.bin

Each picture shows one face that takes most of it. The first command prints a line a detector and folder: pictures with
a box; how many of those are wrong, the largest box being under 0.4 of the picture's shorter side; boxes too many; and
seconds a picture. `detectors_<detector>_<folder>.png` shows every box. The second measures where mtcnn sees the
landmarks of faces that are framed already: DataBases/photo.py's TEMPLATE.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
import statistics
import time
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw

import Dataset
from DataBases import photo

TILE, COLUMNS = 150, 12
SMALLEST = 0.4  # of the shorter side: the least that a box of these faces can have


@dataclasses.dataclass(frozen=True)
class Options:
    pictures: Annotated[tuple, dict(help="folders of pictures of one face each", nargs="+", metavar="DIR")] = ()
    template: Annotated[tuple, dict(help="data_*.bin of faces framed alike", nargs="+", metavar="DB")] = ()
    faces: Annotated[int, dict(help="faces of each database to measure", low=1)] = 400
    sheets: Annotated[str | None, dict(help="write pictures with every box: <sheets>_<detector>_<folder>.png")] = None


def mtcnn():
    """photo.find, and mtcnn alone, once and as it comes."""
    yield "mtcnn", lambda picture: [one.box for one in photo.look(picture, 0.0, 10**6)]
    yield "photo.find", lambda picture: [one.box for one in photo.find(picture)]


def dlib():
    import dlib
    detect = dlib.get_frontal_face_detector()
    for enlargements in 0, 1:
        def find(picture):
            boxes = detect(np.asarray(picture.convert("RGB")), enlargements)
            return [(box.left(), box.top(), box.width(), box.height()) for box in boxes]
        yield f"dlib HOG, enlarged {enlargements} times", find


def opencv():
    import cv2
    for name in "default", "alt2":
        detect = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_{name}.xml")
        yield (f"OpenCV {cv2.__version__} Haar {name}",
               lambda picture: [tuple(box) for box in detect.detectMultiScale(np.asarray(picture.convert("L")))])


def main(argv=None):
    given = Console.parse(Options, argv, __doc__)
    options = Options(**given)
    Console.must_stand_together(given, {"sheets": "pictures", "faces": "template"})
    if not (options.template or options.pictures):
        raise Dataset.UserError("nothing to measure; name --pictures DIR ... or --template DB ...")
    if options.template and not photo.installed():
        raise Dataset.UserError(f"--template needs mtcnn: {photo.INSTALL}")
    for database in options.template:
        print_landmarks(database, options.faces)
    if options.pictures:
        print("| detector | folder | found | of these wrong | boxes too many | s a picture |")
        print("|---|---|---|---|---|---|")
    for folder in map(Path, options.pictures):
        if not folder.is_dir() or not any(folder.iterdir()):
            raise Dataset.UserError(f"{folder}: expected a folder of pictures")
        for library in mtcnn, dlib, opencv:
            try:
                for name, find in library():
                    print_detection(name, find, folder, options.sheets)
            except (ImportError, AttributeError) as error:
                print(f"| {library.__name__} | {folder.name} | - | {error} | | |", flush=True)


def print_detection(name, find, folder, sheets):
    pictures = [Dataset.read_picture(path) for path in sorted(folder.iterdir())]
    find(pictures[0])
    boxes, seconds = [], []
    for picture in pictures:
        started = time.perf_counter()
        boxes.append(find(picture))
        seconds.append(time.perf_counter() - started)
    found = [number for number, some in enumerate(boxes) if some]
    wrong = sum(max(width * height for *_, width, height in boxes[number]) ** 0.5
                < SMALLEST * min(pictures[number].size) for number in found)
    print(f"| {name} | {folder.name} | {len(found)} of {len(pictures)} | {wrong} | "
          f"{sum(map(len, boxes)) - len(found)} | {statistics.mean(seconds):.3f} |", flush=True)
    if sheets:
        path = f"{sheets}_{name.replace(' ', '_')}_{folder.name}.png"
        Dataset.write_whole(path, Dataset.to_png(sheet(pictures, boxes)))


def sheet(pictures, boxes):
    """All pictures, reduced, with their boxes: a PIL picture."""
    shown = Image.new("RGB", (COLUMNS * TILE, -(-len(pictures) // COLUMNS) * TILE), "white")
    for number, (picture, some) in enumerate(zip(pictures, boxes)):
        view = picture.convert("RGB")
        draw = ImageDraw.Draw(view)
        for x, y, width, height in some:
            draw.rectangle((x, y, x + width, y + height), outline="red", width=max(2, view.width // 60))
        view.thumbnail((TILE, TILE))
        shown.paste(view, (number % COLUMNS * TILE, number // COLUMNS * TILE))
    return shown


def print_landmarks(database, count):
    """Where mtcnn sees the landmarks of faces enlarged to 192x192, in sides of the face: mean and deviation."""
    faces = Dataset.read_faces(database)
    rows = np.random.default_rng(0).choice(len(faces), min(count, len(faces)), replace=False)
    seen = []
    for row in rows:
        face = Image.fromarray(faces[row].reshape(Dataset.SIDE, Dataset.SIDE))
        found = photo.look(face.resize((192, 192), Image.Resampling.LANCZOS), 0.0, 192)
        if found:
            seen.append(max(found, key=lambda one: one.box[2] * one.box[3]).landmarks / 192)
    print(f"{database}: {len(seen)} of {len(rows)} found")
    if not seen:
        raise Dataset.UserError(f"{database}: mtcnn finds no face in it; choose another")
    for name, mean, deviation in zip(photo.LANDMARKS, np.mean(seen, 0), np.std(seen, 0)):
        print(f"{name:12} x {mean[0]:.3f} +- {deviation[0]:.3f}, y {mean[1]:.3f} +- {deviation[1]:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(Console.run(main))
