"""`isthmus pack`: arrays become shards."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, number
from isthmus.cli.keys import KEYS

OWNERS = "clients"
"""What the array of --clients is called while it is read."""


def pack(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Where the shards and their manifest go.")],
    array: Annotated[
        list[str],
        typer.Option(
            "--array",
            "-a",
            metavar="NAME=FILE[:MEMBER]",
            help="An array by name: IDX (also .gz), .npy, file.npz:array, file.h5:/group/dataset, "
            "MATLAB's 7.3, file.mat:array; file.csv:column,column (or file.csv: all columns that no "
            "other array takes); folder (of images), folder:class. Give features first, then targets.",
        ),
    ],
    shards: Annotated[int, number("Number of shards.", at_least=1)] = 64,
    compression: Annotated[str, typer.Option(metavar="NAME", help="lz4, zstd, gzip or none.")] = "lz4",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace a packed set.")
    ] = False,
    shuffle: Annotated[
        int | None, number("Mix the samples by this seed.", at_least=0, metavar="SEED")
    ] = None,
    stratify: Annotated[
        bool,
        typer.Option(
            "--stratify", metavar="", help="Give every shard its share of each class (the last array)."
        ),
    ] = False,
    validation: Annotated[
        float,
        number(
            "Share of the samples to set apart, as 0.1, in FOLDER/validation.",
            at_least=0,
            metavar="SHARE",
        ),
    ] = 0.0,
    clients: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE[:MEMBER]",
            help="Clients to split the samples into, or an array with the number of each sample's "
            "client; each is whole in a shard.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="KIND[:NUMBER[:SEED]]",
            help="How, by classes in the last array: iid, dirichlet:ALPHA, classes_each:CLASSES.",
        ),
    ] = "iid",
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="SITE", help="The site where the samples were born; its key signs who may read them."
        ),
    ] = None,
    readers: Annotated[
        str | None,
        typer.Option(metavar="SITE,SITE", help="Sites that may read them; else the origin alone."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file that says both, and of some shards others."),
    ] = None,
    keys: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the origin's key lies, and the readers' .pub.")
    ] = KEYS,
    sealed: Annotated[
        bool, typer.Option("--sealed", metavar="", help="Encrypt the files for the readers alone.")
    ] = False,
    as_json: AsJson = False,
):
    """Turn arrays into a folder of HDF5 shards with checksums."""
    from isthmus.shards.packed import packed_table, packed_words
    from isthmus.shards.packing import pack_shards
    from isthmus.shards.sources import open_arrays, scratch_for

    sources = {}
    for item in array:
        name, equals, source = item.partition("=")
        if not (name and equals and source):
            raise typer.BadParameter(
                f"{item!r}: write NAME=FILE, as in features=images.npz:x", param_hint="--array"
            )
        sources[name] = source
    if not validation < 1:
        raise typer.BadParameter(
            f"must be a share below 1, not {validation:g}", param_hint="--validation"
        )
    rules = _policy_of(policy, origin, readers)
    if sealed and rules is None:
        raise typer.BadParameter("goes with --origin SITE or --policy", param_hint="--sealed")
    several = int(clients) if clients and clients.removeprefix("-").isdecimal() else None
    chosen = _split_of(several, split)
    if clients is not None and several is None:
        if not clients:
            raise typer.BadParameter("must be a number or a file, not ''", param_hint="--clients")
        if OWNERS in sources:
            raise typer.BadParameter(f"call it otherwise than {OWNERS}", param_hint="--array")
        sources[OWNERS] = clients
    with open_arrays(sources, scratch_for(folder)) as arrays:
        for name, rows in arrays.items():
            if rows.told:
                context.obj.tell(f"{name}: {rows.told}")
        owners = arrays.pop(OWNERS) if clients is not None and several is None else None
        packed = pack_shards(
            arrays,
            folder,
            shards=shards,
            compression=compression,
            overwrite=overwrite,
            shuffle=shuffle,
            stratify=stratify,
            validation=validation,
            clients=several if owners is None else owners,
            split=chosen,
            policy=rules,
            keys=keys,
            sealed=sealed,
        )
    context.obj.answer(as_json, packed_table(packed), packed_words(packed), folder)


def _policy_of(path, origin, readers):
    """Return the Policy that the options tell, None where they tell none."""
    from isthmus.errors import PolicyError
    from isthmus.shards.policy import Policy
    from isthmus.toml_files import read_toml

    if path is not None and (origin is not None or readers is not None):
        raise typer.BadParameter("goes without --origin and --readers", param_hint="--policy")
    if path is not None:
        return Policy.of(read_toml(path, PolicyError), path)
    if origin is None:
        if readers is not None:
            raise typer.BadParameter(
                "goes with --origin SITE, whose key signs it", param_hint="--readers"
            )
        return None
    names = None if readers is None else [name.strip() for name in readers.split(",")]
    if names is not None and not all(names):
        raise typer.BadParameter(
            f"must be names of sites, as in edge,cloud, not {readers!r}", param_hint="--readers"
        )
    return Policy.of({"origin": origin} | ({"readers": names} if names else {}), "--origin, --readers")


def _split_of(several, text):
    """Return the split into so many clients that `text` tells; BadParameter for what is none."""
    from isthmus.shards.clients import split_of

    if several is None and text != "iid":
        raise typer.BadParameter("goes with --clients NUMBER", param_hint="--split")
    if several is not None and several < 1:
        raise typer.BadParameter(f"must be at least 1, not {several}", param_hint="--clients")
    try:
        return split_of(text)
    except ValueError as problem:
        raise typer.BadParameter(str(problem), param_hint="--split") from None
