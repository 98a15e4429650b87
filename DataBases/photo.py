"""Any photo: find its faces and bring each to 48x48 grey, framed as the databases are.

mtcnn (Zhang et al. 2016, the extra `photo`) finds boxes and five landmarks; a similarity transform (rotation, one
scale, shift) then lays the landmarks on TEMPLATE as closely as it can (Umeyama 1991).
"""
import functools
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

import Dataset

# Where mtcnn sees the landmarks of faces whose outer eye corners lie at 30 % of the height, 22 % and 76 % of the
# width: the mean of 1,172 faces of UTKFace, All-Age-Faces and SCUT-FBP5500 (benchmarks/RESULTS.md, "Any photo").
# [5, 2], x and y in sides of the face: the eye, then the mouth corner, at the picture's left come first.
LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
TEMPLATE = np.array([[0.300, 0.291], [0.685, 0.290], [0.489, 0.522], [0.325, 0.694], [0.657, 0.694]])

LOOKS = ((0.0, 1024), (0.5, 512))  # border around the photo in longer sides, and the most pixels a side to search
VIEW = 192  # most pixels a side of a photo in a strip of faces
INSTALL = 'pip install -e ".[photo]"'


class Found(NamedTuple):
    """A face in a photo: box (x, y, width, height), whole pixels inside the photo; landmarks [5, 2] in pixels."""
    box: tuple
    landmarks: np.ndarray


class Face(NamedTuple):
    """A face to answer about, and where it is from.

    grey  [48, 48] uint8;  note  what was found in the picture, or ""
    box   (x, y, width, height) in pixels of the photo, view  the photo, reduced, with the box: a PIL picture of mode
          L, at most 192x192; both None where no face was looked for or none found
    """
    grey: np.ndarray
    note: str = ""
    box: tuple | None = None
    view: Image.Image | None = None


def read(path, every=False):
    """The face of a picture file, or with `every` each of its faces, the largest first: a list of Face.

    A .raw file and a picture of 48x48 pixels go in untouched. Where no face is found, or the extra `photo` is not
    installed, the middle square is taken and the note says so.

    Raises DataError as Dataset.read_face does.
    """
    if Path(path).suffix.lower() == ".raw":
        return [Face(*Dataset.read_face(path))]
    picture = Dataset.read_picture(path)
    if picture.size == (Dataset.SIDE, Dataset.SIDE):
        return [Face(*Dataset.middle_square(picture))]
    if not installed():
        face, note = Dataset.middle_square(picture)
        return [Face(face, f"{note}; to have its face found: {INSTALL}")]
    found = find(picture)
    if not found:
        face, note = Dataset.middle_square(picture)
        return [Face(face, f"no face found in {note}")]
    grey, several = picture.convert("L"), ""
    faces = []
    for number, one in enumerate(found if every else found[:1], 1):
        if len(found) > 1:
            several = f", {number} of {len(found)}" if every else f", the largest of {len(found)}"
        x, y, width, height = one.box
        faces.append(Face(align(grey, one.landmarks), f"face {width}x{height} at {x},{y}{several}", one.box,
                          outline(grey, one.box)))
    return faces


def installed():
    """Whether the extra `photo` is there."""
    return importlib.util.find_spec("mtcnn") is not None


@functools.cache
def _detector():
    import mtcnn
    return mtcnn.MTCNN()


def find(picture):
    """The faces in a PIL picture: a list of Found, the largest first.

    A face that fills the photo escapes mtcnn; where none is found the photo is searched again within a border of its
    own edge pixels.
    """
    for border, side in LOOKS:
        found = look(picture, border, side)
        if found:
            break
    return sorted(found, key=lambda one: one.box[2] * one.box[3], reverse=True)


