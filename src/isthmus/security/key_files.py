"""A site's keys in files: SITE.key, which its owner alone may read, and SITE.pub, which others get."""

import base64
import os
import re
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.cures import explained
from isthmus.errors import SecurityError
from isthmus.extras import how_to_install
from isthmus.security.public_keys import KEY_NBYTES, fingerprint, key_bytes, key_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

Folder = str | PathLike[str]
MOST_NBYTES = 4096
"""Of a file that can be a key."""
SEALING = "# isthmus-x25519 "
"""What a line of SITE.pub begins with that OpenSSH passes over: the key to seal files for."""


def library() -> Any:
    """Return `cryptography.hazmat.primitives`; SecurityError where it is not installed."""
    try:
        from cryptography.hazmat import primitives
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: F401
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519  # noqa: F401
        from cryptography.hazmat.primitives.ciphers import aead  # noqa: F401
        from cryptography.hazmat.primitives.kdf import hkdf  # noqa: F401
    except ImportError as problem:
        raise SecurityError(
            f"keys and sealed links need the extra isthmus[security] ({problem}); "
            f"{how_to_install('security')}"
        ) from None
    return primitives


def key_paths(folder: Folder, site: str) -> tuple[Path, Path]:
    """Return where the private and the public key of `site` lie in `folder`."""
    if not re.fullmatch(r"\w[\w.-]*", site):
        raise SecurityError(
            f"site {site!r}: cannot be the name of a key's file; name it with letters, digits, . - and _"
        )
    return Path(folder, f"{site}.key"), Path(folder, f"{site}.pub")


def make_keys(folder: Folder, site: str, replace: bool = False) -> str:
    """Make a pair of keys for `site` and return the public one's line.

    The private key is new at every call, and readable by its owner alone from its first byte on.
    replace: put it in the place of one that is there; else SecurityError if a file of the site is there.
    """
    primitives = library()
    private_path, public_path = key_paths(folder, site)
    if replace:
        read_private(folder, site)
    else:
        for path, what, cure in (
            (private_path, "there is a key already", f"`isthmus keys rotate {site}` makes another"),
            (public_path, "this site's key is elsewhere", "make keys where its leader runs"),
        ):
            if os.path.lexists(path):
                raise SecurityError(f"{path}: {what}; {cure}, or remove the file")
    private = primitives.asymmetric.ed25519.Ed25519PrivateKey.generate()
    text = private.private_bytes(
        primitives.serialization.Encoding.PEM,
        primitives.serialization.PrivateFormat.PKCS8,
        primitives.serialization.NoEncryption(),
    )
    line = key_line(private.public_key().public_bytes_raw(), site)
    with _told(Path(folder), "name another folder"):
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    check_place(folder)
    _write(private_path, text, 0o600, replace)
    _write(public_path, f"{line}\n{sealing_line(private, site)}\n".encode(), 0o644, replace)
    return line


def show_key(folder: Folder, site: str) -> str:
    """Return the line of the public key of `site`: of its private key where that is here."""
    private_path, public_path = key_paths(folder, site)
    key = read_public(folder, site)
    if os.path.lexists(private_path):
        key = read_private(folder, site).public_key().public_bytes_raw()
    if key is None:
        raise SecurityError(
            f"{public_path}: no such file; make it: isthmus keys new {site} --folder {folder}"
        )
    return key_line(key, site)


def read_private(folder: Folder, site: str) -> "Ed25519PrivateKey":
    """Return the private key of `site`. SecurityError unless it is its owner's alone, and a key.

    What the file holds is in no message.
    """
    primitives = library()
    path, _ = key_paths(folder, site)
    check_place(folder)
    with _told(path, f"make it where the site's leader runs: isthmus keys new {site} --folder {folder}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise SecurityError(
                f"{path}: is not a file of its own; put the key itself there, not a link"
            )
        if found.st_uid != os.geteuid():
            raise SecurityError(
                f"{path}: belongs to user {found.st_uid}, and this is user {os.geteuid()}; each user "
                "makes keys of their own"
            )
        if found.st_mode & 0o177:
            raise SecurityError(
                f"{path}: mode {stat.S_IMODE(found.st_mode):#o} lets others in; chmod 600 {path}, and "
                "make another key if somebody may have read it"
            )
        text = os.read(descriptor, MOST_NBYTES)
    finally:
        os.close(descriptor)
    key = None
    with suppress(Exception):  # what the library says of it may hold a part of it
        key = primitives.serialization.load_pem_private_key(text, None)
    if not isinstance(key, primitives.asymmetric.ed25519.Ed25519PrivateKey):
        raise SecurityError(f"{path}: is no private key as `isthmus keys new` makes it; make another")
    return key


def read_public(folder: Folder, site: str) -> bytes | None:
    """Return the 32 bytes of the public key of `site`; None where `folder` does not have it."""
    _, path = key_paths(folder, site)
    try:
        text = path.read_bytes()[:MOST_NBYTES].decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise SecurityError(f"{path}: {explained(problem, elsewhere='bring it there again')}") from None
    try:
        return key_bytes(text.partition("\n")[0])
    except ValueError as problem:
        raise SecurityError(f"{path}: {problem}; bring the site's .pub there again") from None


