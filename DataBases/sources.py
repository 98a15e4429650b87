"""How public face sets lie on disk: which pictures they hold, what is annotated, and how each is framed.

A source is a function of a folder that gives a Listing; it opens no picture. A framing is a function of a picture that
gives its face in the framing of the databases, or None where it finds none.
"""
import collections
import csv
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

import Dataset
from DataBases import photo

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
MAN, WOMAN = 0, 1


class Picture(NamedTuple):
    """A picture and what is annotated: age in years and ethnicity as in meta_*.csv, person by name; None if unknown."""
    path: Path
    label: int
    framing: object
    age: int | None = None
    ethnicity: int | None = None
    person: str | None = None


class Listing(NamedTuple):
    """pictures  list of Picture, in an order that the names determine;  skipped  {reason: [name, ...]}"""
    pictures: list
    skipped: dict


# Framings: a PIL picture to [48, 48] uint8, or None

def largest_face(picture):
    """The largest face, found and aligned; a picture of 48x48 pixels as it is."""
    return _found(picture, lambda faces: faces[0])


def middle_face(picture):
    """The face nearest to the middle, found and aligned; a picture of 48x48 pixels as it is."""
    def from_middle(face):
        x, y, width, height = face.box
        return abs(x + width / 2 - picture.width / 2) + abs(y + height / 2 - picture.height / 2)
    return _found(picture, lambda faces: min(faces, key=from_middle))


def _found(picture, choose):
    if picture.size == (Dataset.SIDE, Dataset.SIDE):
        return np.array(picture.convert("L"))
    if not photo.installed():
        raise Dataset.UserError(f"these pictures are not aligned: finding their faces takes {photo.INSTALL}")
    faces = photo.find(picture)
    return photo.align(picture.convert("L"), choose(faces).landmarks) if faces else None


def utkface_chip(picture):
    """UTKFace's aligned chips are square and framed as the databases are; its other pictures are searched."""
    return Dataset.middle_square(picture)[0] if picture.width == picture.height else largest_face(picture)


def fairface_chip(picture):
    """FairFace is aligned by dlib's get_face_chip, with padding 0.25 (224x224 pixels) or 1.25 (448x448).

    The databases are framed as that function does with padding 0.2: a chip of padding p shows 1 + 2 p faces.
    """
    padding = 0.25 if picture.width < 448 else 1.25
    share = (1 + 2 * 0.2) / (1 + 2 * padding)
    width, height = np.array(picture.size) * share
    frame = np.array([[width, 0, (picture.width - width) / 2], [0, height, (picture.height - height) / 2]])
    return photo.cut(picture.convert("L"), frame)


# The mean landmarks of upright faces in CelebA's list_landmarks_align_celeba.txt; pixels of 178x218.
CELEBA_LANDMARKS = np.array([[70, 111], [107, 111], [88.5, 136], [72, 153], [105, 153]])


def celeba_chip(picture):
    """img_align_celeba has the eyes of every face at the same place."""
    return photo.align(picture.convert("L"), CELEBA_LANDMARKS * picture.width / 178)


# Sources

def utkface(folder):
    """age_gender_ethnicity_date.jpg, anywhere in the folder; ethnicity is missing in some names."""
    pictures, skipped = [], collections.defaultdict(list)
    for path in _pictures(folder):
        match = re.match(r"(\d{1,3})_([01])_(?:([0-4])_)?\d+\D", path.name)
        if match:
            age, label, ethnicity = (value and int(value) for value in match.groups())
            pictures.append(Picture(path, label, utkface_chip, age, ethnicity))
        else:
            skipped["name without age_gender_ethnicity_date"].append(path.name)
    if not pictures:
        raise Dataset.DataError(f"{folder}: no picture named age_gender_ethnicity_date.jpg; expected UTKFace")
    return Listing(pictures, skipped)


# Bands of years become their middle, as the databases' meta_*.csv holds years.
FAIRFACE_AGES = {"0-2": 1, "3-9": 6, "10-19": 14, "20-29": 24, "30-39": 34, "40-49": 44, "50-59": 54, "60-69": 64,
                 "more than 70": 70}
FAIRFACE_RACES = {"White": 0, "Black": 1, "East Asian": 2, "Southeast Asian": 2, "Indian": 3, "Latino_Hispanic": 4,
                  "Middle Eastern": 4}


