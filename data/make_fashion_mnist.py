"""Pack Fashion-MNIST: the subset in this folder, or all 70,000 images.

    python data/make_fashion_mnist.py                 writes data/fashion_mnist/{train,test}
    python data/make_fashion_mnist.py --full FOLDER   writes FOLDER/{train,test}

The images come from Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist).
The subset is drawn with a fixed seed, as many images of each class: 1,200 to train and 200 to test.
The same images give the same bytes.
"""

import argparse
from pathlib import Path

import numpy as np

from isthmus.shards.packing import pack_shards
from isthmus.shards.sources import read_arrays

SOURCE = Path("/usr/share/datasets/fashion-mnist")
PARTS = {"train": ("train", 1200, 60), "test": ("t10k", 200, 8)}  # file, images a class, shards


def subset(arrays, images_a_class, draw):
    """Return `images_a_class` samples of each class, drawn and mixed by `draw`."""
    targets = arrays["targets"]
    chosen = np.concatenate(
        [
            draw.permutation(np.flatnonzero(targets == kind))[:images_a_class]
            for kind in np.unique(targets)
        ]
    )
    order = draw.permutation(chosen)
    return {name: values[order] for name, values in arrays.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", type=Path, metavar="FOLDER", help="pack all images into FOLDER")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the IDX files")
    arguments = parser.parse_args()
    target = arguments.full or Path(__file__).parent / "fashion_mnist"
    for part, (stem, images_a_class, shards) in PARTS.items():
        arrays = read_arrays(
            {
                "features": arguments.source / f"{stem}-images-idx3-ubyte.gz",
                "targets": arguments.source / f"{stem}-labels-idx1-ubyte.gz",
            }
        )
        if not arguments.full:
            arrays = subset(arrays, images_a_class, np.random.Generator(np.random.PCG64(2017)))
        packed = pack_shards(arrays, target / part, shards=shards, compression="zstd", overwrite=True)
        print(f"{target / part}: {sum(packed.samples)} images in {len(packed.samples)} shards")


if __name__ == "__main__":
    main()
