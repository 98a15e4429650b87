"""What faces of nobody teach, by how they were sampled: accuracy on real faces of nets that learned from them alone.

    python benchmarks/samplers.py path/to/data_16k.bin path/to/data_aaf.bin path/to/data_scut.bin \
        --test path/to/data_test4k.bin

The last fifth of the first database is held out: no sampler is fitted to it, and the choice is made on it. Each
sampler is fitted to the rest, with mirror images; its faces are labelled by the net that ships, but for the row that
says so. The nets are small (ResNet, 4 stages from 16 filters, batches of 64, flips, 5 epochs). Prints a Markdown
table: means and standard deviations over the seeds, in percent. The rows "real faces" learn as many faces of the
databases themselves, as annotated and as labelled by the net that ships. The two learned generators are trained
first, when their rows are asked for: the autoencoder for about 3 minutes of one core, the GAN for about 6, with a
line on stderr every 500 steps. `--rows GAN` asks for that row alone.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
import statistics
import tempfile
from typing import Annotated

import numpy as np

import Dataset
import Models
import Training
from benchmarks import ablations, generators
from DataBases import faces, synthesise

STUDENT = Training.Recipe(epochs=5, batch_size=64, learning_rate=8e-3, augment=("flip",), averaging=0.98)


@dataclasses.dataclass(frozen=True)
class Options:
    databases: Annotated[tuple, dict(help="data_*.bin of real faces", positional=True, nargs="+", metavar="DB")]
    test: Annotated[str, dict(help="data_*.bin, measured on and not chosen by", required=True, metavar="DB")] = ""
    faces: Annotated[int, dict(help="that each net learns", low=100)] = 20_000
    seeds: Annotated[int, dict(help="nets of each row", low=1)] = 2
    rows: Annotated[tuple, dict(help="only these rows", nargs="+", metavar="ROW")] = ()


class Codes:
    """Faces and their mirror images as `count` coefficients of eigenfaces: what the samplers are fitted to."""

    def __init__(self, grey, women, count):
        self.grey = grey
        both = faces.with_mirrors(grey)
        self.women = np.concatenate([women, women])
        self.mean, self.eigenfaces = faces.eigenfaces(both, count)
        self.codes = (both - self.mean) @ self.eigenfaces.T

    def picture(self, codes):
        pictures = self.mean + codes @ self.eigenfaces[:codes.shape[1]]
        return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def k_means(points, count, rounds=8):
    """The number of the nearest of `count` centres, of each point [N, dim]: [N]."""
    centres = points[np.random.default_rng(0).choice(len(points), count, replace=False)]
    for last in range(rounds, -1, -1):
        nearest = np.concatenate([(np.square(centres).sum(1) - 2 * part @ centres.T).argmin(1)
                                  for part in np.array_split(points, 1 + len(points) // 5000)])
        if last:
            centres = np.stack([points[nearest == number].mean(0) if (nearest == number).any() else centre
                                for number, centre in enumerate(centres)])
    return nearest


class Gaussians:
    """Gaussians of given members [N] in the space of the first `count` codes, each with a covariance of its own or all
    with one; real  Codes or generators.AutoEncoder"""

    def __init__(self, real, member, count, shared=False):
        self.real, self.sizes = real, np.bincount(member)
        codes = real.codes[:, :count]
        self.means = np.stack([codes[member == number].mean(0) for number in range(len(self.sizes))])
        if shared:
            self.roots = [faces.covariance_root(codes - self.means[member])] * len(self.sizes)
        else:
            self.roots = [faces.covariance_root(codes[member == number] - mean)
                          for number, mean in enumerate(self.means)]

    def sample(self, count, generator):
        return self.labelled(count, generator)[0]

    def labelled(self, count, generator):
        member = np.sort(generator.choice(len(self.sizes), count, p=self.sizes / self.sizes.sum()))
        codes = generator.standard_normal((count, self.means.shape[1]), np.float32)
        for number in np.unique(member):
            mine = member == number
            codes[mine] = self.means[number] + codes[mine] @ self.roots[number].T
        order = generator.permutation(count)
        return self.real.picture(codes[order]), member[order]


class LowRank:
    """A mixture of Gaussians of low rank, found by k-means: `rank` directions of each, and variances for the rest."""

    def __init__(self, real, components, rank, count):
        self.real = real
        codes = real.codes[:, :count]
        member = k_means(codes, components)
        self.sizes, self.parts = np.bincount(member, minlength=components), []
        for number in range(components):
            mine = codes[member == number]
            mean = mine.mean(0) if len(mine) else codes.mean(0)
            variances, directions = np.linalg.eigh(np.cov(mine.T, bias=True) if len(mine) > 1 else np.eye(count))
            factors = directions[:, -rank:] * np.sqrt(np.maximum(variances[-rank:], 0.0))
            rest = np.sqrt(np.maximum((mine - mean).var(0) - np.square(factors).sum(1), 1e-3))
            self.parts.append([part.astype(np.float32) for part in (mean, factors, rest)])

    def sample(self, count, generator):
        codes = []
        for number in generator.choice(len(self.parts), count, p=self.sizes / self.sizes.sum()):
            mean, factors, rest = self.parts[number]
            codes.append(mean + factors @ generator.standard_normal(factors.shape[1], np.float32)
                         + rest * generator.standard_normal(len(rest), np.float32))
        return self.real.picture(np.stack(codes))


class Copula:
    """Every coefficient with the quantiles that it has in real faces, joined as a Gaussian would (Sklar 1959)."""

    def __init__(self, real, count):
        self.real, codes = real, real.codes[:, :count]
        normal = statistics.NormalDist()
        shares = np.linspace(5e-4, 1 - 5e-4, 257)
        self.normal = np.array([normal.inv_cdf(share) for share in shares])
        self.quantiles = np.quantile(codes, shares, axis=0)
        scores = np.argsort(np.argsort(codes, 0), 0) / len(codes) * (1 - 1e-3) + 5e-4
        gaussian = np.interp(scores, shares, self.normal)
        self.root = faces.covariance_root(gaussian)

    def sample(self, count, generator):
        scores = generator.standard_normal((count, len(self.root)), np.float32) @ self.root.T
        codes = [np.interp(score, self.normal, quantiles) for score, quantiles in zip(scores.T, self.quantiles.T)]
        return self.real.picture(np.stack(codes, 1).astype(np.float32))


class Textured:
    """Few eigenfaces for the low frequencies; on top a Gaussian texture whose strength at each pixel follows them."""

    def __init__(self, real, low, count):
        self.real, self.low = real, low
        below, above = real.codes[:, :low], real.codes[:, low:count]
        self.root = faces.covariance_root(below - below.mean(0))
        self.mean = below.mean(0)
        rows = np.random.default_rng(0).choice(len(below), min(len(below), 10_000), replace=False)
        texture = above[rows] @ real.eigenfaces[low:count]
        inputs = np.concatenate([below[rows], np.ones((len(rows), 1), np.float32)], 1)
        self.strength = np.linalg.lstsq(inputs, np.log(np.square(texture) + 1.0) / 2, rcond=None)[0]
        even = texture / np.exp(inputs @ self.strength)
        even /= np.sqrt(np.mean(np.square(even)))
        self.scale = np.sqrt(np.mean(np.square(texture)) / np.mean(np.exp(2 * inputs @ self.strength)))
        variances, directions = np.linalg.eigh(even.T @ even / len(even))
        self.texture = (directions * np.sqrt(np.maximum(variances, 0.0))).T[-(count - low):].astype(np.float32)

    def sample(self, count, generator):
        below = self.mean + generator.standard_normal((count, self.low), np.float32) @ self.root.T
        strength = np.exp(np.concatenate([below, np.ones((count, 1), np.float32)], 1) @ self.strength)
        texture = generator.standard_normal((count, len(self.texture)), np.float32) @ self.texture
        pictures = self.real.mean + below @ self.real.eigenfaces[:self.low] + self.scale * strength * texture
        return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def centres(real, components, count):
    codes = real.codes[:, :count]
    return Gaussians(real, k_means(codes, components), count, shared=True)


def encoded(real, count):
    """Gaussians of the classes on `count` codes of an autoencoder, which learns here."""
    return Gaussians(generators.AutoEncoder(real.grey, count), real.women, count)


SAMPLERS = {
    "one Gaussian, 400 eigenfaces": lambda real: Gaussians(real, np.zeros(len(real.women), int), 400),
    "one Gaussian a class, 200": lambda real: Gaussians(real, real.women, 200),
    "one Gaussian a class, 400": lambda real: Gaussians(real, real.women, 400),
    "one Gaussian a class, 1000": lambda real: Gaussians(real, real.women, 1000),
    "400 centres, one covariance, 400": lambda real: centres(real, 400, 400),
    "60 Gaussians of rank 60, 400": lambda real: LowRank(real, 60, 60, 400),
    "Gaussian copula, 400": lambda real: Copula(real, 400),
    "150 eigenfaces and texture": lambda real: Textured(real, 150, 1000),
    "one Gaussian a class, 192 codes of an autoencoder": lambda real: encoded(real, 192),
    "GAN": lambda real: generators.Gan(real.grey),
}
REAL = {"real faces": False, "real faces, labelled by the net": True}  # as annotated, or not
CLASSES = "one Gaussian a class, 400, labelled by the class drawn from"


def by_class(sampler, count, seed):
    """(faces, labels) of a sampler with a Gaussian a class, labelled by the class."""
    grey, women = sampler.labelled(count, np.random.default_rng(seed))
    return grey, np.eye(2, dtype="<f4")[women]


def by_teacher(sampler, count, seed):
    """(faces, labels) of a sampler, labelled by the net that ships: the labeller knows one sampler's faces alone."""
    parts = list(synthesise.Source(seed, sampler, Models.load(synthesise.SHIPPED)[0]).draw("samplers", count))
    return [np.concatenate(part) for part in zip(*parts)]


