"""What each site keeps of a run's record: how far it was, and its last hash, signed where that is asked.

Each leader writes `record/SITE.json` into the run's folder as its own host has it.
"""

from pathlib import Path

from isthmus.errors import RecordError, SettingsError
from isthmus.files import write_text
from isthmus.folders.chain import BEGINNING, file_hashes, read_chain
from isthmus.folders.contents import Count, Provenance, Table
from isthmus.folders.reading import read_table
from isthmus.folders.seals import sealed
from isthmus.json_text import dumps
from isthmus.security.key_files import key_paths, library, read_private, read_public

FOLDER = "record"


class Statement(Table):
    """What a site states; `signature` in hexadecimal digits, None where nobody signs."""

    run: str
    site: str
    step: Count
    lines: Count
    chain: str
    files: dict[str, str]
    signature: str | None


class Statements(Table):
    """record/SITE.json, oldest first."""

    statements: list[Statement]


def state(folder, site, told, keys=None):
    """Add what the site states to its file; keys: the folder with the key that it signs with, or None.

    told: run, step, lines, chain and files. What it stated of lines that were written anew is dropped.
    """
    path = _path(folder, site)
    before = read_table(path, Statements)["statements"] if path.exists() else []
    made = {**told, "site": site}
    signature = None if keys is None else read_private(keys, site).sign(_words(made)).hex()
    kept = [each for each in before if each["lines"] < told["lines"]]
    write_text(path, sealed({"statements": [*kept, {**made, "signature": signature}]}, indent=1))


def is_chained(folder):
    """Whether the settings of the run in `folder` have its lines be chained."""
    settings = read_table(Path(folder, "run.json"), Provenance)["settings"]
    return settings.get("security", {}).get("record", "plain") != "plain"


def verify_record(folder, keys=None):
    """Return what the record of the run in `folder` is worth: lines, kept_lines, sites and signed.

    kept_lines: how many of the lines sites have kept the hash of. signed: whether it was held against
    keys.
    keys: the folder with the .pub of sites that are believed; None: nobody's signature is asked for.
    RecordError names the first line that is not what was written, or a file that is not, or a cut end.
    """
    folder = Path(folder)
    hashes, path = read_chain(folder / "metrics.jsonl"), folder / "metrics.jsonl"
    sites, most = [], 0
    for file in sorted((folder / FOLDER).glob("*.json")):
        try:
            statements = read_table(file, Statements)["statements"]
        except SettingsError as problem:
            raise RecordError(str(problem)) from None
        right = 0
        for each in statements:
            if keys is not None:
                _check_signature(file, each, keys)
            if each["site"] != file.stem or each["run"] != statements[0]["run"]:
                raise RecordError(f"{file}: is of site {each['site']!r} or another run; bring it back")
            if each["lines"] > len(hashes):
                raise RecordError(
                    f"{path}: its end is missing: it has {len(hashes)} lines, and site {file.stem!r} "
                    f"has seen {each['lines']}; compare with a copy that another site has kept"
                )
            if each["chain"] != (hashes[each["lines"] - 1] if each["lines"] else BEGINNING):
                raise RecordError(
                    f"{path}: one of the lines {right + 1} to {each['lines']} is not what site "
                    f"{file.stem!r} has seen; compare with a copy that another site has kept"
                )
            right = each["lines"]
        _check_files(folder, file.stem, statements[-1]["files"] if statements else {})
        sites.append(file.stem)
        most = max(most, right)
    if keys is not None and not sites:
        raise RecordError(f"{folder / FOLDER}: no site has signed this record; fetch the folder again")
    return {"lines": len(hashes), "kept_lines": most, "sites": sites, "signed": keys is not None}


def stated(folder, step, lines, chain):
    """Return what all sites state of the run in `folder` now."""
    return {
        "run": Path(folder).absolute().name,
        "step": step,
        "lines": lines,
        "chain": chain,
        "files": file_hashes(folder),
    }


def _check_signature(file, statement, keys):
    site, words = statement["site"], {**statement}
    signature, public = words.pop("signature"), read_public(keys, site)
    if public is None:
        _, path = key_paths(keys, site)
        raise RecordError(f"{path}: no such file, and {file} is of site {site!r}; bring its .pub there")
    key = library().asymmetric.ed25519.Ed25519PublicKey.from_public_bytes(public)
    try:
        key.verify(bytes.fromhex(signature), _words(words))
    except Exception:  # InvalidSignature, or no signature at all
        raise RecordError(
            f"{file}: is not signed by site {site!r} as it stands; compare with the site's own copy"
        ) from None


def _check_files(folder, site, files):
    found = file_hashes(folder, tuple(files))
    for name, told in files.items():
        if found.get(name) != told:
            raise RecordError(
                f"{folder / name}: is not what site {site!r} has seen; compare with a copy of the folder"
            )


def _path(folder, site):
    key_paths(folder, site)  # which refuses what cannot be a file's name
    return Path(folder, FOLDER, f"{site}.json")


def _words(told):
    return b"isthmus record 1\0" + dumps(dict(sorted(told.items()))).encode()
