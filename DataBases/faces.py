"""A statistical model of 48x48 grey faces: fitted to any databases, sampled for faces of nobody.

A face is the mean face plus eigenfaces (Turk and Pentland 1991), each times a coefficient; the coefficients of men and
those of women are a Gaussian each. The model holds these statistics, no face. Why so and not otherwise:
benchmarks/RESULTS.md, where it is compared with richer models.
"""
import io
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

import Dataset

COMPONENTS = 400
SCALE = 127.0  # of the eigenfaces on file, which are 8-bit numbers


class Model(NamedTuple):
    """mean  [2304];  eigenfaces  [components, 2304];  means  [groups, components], of the coefficients;
    roots  [groups, components, components], the lower triangular root of their covariance. All float32, grey levels."""
    mean: np.ndarray
    eigenfaces: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    def sample(self, count, generator):
        """Faces of nobody, of every group equally many on average: [count, 2304] uint8.

        generator  numpy.random.Generator
        """
        group = generator.integers(len(self.means), size=count)
        codes = generator.standard_normal((count, len(self.eigenfaces)), np.float32)
        for number, (mean, root) in enumerate(zip(self.means, self.roots)):
            codes[group == number] = mean + codes[group == number] @ root.T
        return np.clip(np.rint(self.mean + codes @ self.eigenfaces), 0, 255).astype(np.uint8)

    def projection(self, noise):
        """What finds the likeliest face behind a picture: centre + (picture - centre) @ gain @ eigenfaces.

        The codes that it finds are the ridge regression's: least |picture - face|^2 / noise^2 plus the square of their
        distance from the middle in the Gaussian of all groups together, equally many of each (Bishop 2006, 3.3).

        noise    standard deviation of what is no face, a pixel, grey levels; 0 leaves the least squares alone
        returns  (centre [2304] grey levels, gain [2304, components]), float32
        """
        roots, eigenfaces = self.roots.astype(float), self.eigenfaces.astype(float)
        middle = self.means.mean(0)
        away = (self.means - middle).astype(float)
        covariance = np.mean(roots @ roots.transpose(0, 2, 1), 0) + away.T @ away / len(away)
        precision = eigenfaces @ eigenfaces.T + noise**2 * np.linalg.inv(covariance)
        gain = np.linalg.solve(precision, eigenfaces).T
        return self.mean + middle @ self.eigenfaces, gain.astype(np.float32)


def with_mirrors(grey):
    """Faces [N, 2304], then their mirror images: [2 N, 2304] float32."""
    mirrored = grey.reshape(-1, Dataset.SIDE, Dataset.SIDE)[:, :, ::-1].reshape(len(grey), -1)
    return np.concatenate([grey, mirrored]).astype(np.float32)


def eigenfaces(faces, count):
    """Of faces [N, 2304] float32 the mean [2304] and the `count` orthonormal directions of largest variance, the
    largest first: [count, 2304]. float32."""
    mean = faces.mean(0)
    rest = faces - mean
    _, directions = np.linalg.eigh(rest.T @ rest / len(rest))
    return mean, directions[:, ::-1][:, :count].T.astype(np.float32)


def covariance_root(rest):
    """The lower triangular root of the covariance of deviations [N, components], float32; a hundredth of a grey level's
    square is added to each variance, so that one exists."""
    rest = rest.astype(float)  # in float32 the products' error can exceed what is added
    covariance = rest.T @ rest / len(rest)
    return np.linalg.cholesky(covariance + 1e-2 * np.eye(len(covariance))).astype(np.float32)


def fit(grey, group, components=COMPONENTS):
    """The Model of faces [N, 2304] uint8 and of their mirror images; group  [N] int, 0 .. groups - 1."""
    faces = with_mirrors(grey)
    mean, directions = eigenfaces(faces, components)
    codes = (faces - mean) @ directions.T
    parts = [codes[np.concatenate([group, group]) == number] for number in range(group.max() + 1)]
    means = np.stack([part.mean(0) for part in parts])
    roots = np.stack([covariance_root(part - part.mean(0)) for part in parts])
    return Model(mean, directions, means, roots)


def save(model, path):
    """Write a Model as npz: the eigenfaces in 8 bit, each by its own scale, the roots in 16 bit."""
    most = np.abs(model.eigenfaces).max(1, keepdims=True)
    content = io.BytesIO()
    np.savez_compressed(content, mean=model.mean, most=most, means=model.means, roots=model.roots.astype(np.float16),
                        eigenfaces=np.rint(model.eigenfaces / most * SCALE).astype(np.int8))
    Dataset.write_whole(path, content.getvalue())


def load(path):
    """The Model of a file of `save`. Raises DataError for any other file."""
    Dataset.file_size(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            return Model(kept["mean"], kept["eigenfaces"].astype(np.float32) / SCALE * kept["most"], kept["means"],
                         kept["roots"].astype(np.float32))
    except (ValueError, KeyError, OSError, AttributeError, EOFError, TypeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise Dataset.DataError(f"{path}: no model of faces ({error!r:.90}); "
                                "make one with python -m DataBases.fit") from None
