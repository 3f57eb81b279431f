"""Pictures in and out: pixels, PNG files, and the request written into them."""

from sd3par.images.metadata import ImageMetadata, read_metadata
from sd3par.images.pixels import load_image, to_uint8, to_unit
from sd3par.images.png import check_writable, save_png

__all__ = ["ImageMetadata", "check_writable", "load_image", "read_metadata", "save_png", "to_uint8", "to_unit"]