def accuracy(grey, labels, seed, bases):
    """Accuracy on each of the databases of a student that learned these faces, in percent."""
    Training.make_deterministic(seed)
    with tempfile.TemporaryDirectory() as folder:
        Dataset.write_whole(f"{folder}/data_s.bin", grey.tobytes())
        Dataset.write_whole(f"{folder}/gender_s.bin", labels.astype("<f4").tobytes())
        train = Dataset.open_database(f"{folder}/data_s.bin")
        net = Models.build("resnet", nb_filter=16, nb_block=4)
        recipe = dataclasses.replace(STUDENT, seed=seed)
        trainer = Training.Trainer(net, train, train.subset([0]), None, recipe, folder, None, net.description)
        for batch in trainer.batches(0):
            trainer.learn(*batch)
        with trainer.average.in_place():
            return [100 * base.mean_accuracy(trainer.predict) for base in bases]


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    known = [*SAMPLERS, CLASSES, *REAL]
    if unknown := set(options.rows) - {*known}:
        raise Dataset.UserError(f"--rows {min(unknown)}: expected some of {', '.join(known)}")
    first, *others = [Dataset.open_database(name) for name in options.databases]
    cut = first.nbdata - first.nbdata // 5
    bases = [first.subset(np.arange(cut, first.nbdata)), Dataset.open_database(options.test)]
    parts = dict(enumerate([first.subset(np.arange(cut)), *others]))
    learned = Dataset.DataSet.join([*Dataset.set_apart(parts, Dataset.DataSet.join(bases))[0].values()])
    grey, women = learned.data.grey(), learned.label.argmax(1)
    real = Codes(grey, women, 1000)
    print("| sampled from | held out | test |\n|---|---|---|", flush=True)

    answer = synthesise.Source(0, teacher=Models.load(synthesise.SHIPPED)[0]).answer  # the labeller knows no real face
    rows = [(name, make, by_teacher) for name, make in SAMPLERS.items()]
    rows.append((CLASSES, SAMPLERS["one Gaussian a class, 400"], by_class))
    for name, make, labelled in rows:
        if not options.rows or name in options.rows:
            sampler = make(real)
            ablations.print_row(name, [accuracy(*labelled(sampler, options.faces, seed), seed, bases)
                                       for seed in range(options.seeds)])
    for name, asked in REAL.items():
        if not options.rows or name in options.rows:
            results = []
            for seed in range(options.seeds):
                drawn = np.random.default_rng(seed).choice(len(grey), min(options.faces, len(grey)), replace=False)
                answers = answer(grey[drawn]).argmax(1) if asked else women[drawn]
                results.append(accuracy(grey[drawn], np.eye(2, dtype="<f4")[answers], seed, bases))
            ablations.print_row(name, results)
    return 0


if __name__ == "__main__":
    sys.exit(Console.run(main))
