"""Dataset.read_face: pictures of every kind to one 48x48 grey face, and one clear line for what is none."""
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import Dataset
from Dataset import DataError

SIDE = 48


def ramp(height=SIDE, width=SIDE):
    """A smooth picture that no turn and no mirror maps onto itself."""
    down, across = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    return np.rint(20 + 140 * across + 50 * down + 30 * across * down).astype(np.uint8)


def noise(height=SIDE, width=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def save(path, picture, **options):
    """Write a PIL picture or an array as the file that the name's ending says."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(path, **options)
    return path


def mode_of(path):
    with Image.open(path) as picture:
        return picture.mode


def assert_face(path, expected, tolerance=0):
    """`path` reads as a face within `tolerance` grey levels of `expected`, with nothing to note."""
    face, note = Dataset.read_face(path)
    assert face.dtype == np.uint8
    assert face.shape == (SIDE, SIDE)
    assert np.abs(face.astype(int) - expected).max() <= tolerance
    assert note == ""


def assert_refused(path, message):
    """`path` is refused in one line that begins with its name."""
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + ".*" + message) as caught:
        Dataset.read_face(path)
    assert "\n" not in str(caught.value)


# Formats


@pytest.mark.parametrize("name, options", [
    ("face.png", {}), ("face.PNG", {}), ("face.bmp", {}), ("face.tiff", {}), ("face.tif", {"compression": "raw"}),
    ("face.gif", {}), ("face.webp", {"lossless": True}), ("face.pgm", {})])
def test_grey_48x48_goes_through_untouched(tmp_path, name, options):
    face = noise()
    assert_face(save(tmp_path / name, face, **options), face)


@pytest.mark.parametrize("name, tolerance", [("face.jpg", 2), ("face.jpeg", 2), ("face.webp", 6)])
def test_lossy_formats_come_close(tmp_path, name, tolerance):
    assert_face(save(tmp_path / name, ramp(), quality=95), ramp(), tolerance)


def test_path_may_be_text(tmp_path):
    assert_face(str(save(tmp_path / "face.png", noise())), noise())


def test_content_decides_and_not_the_ending(tmp_path):
    save(tmp_path / "face.bmp", noise()).rename(tmp_path / "face.jpg")
    assert_face(tmp_path / "face.jpg", noise())


@pytest.mark.parametrize("colour, grey", [
    ((0, 0, 0), 0), ((255, 255, 255), 255), ((77, 77, 77), 77), ((255, 0, 0), 76), ((0, 255, 0), 150),
    ((0, 0, 255), 29), ((100, 150, 200), 141)])
def test_colours_become_their_luma(tmp_path, colour, grey):
    """0.299 R + 0.587 G + 0.114 B (ITU-R 601)."""
    path = save(tmp_path / "face.png", Image.new("RGB", (SIDE, SIDE), colour))
    assert_face(path, np.full((SIDE, SIDE), grey))


@pytest.mark.parametrize("name", ["face.png", "face.tiff"])
def test_16_bit_grey_is_brought_to_8_bit(tmp_path, name):
    assert_face(save(tmp_path / name, noise().astype(np.uint16) * 257), noise())


def test_16_bit_grey_rounds_to_the_nearest_level_and_stays_dark_where_it_is_dark(tmp_path):
    values = np.zeros((SIDE, SIDE), np.uint16)
    values[0, :8] = [128, 129, 255, 256, 65535, 65407, 65406, 32896]
    face, _ = Dataset.read_face(save(tmp_path / "face.png", values))
    assert face[0, :8].tolist() == [0, 1, 1, 1, 255, 255, 254, 128]
    assert face[1:].max() == 0


def test_16_bit_transparency_shows_white(tmp_path):
    values = noise().astype(np.uint16) * 257
    values[:10], values[10:] = 0, values[10:] | 1
    path = save(tmp_path / "face.png", values, transparency=0)
    assert mode_of(path).startswith("I")
    face, _ = Dataset.read_face(path)
    assert face[:10].min() == 255
    assert np.abs(face[10:].astype(int) - noise()[10:]).max() <= 1


def test_32_bit_whole_numbers_that_are_grey_levels_stay(tmp_path):
    assert_face(save(tmp_path / "face.tiff", noise().astype(np.int32)), noise())


@pytest.mark.parametrize("values", [noise().astype(np.uint16), np.float32(noise() / 255)], ids=["16 bit", "0..1"])
def test_grey_levels_in_a_wider_type_stay(tmp_path, values):
    assert_face(save(tmp_path / "face.tiff", values), noise())


@pytest.mark.parametrize("values", [
    np.float32(np.where(noise() > 250, 1.001, noise() / 255)), np.float32(np.where(noise() > 250, 258.0, noise()))],
    ids=["0..1", "0..255"])
def test_what_resampling_overshoots_is_white(tmp_path, values):
    face, _ = Dataset.read_face(save(tmp_path / "face.tiff", values))
    assert np.abs(face.astype(int) - noise()).max() <= 5


@pytest.mark.parametrize("values", [np.where(noise() > 250, np.nan, noise()), noise() * 1e6, noise() * 2.0**20,
                                    (noise() - 128.0) / 256, noise() - 128.0, -noise() - 2.0**27])
def test_grey_levels_of_no_known_range_are_refused(tmp_path, values):
    values = values.astype(np.float32 if values.max() < 2**27 or not np.isfinite(values).all() else np.int32)
    with pytest.raises(Dataset.DataError, match="its grey levels are neither 0 to 1, nor 0 to 255, nor 0 to 65535"):
        Dataset.read_face(save(tmp_path / "face.tiff", values))


def test_1_bit_is_black_and_white(tmp_path):
    bits = noise() > 127
    path = save(tmp_path / "face.png", Image.fromarray(bits))
    assert mode_of(path) == "1"
    assert_face(path, bits * 255)


@pytest.fixture
def palette():
    """A palette picture of noise of 4 levels, in an order that is not that of grey, and its grey picture."""
    levels = np.array([200, 10, 90, 250], np.uint8)
    index = noise() % 4
    picture = Image.frombytes("P", (SIDE, SIDE), index.tobytes())
    picture.putpalette([int(level) for level in levels for _ in range(3)])
    return picture, levels[index]


@pytest.mark.parametrize("name", ["face.png", "face.gif", "face.bmp"])
def test_palette_shows_its_colours_and_not_its_indices(tmp_path, palette, name):
    picture, grey = palette
    assert_face(save(tmp_path / name, picture), grey)


@pytest.mark.parametrize("name", ["face.png", "face.gif"])
def test_transparent_palette_entry_shows_white(tmp_path, palette, name):
    picture, grey = palette
    assert_face(save(tmp_path / name, picture, transparency=1), np.where(grey == 10, 255, grey))


def test_palette_with_an_alpha_for_each_entry(tmp_path, palette):
    picture, grey = palette
    path = save(tmp_path / "face.png", picture, transparency=bytes([255, 0, 51, 255]))
    expected = np.where(grey == 10, 255, np.where(grey == 90, 222, grey))  # 0.2 x 90 + 0.8 x 255 = 222
    assert_face(path, expected, 1)


@pytest.mark.parametrize("mode, opaque, clear, half", [
    ("RGBA", (60, 60, 60, 255), (0, 0, 0, 0), (0, 0, 0, 51)), ("LA", (60, 255), (0, 0), (0, 51))])
@pytest.mark.parametrize("name, options", [("face.png", {}), ("face.webp", {"lossless": True, "exact": True})])
def test_transparent_shows_white_and_opaque_shows_itself(tmp_path, name, options, mode, opaque, clear, half):
    picture = Image.new(mode, (SIDE, SIDE), opaque)
    picture.paste(clear, (0, 0, 24, SIDE))
    picture.paste(half, (24, 0, SIDE, 10))
    expected = np.full((SIDE, SIDE), 60)
    expected[:10, 24:] = 204  # 0.2 x 0 + 0.8 x 255
    expected[:, :24] = 255
    assert_face(save(tmp_path / name, picture, **options), expected, 1)


def test_transparent_grey_level_shows_white(tmp_path):
    face = noise()
    path = save(tmp_path / "face.png", face, transparency=7)
    assert (face == 7).any()
    assert_face(path, np.where(face == 7, 255, face))


def test_opaque_rgba_goes_through_untouched(tmp_path):
    assert_face(save(tmp_path / "face.png", Image.fromarray(noise()).convert("RGBA")), noise())


def test_cmyk_jpg_is_not_inverted(tmp_path):
    black = Image.fromarray(255 - ramp())
    none = Image.new("L", (SIDE, SIDE))
    path = save(tmp_path / "face.jpg", Image.merge("CMYK", (none, none, none, black)), quality=95)
    assert mode_of(path) == "CMYK"
    assert_face(path, ramp(), 3)


def test_first_picture_of_an_animation(tmp_path):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    assert_face(save(tmp_path / "face.gif", frames[0], save_all=True, append_images=frames[1:]), noise(seed=0))


# Turned pictures


# How a viewer turns what is stored under an orientation, so that it stands upright; and how a camera stores it.
SHOWN = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
         6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, 1)}
STORED = {**SHOWN, 6: SHOWN[8], 8: SHOWN[6]}


def save_turned(path, upright, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, np.ascontiguousarray(STORED[orientation](upright)), exif=exif, **options)


@pytest.mark.parametrize("orientation", SHOWN)
def test_jpg_turned_by_exif_stands_upright(tmp_path, orientation):
    stored = STORED[orientation](ramp())
    assert orientation == 1 or np.abs(stored.astype(int) - ramp()).max() > 30
    np.testing.assert_array_equal(SHOWN[orientation](stored), ramp())
    assert_face(save_turned(tmp_path / "face.jpg", ramp(), orientation, quality=95), ramp(), 2)


@pytest.mark.parametrize("orientation", SHOWN)
def test_large_jpg_turned_by_exif_is_the_upright_one(tmp_path, orientation):
    upright = ramp(120, 200)
    expected, _ = Dataset.read_face(save(tmp_path / "upright.png", upright))
    face, note = Dataset.read_face(save_turned(tmp_path / "face.jpg", upright, orientation, quality=95))
    assert np.abs(face.astype(int) - expected).max() <= 3
    assert note.startswith("200x120 pixels")


def test_png_turned_by_exif_stands_upright(tmp_path):
    assert_face(save_turned(tmp_path / "face.png", noise(), 6), noise())


def test_broken_exif_does_not_spoil_the_picture(tmp_path):
    assert_face(save(tmp_path / "face.jpg", ramp(), quality=95, exif=b"Exif\0\0no exif at all"), ramp(), 2)


# Other sizes


def test_middle_square_of_a_wide_picture(tmp_path):
    face = noise()
    wide = np.hstack([np.zeros_like(face), face, np.full_like(face, 255)])
    found, note = Dataset.read_face(save(tmp_path / "wide.png", wide))
    np.testing.assert_array_equal(found, face)
    assert note == "144x48 pixels: the middle square was brought to 48x48"


def test_middle_square_of_a_tall_picture(tmp_path):
    face = noise()
    tall = np.vstack([np.zeros_like(face), face, np.full_like(face, 255)])
    found, note = Dataset.read_face(save(tmp_path / "tall.png", tall))
    np.testing.assert_array_equal(found, face)
    assert note == "48x144 pixels: the middle square was brought to 48x48"


def test_what_lies_beside_the_middle_square_touches_its_edge_alone(tmp_path):
    wide = np.hstack([np.full((200, 200), level, np.uint8) for level in (0, 128, 255)])
    found, note = Dataset.read_face(save(tmp_path / "wide.png", wide))
    np.testing.assert_array_equal(found[:, 3:-3], 128)
    assert np.abs(found - 128.0).max() <= 10
    assert note.startswith("600x200 pixels")


def test_reduced_picture_keeps_its_places(tmp_path):
    """Four quarters of four levels stay where they are; away from the edges they stay what they are."""
    quarters = np.kron(np.array([[10, 80], [160, 240]], np.uint8), np.ones((240, 240), np.uint8))
    found, note = Dataset.read_face(save(tmp_path / "large.png", quarters))
    for rows, columns, level in ((slice(0, 20), slice(0, 20), 10), (slice(0, 20), slice(28, 48), 80),
                                 (slice(28, 48), slice(0, 20), 160), (slice(28, 48), slice(28, 48), 240)):
        np.testing.assert_array_equal(found[rows, columns], level)
    assert note.startswith("480x480 pixels")


def test_reduced_picture_is_the_mean_of_its_blocks_where_it_is_smooth(tmp_path):
    large = ramp(480, 480)
    found, _ = Dataset.read_face(save(tmp_path / "large.png", large))
    assert np.abs(found - large.reshape(48, 10, 48, 10).mean((1, 3))).max() <= 1.5


@pytest.mark.parametrize("size", [96, 480, 500])
def test_fine_checkerboard_becomes_flat_grey(tmp_path, size):
    board = (np.indices((size, size)).sum(0) % 2 * 255).astype(np.uint8)
    found, _ = Dataset.read_face(save(tmp_path / "board.png", board))
    assert np.abs(found[2:-2, 2:-2] - 127.5).max() <= 4
    assert abs(found.mean() - 127.5) <= 1


def test_palette_is_resolved_before_it_is_reduced(tmp_path):
    index = (np.indices((480, 480)).sum(0) % 2).astype(np.uint8)
    picture = Image.frombytes("P", (480, 480), index.tobytes())
    picture.putpalette([250] * 3 + [50] * 3)
    found, _ = Dataset.read_face(save(tmp_path / "board.png", picture))
    assert np.abs(found - 150.0).max() <= 4


def test_small_picture_is_enlarged_smoothly_and_noted(tmp_path):
    small = ramp(20, 20)
    found, note = Dataset.read_face(save(tmp_path / "small.png", small))
    assert np.abs(found[3:-3, 3:-3].astype(int) - ramp()[3:-3, 3:-3]).max() <= 4
    assert (np.diff(found[3:-3, 3:-3].astype(int), axis=1) >= 0).all()
    assert note == "20x20 pixels: the middle square was brought to 48x48"


def test_smallest_picture_that_is_taken(tmp_path):
    found, note = Dataset.read_face(save(tmp_path / "small.png", np.full((16, 16), 99, np.uint8)))
    np.testing.assert_array_equal(found, 99)
    assert note.startswith("16x16 pixels")


@pytest.mark.parametrize("width, height", [(1, 1), (10, 500), (500, 10), (15, 16), (16, 15)])
def test_picture_too_small_for_a_face_is_refused(tmp_path, width, height):
    path = save(tmp_path / "small.png", noise(height, width))
    assert_refused(path, f"{width}x{height} pixels; a face needs at least 16x16, best 48x48")


# Pictures beyond all measure


def png_of_claimed_size(path, width, height):
    """A PNG of some bytes whose header claims width x height grey pixels."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
                     + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("width, height", [(20000, 20000), (12000, 12000), (2**31 - 1, 2**31 - 1)])
def test_huge_picture_is_refused_before_it_is_read(tmp_path, width, height):
    path = png_of_claimed_size(tmp_path / "huge.png", width, height)
    assert_refused(path, "over 89 million pixels; reduce it first")


@pytest.mark.parametrize("side, most", [(100, 4_999), (100, 9_999)], ids=["twice the limit", "over the limit"])
def test_real_picture_over_the_limit_is_refused(tmp_path, monkeypatch, side, most):
    path = save(tmp_path / "large.png", ramp(side, side))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    assert_refused(path, "million pixels; reduce it first")


def test_picture_at_the_limit_is_taken(tmp_path, monkeypatch):
    path = save(tmp_path / "large.png", ramp(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert Dataset.read_face(path)[1].startswith("100x100 pixels")


# What is no picture


@pytest.mark.parametrize("name, content", [
    ("text.png", b"This is a text, and no picture.\n" * 100), ("empty.png", b""), ("empty.jpg", b""),
    ("zeros.bmp", bytes(2304)), ("signature.png", b"\x89PNG\r\n\x1a\n"), ("signature.jpg", b"\xff\xd8\xff"),
    ("face", bytes(2304))])
def test_what_is_no_picture_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(path, r"not a picture that can be read \(png, jpg, bmp, webp, ...\)")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "tiff", "webp"])
@pytest.mark.parametrize("side", [48, 200])
def test_truncated_picture_is_refused(tmp_path, side, ending, kept):
    path = save(tmp_path / f"face.{ending}", noise(side, side))
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * kept)])
    assert_refused(path, "not a picture that can be read")


