"""Picture files in and out, through libvips: any picture in, every picture out whole or not at all."""

from pcsr.runtime.pictures.formats import check_writable, output_format, pictures_below
from pcsr.runtime.pictures.picture import MAX_PIXELS, Beside, Header, Picture, StreamedPicture
from pcsr.runtime.pictures.reading import PictureFile, open_picture, read_picture
from pcsr.runtime.pictures.transparency import fill_transparent
from pcsr.runtime.pictures.writing import Encoding, PictureWriter, write_picture

__all__ = [
    "MAX_PIXELS",
    "Beside",
    "Encoding",
    "Header",
    "Picture",
    "PictureFile",
    "PictureWriter",
    "StreamedPicture",
    "check_writable",
    "fill_transparent",
    "open_picture",
    "output_format",
    "pictures_below",
    "read_picture",
    "write_picture",
]
