"""One image file, read safely: what cannot be trusted is an error that names the file, what can be repaired is counted.

Repairs (`REPAIRS`) are changes that a person may want to know of; they never depend on the other images of a set. An
error is everything that would make pixels up: a truncated file, 32-bit values without a stated range, several frames.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.suite import Bool, UInt8

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # raise it whenever equal files give other pixels: prepared caches become stale
Mode = Literal["RGB", "L"]
REPAIRS = {
    "16bit": "16-bit values reduced to 8 bits, the full range 0..65535 to 0..255",
    "alpha": "alpha channel removed, transparent parts shown on white",
    "cmyk": "CMYK (or YCCK) converted to RGB",
    "palette": "palette expanded to colours",
    "grey": "one grey channel repeated in three",
    "colour": "colours reduced to grey (ITU-R 601 luma)",
    "exif": "turned as the EXIF orientation says",
    "monochrome1": "DICOM MONOCHROME1 inverted: white is bright",
    "dicom_range": "DICOM values of more than 8 bits mapped to 0..255 by the file's window, else by its bits stored",
    "mask_grey": "mask with grey values (lossy file): a pixel counts from 128 on",
}
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W, 3] or, in mode L, [H, W]; repairs: names in `REPAIRS`, in the order they were made."""

    pixels: UInt8
    repairs: tuple[str, ...] = ()


def read_image(path: Path, mode: Mode = "RGB") -> Decoded:
    """Decode a JPEG, PNG, TIFF, BMP or DICOM file to 8 bits.

    Raises:
        DataError: missing, empty, unreadable or truncated file, several frames, 32-bit values, a DICOM without pixels.
    """
    if is_dicom(path):
        return _read_dicom(path, mode)
    image = _load(path)
    repairs: list[str] = []
    return Decoded(np.asarray(_to_mode(_upright(image, repairs), mode, path, repairs)), tuple(repairs))


def read_mask(path: Path, size: tuple[int, int] | None = None) -> tuple[Bool, tuple[str, ...]]:
    """A mask, bool [H, W] (True from grey 128 on), and its repairs. size: (width, height) of its image, if it must fit.

    Raises:
        DataError: unreadable, or of another size than its image.
    """
    image = _load(path)
    repairs: list[str] = []
    image = _upright(image, repairs)
    if size is not None and image.size != size:
        raise DataError(
            f"the mask {path} is {image.size[0]} x {image.size[1]} pixels but its image is {size[0]} x {size[1]}; "
            f"save it at the size of its image"
        )
    kept = ("exif", "16bit", "alpha")  # colour modes of a mask say nothing
    grey = np.asarray(_to_mode(image, "L", path, repairs))
    repairs = [name for name in repairs if name in kept]
    if not np.isin(np.unique(grey), (0, 255)).all() and image.mode != "1" and grey.max() > 1:
        repairs.append("mask_grey")
    if grey.max(initial=0) == 1:  # 0 and 1, as some tools write them
        return grey > 0, tuple(repairs)
    return grey >= 128, tuple(repairs)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as it will be read, from its header alone. Raises DataError."""
    if is_dicom(path):
        header = _dicom(path, stop_before_pixels=True)
        return int(header.Columns), int(header.Rows)
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except Exception as error:
        raise _unreadable(path, error) from error


def is_dicom(path: Path) -> bool:
    """True for a DICOM file, by its suffix or by the mark that follows its preamble. A missing file is none."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _unreadable(path: Path, error: Exception) -> DataError:
    if not path.is_file():
        return DataError(f"there is no file {path}; put it back, or drop its row")
    if path.stat().st_size == 0:
        return DataError(f"{path} is empty (0 bytes); copy or download it again")
    reason = " ".join(str(error).split()).replace(f" '{path}'", "") or type(error).__name__
    return DataError(f"{path} cannot be read as an image ({reason}); copy or download it again")