def read_sealing(folder: Folder, site: str) -> bytes:
    """Return the 32 bytes of the X25519 key for which files are sealed to `site`, from its SITE.pub.

    SecurityError where the file does not have it, or the site's own key has not signed it.
    """
    _, path = key_paths(folder, site)
    public = read_public(folder, site)
    if public is None:
        raise SecurityError(
            f"{path}: no such file; bring it there from site {site!r}, by a way that you trust"
        )
    text = path.read_bytes()[:MOST_NBYTES].decode("ascii", "replace")
    line = next((line for line in text.splitlines()[1:] if line.startswith(SEALING)), "")
    told = b""
    with suppress(ValueError):
        told = base64.b64decode(line.removeprefix(SEALING).split(" ")[0], validate=True)
    if not told:
        raise SecurityError(
            f"{path}: has no key to seal files for; it is of an earlier version: make others with "
            f"`isthmus keys rotate {site}`, where the private key is"
        )
    key, signature = told[:KEY_NBYTES], told[KEY_NBYTES:]
    try:
        library().asymmetric.ed25519.Ed25519PublicKey.from_public_bytes(public).verify(
            signature, _sealing_statement(key, site)
        )
    except SecurityError:
        raise
    except Exception:  # InvalidSignature, or no point of the curve
        raise SecurityError(
            f"{path}: the key to seal files for is not signed by the site's own; bring the site's .pub "
            "there again"
        ) from None
    return key


def sealing_line(private: "Ed25519PrivateKey", site: str) -> str:
    """Return what follows the public key of `site` in SITE.pub: the key to seal files for, signed."""
    key = sealing_private(private).public_key().public_bytes_raw()
    told = base64.b64encode(key + private.sign(_sealing_statement(key, site))).decode()
    return f"{SEALING}{told} {site}"


def sealing_private(private: "Ed25519PrivateKey") -> "X25519PrivateKey":
    """Return the X25519 key that opens what is sealed for a site, derived from its own.

    A process that has it leaves no core file.
    """
    primitives = library()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    derivation = primitives.kdf.hkdf.HKDF(primitives.hashes.SHA256(), 32, b"", b"isthmus x25519 1")
    secret = derivation.derive(private.private_bytes_raw())
    return primitives.asymmetric.x25519.X25519PrivateKey.from_private_bytes(secret)


def _sealing_statement(key, site):
    return b"isthmus x25519 1\0" + key + site.encode()


def check_place(folder: Folder) -> None:
    """Raise SecurityError where others could put a file of theirs in the place of a key."""
    with _told(Path(folder), "make keys with `isthmus keys new SITE --folder FOLDER`"):
        found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise SecurityError(f"{folder}: is not a folder; keys lie in a folder of their own")
    if found.st_uid not in (os.geteuid(), 0):
        raise SecurityError(
            f"{folder}: belongs to user {found.st_uid}, and this is user {os.geteuid()}; keep keys in a "
            "folder of your own"
        )
    if found.st_mode & 0o022:
        raise SecurityError(
            f"{folder}: mode {stat.S_IMODE(found.st_mode):#o} lets others write there; chmod go-w "
            f"{folder}"
        )


def sites_in(folder: Folder, ending: str = ".key") -> list[str]:
    """Return the sites with a file of that ending in `folder`, in order."""
    with _told(Path(folder), "make keys with `isthmus keys new SITE --folder FOLDER`"):
        names = sorted(os.listdir(folder))
    return [name.removesuffix(ending) for name in names if name.endswith(ending) and name != ending]


def check_keys(folder: Folder, site: str | None = None) -> list[dict[str, Any]]:
    """Return what each key in `folder`, or that of `site`, is: site, private, fingerprint.

    SecurityError at the first that is wrong.
    """
    check_place(folder)
    private = sites_in(folder)
    sites = sorted({*private, *sites_in(folder, ".pub")}) if site is None else [site]
    found = []
    for each in sites:
        public = read_public(folder, each)
        if each in private or public is None:
            own = read_private(folder, each).public_key().public_bytes_raw()
            _, path = key_paths(folder, each)
            if public != own:
                raise SecurityError(
                    f"{path}: is not the public key of {each}.key beside it; isthmus keys rotate {each} "
                    f"--folder {folder} makes both again"
                )
        assert public is not None
        found.append({"site": each, "private": each in private, "fingerprint": fingerprint(public)})
    if not found:
        raise SecurityError(f"{folder}: holds no keys; isthmus keys new SITE --folder {folder}")
    return found


def _write(path: Path, content: bytes, mode: int, replace: bool) -> None:
    """Write a new file, or one that takes the place of another, which nobody else can open meanwhile."""
    made = path.with_name(f"{path.name}.{os.getpid()}.partial") if replace else path
    before = os.umask(0o077)
    try:
        with _told(path, "name another folder"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(made, flags, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(descriptor)
                    os.fchmod(descriptor, mode)
                os.replace(made, path)
            except OSError:
                os.unlink(made)
                raise
    finally:
        os.umask(before)


@contextmanager
def _told(path: Path, cure: str) -> Iterator[None]:
    """Turn an OSError into a SecurityError that names `path`."""
    try:
        yield
    except OSError as problem:
        raise SecurityError(f"{path}: {explained(problem, elsewhere=cure)}") from None
