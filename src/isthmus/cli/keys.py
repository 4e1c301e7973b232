"""`isthmus keys`: make, show, check and replace the keys of sites."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, Verbs

Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name in the cluster file.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where keys lie.")]
KEYS = Path("keys")

keys = Verbs(no_args_is_help=True, help="Make, show, check and replace the keys of sites.")


@keys.command()
def new(context: typer.Context, site: Site, folder: Folder = KEYS, as_json: AsJson = False):
    """Make a site's keys, on its leader's host: SITE.key stays there, SITE.pub goes to the others."""
    from isthmus.security.key_files import make_keys

    _tell(context, as_json, folder, site, make_keys(folder, site))


@keys.command()
def show(context: typer.Context, site: Site, folder: Folder = KEYS, as_json: AsJson = False):
    """Show a site's public key, as the cluster file takes it, and its fingerprint."""
    from isthmus.security.key_files import show_key

    _tell(context, as_json, folder, site, show_key(folder, site))


@keys.command()
def check(
    context: typer.Context,
    site: Annotated[
        str | None, typer.Argument(metavar="[SITE]", help="One site; else all.", show_default=False)
    ] = None,
    folder: Folder = KEYS,
    as_json: AsJson = False,
):
    """Look whether keys are whole, and their owner's alone."""
    from isthmus.security.key_files import check_keys

    found = check_keys(folder, site)
    lines = [
        f"{each['site']}: {each['fingerprint']}, {'private and public' if each['private'] else 'public'}"
        for each in found
    ]
    context.obj.answer(as_json, {"folder": str(folder), "keys": found}, lines)


@keys.command()
def rotate(context: typer.Context, site: Site, folder: Folder = KEYS, as_json: AsJson = False):
    """Replace a site's keys; the old private one is gone."""
    from isthmus.security.key_files import make_keys

    _tell(context, as_json, folder, site, make_keys(folder, site, replace=True))


def _tell(context, as_json, folder, site, line):
    """Say what a site's public key is, and where it goes."""
    from isthmus.security.public_keys import fingerprint, key_bytes

    told = {"site": site, "public_key": line, "fingerprint": fingerprint(key_bytes(line))}
    words = [
        f'public_key = "{line}"',
        f"{told['fingerprint']}: compare it where {folder / site}.pub is brought to the other sites",
    ]
    context.obj.answer(as_json, told, words, folder)