def fairface(folder):
    """train/ and val/, and fairface_label_train.csv and fairface_label_val.csv (file,age,gender,race,...)."""
    tables = [path for part in ("train", "val") if (path := Path(folder) / f"fairface_label_{part}.csv").is_file()]
    if not tables:
        raise Dataset.DataError(f"{folder}: neither fairface_label_train.csv nor fairface_label_val.csv; expected "
                                "FairFace's labels beside its folders train and val")
    pictures, skipped = [], collections.defaultdict(list)
    for table in tables:
        for row in _rows(table, {"file", "age", "gender", "race"}):
            if row["gender"] in ("Male", "Female") and row["file"]:
                pictures.append(Picture(Path(folder) / row["file"], int(row["gender"] == "Female"), fairface_chip,
                                        FAIRFACE_AGES.get(row["age"]), FAIRFACE_RACES.get(row["race"])))
            else:
                skipped["no gender annotated"].append(str(row["file"]))
    return Listing(pictures, skipped)


def celeba(folder):
    """img_align_celeba/ and list_attr_celeba.txt, in the folder or in its Img/ and Anno/; identity_CelebA.txt too."""
    table = _place(folder, "list_attr_celeba.txt")
    people = _place(folder, "identity_CelebA.txt", needed=False)
    person = dict(line.split() for line in _lines(people) if len(line.split()) == 2) if people else {}
    images = _place(folder, "img_align_celeba")
    _, names, *lines = [*_lines(table), "", ""]
    if "Male" not in names.split():
        raise Dataset.DataError(f"{table}: no attribute Male in its second line; expected CelebA's list of attributes")
    column, pictures, skipped = names.split().index("Male") + 1, [], collections.defaultdict(list)
    for line in filter(str.strip, lines):
        name, *_ = values = line.split()
        if len(values) > column and values[column] in ("1", "-1"):
            pictures.append(Picture(images / name, MAN if values[column] == "1" else WOMAN, celeba_chip,
                                    person=person.get(name)))
        else:
            skipped["no attribute Male"].append(name)
    return Listing(pictures, skipped)


def lfw(folder):
    """A folder a person, and male_names.txt and female_names.txt: a picture or a person's name a line."""
    label = collections.defaultdict(set)
    for sex, name in enumerate(["male_names.txt", "female_names.txt"]):
        for line in _lines(_place(folder, name)):
            label[line.strip().removesuffix(".jpg")].add(sex)
    pictures, skipped = [], collections.defaultdict(list)
    for path in _pictures(folder):
        person = path.parent.name
        sexes = label.get(path.stem) or label.get(person, set())
        if len(sexes) == 1:
            pictures.append(Picture(path, *sexes, middle_face, person=person))
        else:
            skipped["in both lists of names" if sexes else "in no list of names"].append(path.name)
    return Listing(pictures, skipped)


def folder(folder):
    """man/ and woman/ (or male, female, ...); a folder within those is one person's."""
    pictures = []
    for place in sorted(path for path in _existing(folder).iterdir() if path.is_dir()):
        try:
            label = Dataset.parse_label(place.name)
        except Dataset.UserError:
            continue
        for path in sorted(path for path in place.rglob("*") if path.is_file() and not _hidden(path, place)):
            person = f"{place.name}/{path.relative_to(place).parts[0]}" if path.parent != place else None
            pictures.append(Picture(path, label, largest_face, person=person))
    if {picture.label for picture in pictures} != {MAN, WOMAN}:
        raise Dataset.DataError(f"{folder}: expected pictures in its subfolders man and woman")
    return Listing(pictures, {})


SOURCES = {"utkface": utkface, "fairface": fairface, "celeba": celeba, "lfw": lfw, "folder": folder}


def _existing(folder):
    if not Path(folder).is_dir():
        raise Dataset.DataError(f"{folder}: no such folder")
    return Path(folder)


def _pictures(folder):
    return sorted(path for path in _existing(folder).rglob("*")
                  if path.suffix.lower() in ENDINGS and not _hidden(path, folder))


def _hidden(path, folder):
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _place(folder, name, needed=True):
    """The file or folder `name`, where the sets have it."""
    places = [_existing(folder) / place / name for place in ("", "Anno", "Img")]
    found = [path for path in places if path.exists()]
    if needed and not found:
        raise Dataset.DataError(f"{folder}: no {name} in it")
    return found[0] if found else None


def _lines(path):
    Dataset.file_size(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise Dataset.DataError(f"{path}: not a text file") from None


def _rows(path, columns):
    rows = csv.DictReader(_lines(path), strict=True)
    try:
        if not columns <= set(rows.fieldnames or ()):
            raise Dataset.DataError(f"{path}: expected the columns {','.join(sorted(columns))}, found "
                                    f"{','.join(rows.fieldnames or ['nothing'])}")
        return list(rows)
    except csv.Error as error:
        raise Dataset.DataError(f"{path}: not a table of {','.join(sorted(columns))}; after line {rows.line_num}: "
                                f"{error}") from None