def test_damaged_png_is_refused(tmp_path):
    path = save(tmp_path / "face.png", noise())
    content = bytearray(path.read_bytes())
    for position in range(200, 260):
        content[position] ^= 0xff
    path.write_bytes(content)
    assert_refused(path, "not a picture that can be read")


@pytest.mark.parametrize("name", ["face.png", "face.raw"])
def test_missing_file_is_refused(tmp_path, name):
    assert_refused(tmp_path / name, "no such file")


@pytest.mark.parametrize("name", ["face.png", "face.raw"])
def test_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    assert_refused(tmp_path / name, "not a file")


# .raw faces


@pytest.mark.parametrize("name", ["face.raw", "face.RAW"])
def test_raw_bytes_are_the_face(tmp_path, name):
    (tmp_path / name).write_bytes(noise().tobytes())
    assert_face(tmp_path / name, noise())


def test_raw_is_row_by_row(tmp_path):
    (tmp_path / "face.raw").write_bytes(bytes(48) + bytes([255]) + bytes(2304 - 49))
    face, _ = Dataset.read_face(tmp_path / "face.raw")
    assert face[1, 0] == 255
    assert face.sum() == 255


@pytest.mark.parametrize("size", [0, 1, 2303, 2305, 4608])
def test_raw_of_another_size_is_refused(tmp_path, size):
    path = tmp_path / "face.raw"
    path.write_bytes(bytes(size))
    assert_refused(path, f"{size} bytes; a .raw face is 48x48 pixels, 2304 bytes, no header")


def test_picture_to_raw_and_back_is_identical(tmp_path):
    face, _ = Dataset.read_face(save(tmp_path / "face.png", noise()))
    Dataset.write_whole(tmp_path / "face.raw", face.tobytes())
    assert_face(tmp_path / "face.raw", noise())


def test_raw_through_floats_and_back_is_identical(tmp_path):
    Dataset.write_whole(tmp_path / "face.raw", Dataset.to_grey(Dataset.to_float(noise())).tobytes())
    assert_face(tmp_path / "face.raw", noise())


def test_written_picture_reads_back_identical_and_leaves_nothing_beside(tmp_path):
    Dataset.write_whole(tmp_path / "faces" / "face.png", Dataset.to_png(Image.fromarray(noise())))
    assert_face(tmp_path / "faces" / "face.png", noise())
    assert [path.name for path in (tmp_path / "faces").iterdir()] == ["face.png"]
