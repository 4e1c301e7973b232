"""Images from a folder, classes from the folders in it."""

import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from isthmus.errors import ShardError
from isthmus.extras import how_to_install
from isthmus.files import open_plain
from isthmus.shards.rows import Rows

FORMATS = {
    "BMP": ".bmp",
    "GIF": ".gif",
    "JPEG": ".jpg .jpeg",
    "PNG": ".png",
    "PPM": ".ppm .pgm",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
}
"""What is opened, by Pillow's names, none of which starts another program; and names of such files."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes.split())
KINDS = {"1": "L", "L": "L", "LA": "L", "I;16": "I;16"} | dict.fromkeys(
    ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"), "RGB"
)
"""Pillow's mode of a file -> the one that it is packed in: 8 or 16 bits of grey, or 8 of each colour."""


def open_images(folder, wants):
    """Return name -> Rows of the images in `folder`, or of their classes.

    wants: array -> "" for the images, "class" for the number of the folder that each lies in. Images lie
    in the folder itself or in one folder a class; files, and folders, are in natural order. Of one size;
    uint8 [height, width] where all are grey, or else [3, height, width].
    """
    folder = Path(folder)
    classes, paths, labels, left_out = _found(folder)
    for name, member in wants.items():
        if member not in ("", "class"):
            raise ShardError(
                f"{folder}: {member!r} is nothing that a folder of images has; write "
                f"{name}={folder} for the images, {name}={folder}:class for their classes"
            )
        if member and not classes:
            raise ShardError(
                f"{folder}: its images are in no folders of classes; put each class into "
                "a folder of its own"
            )
    rows = {}
    for name, member in wants.items():
        if member:
            rows[name] = ClassRows(np.array(labels), classes)
        else:
            rows[name] = ImageRows(paths)
            rows[name].told += left_out
    return rows


class ClassRows(Rows):
    """The number of each image's class: in as few bytes as will do."""

    def __init__(self, labels, classes):
        super().__init__(labels.shape, np.min_scalar_type(len(classes) - 1))
        self.labels, self.classes = labels.astype(self.dtype), tuple(classes)
        self.told = f"{len(classes)} classes, folders in their natural order"

    def between(self, first, last):
        return self.labels[first:last]


class ImageRows(Rows):
    """Images that are decoded when they are asked for."""

    near_nbytes = 0

    def __init__(self, paths):
        self.paths = paths
        size, modes = None, {}
        for path in paths:  # reads what is at their start
            with _opened(path) as image:
                mode = KINDS.get(image.mode)
                if mode is None:
                    raise ShardError(
                        f"{path}: has pixels of kind {image.mode}; save it with 8 or 16 bits a "
                        "pixel, or in colour"
                    )
                modes.setdefault(mode, path)
                if size not in (None, image.size):
                    raise ShardError(
                        f"{path}: is {image.size[0]} x {image.size[1]} pixels, {paths[0].name} is "
                        f"{size[0]} x {size[1]}; bring all images to one size"
                    )
                size = image.size
        if len(modes) > 1 and "I;16" in modes:
            raise ShardError(f"{modes['I;16']}: has 16 bits a pixel, others have 8; save all alike")
        self.mode = "RGB" if "RGB" in modes else next(iter(modes))
        plane = (size[1], size[0])
        super().__init__(
            (len(paths), *((3, *plane) if self.mode == "RGB" else plane)),
            "<u2" if self.mode == "I;16" else "u1",
        )
        shape = " x ".join(map(str, self.shape[1:]))
        self.told = f"{len(paths)} images, {self.dtype.name} {shape}" + (
            ", the grey ones among them as colour" if len(modes) > 1 else ""
        )

    def between(self, first, last):
        block = np.empty((last - first, *self.shape[1:]), self.dtype)
        for place, path in zip(block, self.paths[first:last]):
            with _opened(path) as image:
                values = np.asarray(image if image.mode == self.mode else image.convert(self.mode))
                place[:] = values.transpose(2, 0, 1) if values.ndim == 3 else values
        return block


@contextmanager
def _opened(path):
    """Give the image in file `path`; ShardError in one line for whatever is wrong with it."""
    try:
        from PIL import Image
    except ImportError:
        raise ShardError(
            f"{path}: images need Pillow, which is not installed; {how_to_install('images')}"
        ) from None
    try:
        with warnings.catch_warnings(), open_plain(path) as file:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=tuple(FORMATS)) as image:
                yield image
    except ShardError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ShardError(
            f"{path}: claims to have more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}; "
            "make it smaller, or leave it out"
        ) from None
    except Image.UnidentifiedImageError:
        raise ShardError(
            f"{path}: is no image of {', '.join(FORMATS)}; mend it, or leave it out"
        ) from None
    except Exception as problem:  # decoders raise whatever they meet
        told = (str(problem).splitlines() or [type(problem).__name__])[0][:120]
        raise ShardError(f"{path}: cannot be decoded: {told}; mend it, or leave it out") from None


def _found(folder):
    """Return the classes' names, the images' paths, the class number of each, and what was left out."""
    files, folders = _listed(folder)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    strange = [path for path in files if path.suffix.lower() not in SUFFIXES]
    if not folders:
        if not images:
            raise ShardError(
                f"{folder}: is a folder that holds no images ({', '.join(SUFFIXES)}); name a file, or a "
                "folder of images"
            )
        return [], images, [], _left_out(strange)
    if images:
        raise ShardError(
            f"{folder}: holds images and folders; give each image a folder, its class, or none"
        )
    paths, labels = [], []
    for number, each in enumerate(folders):
        files, inner = _listed(each)
        if inner:
            raise ShardError(
                f"{inner[0]}: is a folder in the folder of a class; put its images into {each}"
            )
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        strange += [path for path in files if path not in images]
        if not images:
            raise ShardError(
                f"{each}: holds no images ({', '.join(SUFFIXES)}); remove that folder, put some "
                "in, or name a file"
            )
        paths += images
        labels += [number] * len(images)
    return [each.name for each in folders], paths, labels, _left_out(strange)


def _left_out(paths):
    if not paths:
        return ""
    return f"; {len(paths)} files that are no images were left out, such as {paths[0].name}"


def _listed(folder):
    """Return the files and the folders in `folder`, in natural order, but for hidden ones."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                raise ShardError(
                    f"{entry.path}: is a symbolic link, which may lead anywhere; put what it means in "
                    "its place"
                )
            (folders if entry.is_dir() else files).append(Path(entry.path))
    return sorted(files, key=natural), sorted(folders, key=natural)


def natural(path):
    """Return the sort key of a path by which 2.png is before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if number % 2 else part.casefold() for number, part in enumerate(parts)], path.name
