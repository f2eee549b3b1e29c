"""Picture files in and out, through libvips: any picture in, every picture out whole or not at all."""

from pcsr.runtime.pictures.files import MAX_PIXELS, Picture, read_picture, write_picture
from pcsr.runtime.pictures.formats import check_writable, output_format, pictures_below

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "check_writable",
    "output_format",
    "pictures_below",
    "read_picture",
    "write_picture",
]