def _load(path: Path) -> Image.Image:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
            frames = getattr(image, "n_frames", 1)
            deep = ";16" in str(image.tile)  # Pillow reads 16-bit RGB as 8-bit without a word
            image.load()
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise _unreadable(path, error) from error
    if image.format == "JPEG" and not _ends(path):
        raise DataError(
            f"{path} is a JPEG without its end (cut short, or its tail is zeros); copy or download it again"
        )
    if frames > 1 and image.format not in ("MPO",):  # MPO: a photograph with its preview
        raise DataError(f"{path} holds {frames} frames; save the one that is meant as a file of its own")
    image.info["deep"] = deep
    return image


def _ends(path: Path) -> bool:
    """Whether a JPEG's end mark follows its first scan. The decoder fills what is missing with grey without a word."""
    data, place = path.read_bytes(), 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":  # over the header's segments
        filler = data[place + 1 : place + 2] == b"\xff"
        place += 1 if filler else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data.find(b"\xff\xd9", place) >= 0


def _upright(image: Image.Image, repairs: list[str]) -> Image.Image:
    from PIL import ImageOps

    if image.getexif().get(0x0112, 1) in range(2, 9):
        repairs.append("exif")
        deep = image.info.get("deep", False)
        image = ImageOps.exif_transpose(image)
        image.info["deep"] = deep
    return image


def _to_mode(image: Image.Image, mode: Mode, path: Path, repairs: list[str]) -> Image.Image:
    from PIL import Image

    if image.mode in ("I", "F") and not image.info.get("deep"):
        raise DataError(f"{path} has 32-bit pixels, whose range is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        repairs.append("16bit")
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    elif image.info.get("deep"):
        repairs.append("16bit")
    if image.mode in ("P", "PA"):
        repairs.append("palette")
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "RGBa", "La"):
        repairs.append("alpha")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        repairs.append("cmyk" if image.mode == "CMYK" else "colour")
        image = image.convert("RGB")
    if mode == "RGB" and image.mode in ("L", "1"):
        repairs.append("grey")
    elif mode == "L" and image.mode == "RGB" and not _is_grey(image):
        repairs.append("colour")
    return image.convert(mode)


def _is_grey(image: Image.Image) -> bool:
    """True where the three channels are equal: a grey image in a colour file loses nothing."""
    red, green, blue = (np.asarray(channel) for channel in image.split())
    return bool((red == green).all() and (green == blue).all())


def _dicom(path: Path, *, stop_before_pixels: bool = False) -> Any:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_dicom(path: Path, mode: Mode) -> Decoded:
    """Grey or RGB, one frame; the window (or rescale) of the file decides the brightness."""
    from PIL import Image
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    data = _dicom(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = data.pixel_array
            grey = int(data.get("SamplesPerPixel", 1)) == 1
            values = apply_voi_lut(apply_modality_lut(raw, data), data) if grey else raw
    except Exception as error:  # a decoder that is missing, or pixel data cut short
        raise _unreadable(path, error) from error
    if int(data.get("NumberOfFrames", 1)) > 1:
        raise DataError(f"{path} holds {data.NumberOfFrames} frames; save the one that is meant as a file of its own")
    repairs: list[str] = []
    pixels = _to_bytes(np.asarray(values), data, repairs)
    if grey and str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        repairs.append("monochrome1")
        pixels = 255 - pixels
    return Decoded(np.asarray(_to_mode(Image.fromarray(pixels), mode, path, repairs)), tuple(repairs))


def _to_bytes(values: npt.NDArray[Any], data: Any, repairs: list[str]) -> UInt8:
    """Values 0..255 as they are; others linearly, from the window where there is one, else from the bits stored."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    repairs.append("dicom_range")
    bits, signed = int(data.get("BitsStored", 16)), int(data.get("PixelRepresentation", 0))
    slope, offset = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    low = offset + slope * (-(2 ** (bits - 1)) if signed else 0)  # what an unwindowed value can be
    high = low + slope * (2**bits - 1)  # apply_voi_lut spreads its window over the same range
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-9)
    return (np.clip(scaled, 0, 1) * 255 + 0.5).astype(np.uint8)
