"""Between tensors from -1 to 1 and pictures."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from sd3par.config import require
from sd3par.errors import ConfigError, Sd3parError

if TYPE_CHECKING:
    from paddle import Tensor

MAX_PIXELS = 1 << 26  # of a picture that is read: 8192 x 8192, 200 MB decoded
# Pillow would start other programs or font engines for some of its formats; these it decodes itself.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray
_ALLOWED = "one path, Pillow image or array [H, W, 3], uint8 or float from 0 to 1"


def to_unit(images: Tensor) -> np.ndarray:
    """Returns pictures [B, H, W, 3] float32 from 0 to 1, as diffusers' output_type "np".

    Args:
        images: [B, 3, H, W], -1 to 1; what lies beyond is clamped.

    Raises:
        Sd3parError: values that are not finite.
    """
    pixels = images.astype("float32").numpy()
    if not np.isfinite(pixels).all():
        raise Sd3parError("a picture holds values that are not finite; with dtype float16 try bfloat16 or float32")
    return (pixels * np.float32(0.5) + np.float32(0.5)).clip(0, 1).transpose(0, 2, 3, 1)


def to_uint8(images: Tensor) -> np.ndarray:
    """Returns pictures [B, H, W, 3] uint8, rounded as diffusers does.

    Args:
        images: [B, 3, H, W], -1 to 1; what lies beyond is clamped.

    Raises:
        Sd3parError: values that are not finite.
    """
    return np.ascontiguousarray((to_unit(images) * np.float32(255)).round().astype(np.uint8))


def load_image(source: ImageSource, height: int, width: int) -> np.ndarray:
    """Returns a picture [1, 3, H, W] float32 from -1 to 1, stretched to `height` x `width` with Lanczos.

    Turned as its EXIF data says; what is transparent becomes white; the first frame of an animation.

    Args:
        source: a file, a picture that Pillow has opened, or an array [H, W, 3] or [1, H, W, 3], uint8 or float from 0
            to 1.

    Raises:
        ConfigError: no such file, not a picture, broken, of more than `MAX_PIXELS`, or anything else.
    """
    if isinstance(source, np.ndarray):
        unit = _array_unit(source, height, width)
    elif isinstance(source, str | os.PathLike | Image.Image):
        unit = _picture_unit(_upright_rgb(source), height, width)
    else:
        raise ConfigError("image", type(source).__name__, _ALLOWED)
    return (unit * np.float32(2) - np.float32(1)).transpose(2, 0, 1)[None]


def _picture_unit(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Returns a picture in mode RGB as [height, width, 3] float32 from 0 to 1."""
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / np.float32(255)


def _array_unit(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns [H, W, 3] or [1, H, W, 3] as [height, width, 3] float32 from 0 to 1; floats are not rounded."""
    name = f"an array {array.dtype} {list(array.shape)}"
    levels = array[0] if array.ndim == 4 and len(array) == 1 else array
    kind = array.dtype == np.uint8 or array.dtype.kind == "f"
    require(kind and levels.ndim == 3 and levels.shape[2] == 3, "image", name, _ALLOWED)
    pixels = levels.shape[0] * levels.shape[1]
    require(0 < pixels <= MAX_PIXELS, "image", name, f"1 to {MAX_PIXELS} pixels")
    if levels.dtype == np.uint8:
        return _picture_unit(Image.fromarray(levels), height, width)
    require(bool(((levels >= 0) & (levels <= 1)).all()), "image", f"{name} with values beyond 0 to 1", _ALLOWED)
    if levels.shape[:2] == (height, width):
        return levels.astype(np.float32)
    channels = [Image.fromarray(levels[:, :, i].astype(np.float32)) for i in range(3)]
    sized = [np.asarray(one.resize((width, height), Image.Resampling.LANCZOS)) for one in channels]
    return np.stack(sized, axis=2).clip(0, 1)


def _upright_rgb(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Returns the decoded picture, upright, in mode RGB."""
    name = "a Pillow image" if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            return _decode(source, name)
        with _open(source) as picture:
            return _decode(picture, name)
    except ConfigError:
        raise
    except Image.DecompressionBombError:
        raise ConfigError("image", name, f"at most {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's decoders raise nearly every kind of error on broken files
        allowed = f"an intact image; files: {', '.join(FORMATS)} ({type(error).__name__})"
        raise ConfigError("image", name, allowed) from None


def _open(path: str | os.PathLike[str]) -> Image.Image:
    """Reads the header of a picture."""
    # Not for pipes and devices: opening them could wait for ever.
    require(os.path.isfile(path), "image", str(path), "an existing image file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        return Image.open(path, formats=FORMATS)


def _decode(picture: Image.Image, name: str) -> Image.Image:
    """Checks the size, which is known before anything is decoded, and returns the upright picture in RGB."""
    pixels = picture.width * picture.height
    require(0 < pixels <= MAX_PIXELS, "image", name, f"at most {MAX_PIXELS} pixels, not {pixels}")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _from_16_bit(picture, name)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _from_16_bit(picture: Image.Image, name: str) -> Image.Image:
    """Returns a grey picture of 16 bits as 8 bits; Pillow's own conversion would clip it at 255."""
    require(picture.mode != "F", "image", name, "8 or 16 bits a channel, not floating point")
    levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