def look(picture, border, side):
    """The faces that mtcnn finds in a PIL picture, in no order: a list of Found.

    The picture is reduced so far that it has, with a border of `border` of its longer side all around, at most `side`
    pixels a side.
    """
    reduced = picture.convert("RGB")
    reduced.thumbnail([round(side / (1 + 2 * border))] * 2, Image.Resampling.LANCZOS)
    scale = np.array([picture.width / reduced.width, picture.height / reduced.height])
    margin = round(border * max(reduced.size))
    pixels = np.pad(np.asarray(reduced), ((margin, margin), (margin, margin), (0, 0)), "edge")
    found = []
    for face in _detector().detect_faces(pixels):
        x, y, width, height = face["box"]
        corners = (np.array([[x, y], [x + width, y + height]]) - margin) * scale
        (left, top), (right, bottom) = np.clip(np.rint(corners).astype(int), 0, picture.size).tolist()
        landmarks = (np.array([face["keypoints"][name] for name in LANDMARKS], float) - margin) * scale
        if right > left and bottom > top and np.ptp(landmarks, axis=0).min() > 0:
            found.append(Found((left, top, right - left, bottom - top), landmarks))
    return found


def similarity(source, target):
    """The similarity transform that brings the points `source` closest to `target`: [2, 3] float64.

    source, target  [n, 2];  x of `source` comes to rest at matrix[:, :2] @ x + matrix[:, 2]
    The sum of squared distances is the least that rotation, one scale and shift allow (Umeyama 1991); no mirror.
    """
    middle, aim = source.mean(0), target.mean(0)
    left, stretch, right = np.linalg.svd((target - aim).T @ (source - middle))
    upright = np.diag([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    scale = np.trace(np.diag(stretch) @ upright) / np.sum((source - middle) ** 2)
    turn = scale * left @ upright @ right
    return np.column_stack([turn, aim - turn @ middle])


def align(grey, landmarks):
    """The face that has these landmarks, upright in the framing of the databases: [48, 48] uint8.

    grey  PIL picture of mode L;  landmarks  [5, 2] in its pixels. What lies outside the photo shows its edge.
    """
    return cut(grey, similarity(TEMPLATE, landmarks))


def cut(grey, frame):
    """A square of a photo, turned as it may be, as 48x48 grey: [48, 48] uint8.

    grey   PIL picture of mode L
    frame  [2, 3]: (x, y) in sides of the face comes from frame[:, :2] @ (x, y) + frame[:, 2] in pixels of the photo
    No pixel of the photo is passed over: the square is sampled at least as finely as the photo, then reduced.
    """
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ frame[:, :2].T + frame[:, 2]
    low, high = np.floor(corners.min(0)).astype(int) - 2, np.ceil(corners.max(0)).astype(int) + 3
    columns, rows = (np.clip(np.arange(*ends), 0, size - 1) for ends, size in zip(zip(low, high), grey.size))
    patch = Image.fromarray(np.asarray(grey)[np.ix_(rows, columns)])
    side = Dataset.SIDE * max(4, math.ceil(np.linalg.norm(frame[:, 0]) / Dataset.SIDE))
    steps = np.column_stack([frame[:, :2] / side, frame[:, 2] - low])
    fine = patch.transform((side, side), Image.Transform.AFFINE, steps.ravel(), Image.Resampling.BICUBIC)
    return np.array(fine.resize((Dataset.SIDE, Dataset.SIDE), Image.Resampling.LANCZOS))


def outline(grey, box):
    """A photo (PIL picture of mode L), reduced to at most 192x192, with the box (x, y, width, height) drawn."""
    view = grey.copy()
    view.thumbnail((VIEW, VIEW))
    scale = np.array([view.width / grey.width, view.height / grey.height] * 2)
    x, y, width, height = np.array(box) * scale
    draw = ImageDraw.Draw(view)
    for inset, level in (0, 0), (1, 255), (2, 0):
        edges = x + inset, y + inset, x + width - 1 - inset, y + height - 1 - inset
        if edges[0] <= edges[2] and edges[1] <= edges[3]:
            draw.rectangle(edges, outline=level)
    return view
