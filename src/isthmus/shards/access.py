"""What a process may read of a set with a policy, once that is verified, and what may go to whom."""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import PolicyError, SecurityError
from isthmus.links.agreement import broadcast_json, together
from isthmus.security.at_rest import DamagedError, FileKey, unwrap
from isthmus.security.key_files import (
    key_paths,
    library,
    read_private,
    read_public,
    sealing_private,
    sites_in,
)
from isthmus.shards.manifest import Manifest
from isthmus.shards.policy import PURPOSE

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster
    from isthmus.links.tiers import Tiers

Keys = str | os.PathLike[str]


@dataclass(frozen=True)
class Access:
    """What a process may read of a set whose policy has been verified: that of some sites.

    file_keys: of the files that are sealed for them, by the number of the shard.
    """

    sites: frozenset[str]
    file_keys: Mapping[int, FileKey] = field(default_factory=dict, repr=False, compare=False)

    def may_read(self, manifest: Manifest, number: int) -> bool:
        """Whether shard `number` may be read here."""
        return not self.sites.isdisjoint(manifest.shards[number].readers or ())

    def require(self, manifest: Manifest, number: int, source: Keys) -> None:
        """Raise PolicyError where shard `number` of the set in `source` may not be read here."""
        if not self.may_read(manifest, number):
            shard = manifest.shards[number]
            raise PolicyError(
                f"{source}/{shard.file}: may be read by {_in_words(shard.readers)} alone, says "
                f"{shard.origin!r}, where it was born; "
                + (f"this is {_in_words(self.sites)}" if self.sites else "no key of such a site is here")
                + ": read it there, or have it packed with more --readers"
            )


def access_of(manifest: Manifest, source: Keys, keys: Keys | None, site: str | None = None) -> Access:
    """Return what a process may read of a set, once its policy is found to be what its origins signed.

    keys: the folder with the .pub of every origin, and with the private keys of the sites as which the
    process reads; of `site` alone where that is given. SecurityError where a key is not there,
    PolicyError where an origin has signed something else.
    """
    origins = manifest.signatures or {}
    if keys is None:
        raise SecurityError(
            f"{source}: has a policy, signed by {_in_words(origins)}, and nobody knows whose key that "
            "is; name the folder of keys ([security] keys, --keys or keys=)"
        )
    keys = Path(keys).expanduser()
    for origin, signature in origins.items():
        _verify(manifest, source, keys, origin, signature)
    readers = {name for shard in manifest.shards for name in shard.readers or ()}
    here = {*sites_in(keys)} if site is None else {site}
    mine = frozenset(here & readers)
    file_keys: dict[int, FileKey] = {}
    for name in sorted(mine):
        private = sealing_private(read_private(keys, name))
        for number, shard in enumerate(manifest.shards):
            if shard.sealed and name in shard.sealed and number not in file_keys:
                file_keys[number] = _opened(shard, name, private, source)
    return Access(mine, file_keys)


def _opened(shard, site, private, source):
    """Return the key of a shard's file, which is wrapped for `site`."""
    try:
        return FileKey(unwrap(bytes.fromhex(shard.sealed[site]), site, private, PURPOSE))
    except DamagedError:
        raise SecurityError(
            f"{source}: {shard.file} is sealed for another key of site {site!r} than the one here; "
            "bring the key for which it was packed, or have it packed again with the site's new .pub"
        ) from None


def digest_of(manifest: Manifest, access: Access | None, number: int, name: str) -> Any:
    """Return what takes the digest of array `name` of shard `number`, as the manifest has it.

    SHA-256, or of sealed shards an HMAC under the file's key, by which nobody else can tell equal ones.
    """
    if manifest.shards[number].sealed is None:
        return hashlib.sha256()
    assert access is not None
    return access.file_keys[number].digest(name)


def admitted(tiers: "Tiers", manifest: Manifest, source: Keys, keys: Keys | None) -> Access | None:
    """Return what this rank may read of a set; None where the set has no policy. Collective.

    Each site's leader verifies the policy with the keys on its own host, and reads as its site. What it
    has of the keys of files it tells the ranks of its site.
    """
    if manifest.signatures is None:
        return None
    leads = tiers.site.rank == 0
    mine = together(
        tiers.world, lambda: access_of(manifest, source, keys, tiers.site_name) if leads else None
    )
    told = mine and [
        sorted(mine.sites),
        {str(number): key.secret.hex() for number, key in mine.file_keys.items()},
    ]
    sites, file_keys = broadcast_json(tiers.site, told)
    return mine or Access(
        frozenset(sites), {int(number): FileKey(bytes.fromhex(key)) for number, key in file_keys.items()}
    )


def _verify(manifest, source, keys, origin, signature):
    """Raise unless `origin` has signed what the manifest says."""
    _, path = key_paths(keys, origin)
    public = read_public(keys, origin)
    if public is None:
        raise SecurityError(
            f"{path}: no such file, and {source} has a policy that site {origin!r} has signed; bring "
            "its .pub there by a way that you trust"
        )
    try:
        library().asymmetric.ed25519.Ed25519PublicKey.from_public_bytes(public).verify(
            bytes.fromhex(signature), manifest.statement
        )
    except SecurityError:
        raise
    except Exception:  # InvalidSignature, or no point of the curve
        raise PolicyError(
            f"{source}: is not what site {origin!r} has signed: its policy, or what it tells of a "
            f"shard, was changed, or {path} is not the key that signed it; fetch the set again, or pack "
            "it there"
        ) from None


def check_places(
    tiers: "Tiers", manifest: Manifest, shards_of_rank: Collection[Collection[int]], source: str
) -> None:
    """Raise PolicyError, which begins with `source`, where a rank would hold what it may not read."""
    if manifest.signatures is None:
        return
    cluster = tiers.cluster
    for rank, numbers in enumerate(shards_of_rank):
        name = cluster.names[cluster.site_of_rank[rank]]
        for number in numbers:
            shard = manifest.shards[number]
            if name not in (shard.readers or ()):
                raise PolicyError(
                    f"{source}: {shard.file} (shard {number}) would go to rank {rank} of site {name!r}, "
                    f"and its origin {shard.origin!r} lets {_in_words(shard.readers)} alone read it; "
                    "plan again, or have it packed with more --readers"
                )


def check_crossing(tiers: "Tiers", manifest: Manifest, sources: Mapping[int, int], rank: int) -> None:
    """Raise PolicyError where sealed shards would come to `rank` over a link that is clear.

    sources: the rank that each of them comes from.
    """
    if not manifest.sealed or tiers.sealed:
        return
    site_of_rank = tiers.cluster.site_of_rank
    for number, source in sources.items():
        if site_of_rank[source] != site_of_rank[rank]:
            raise PolicyError(
                f"{manifest.shards[number].file} (shard {number}) is sealed, and would go from rank "
                f"{source} to rank {rank} of another site over a link that is clear; set "
                'link = "sealed" under [security], or have its folder where that site can see it'
            )


def readers_among(
    cluster: "Cluster", manifest: Manifest, number: int, ranks: list[int], target: int
) -> list[int]:
    """Return those of `ranks`, who see the folder, that may send shard `number` to rank `target`.

    PolicyError where none may.
    """
    if manifest.signatures is None:
        return ranks
    shard, name_of = manifest.shards[number], [cluster.names[site] for site in cluster.site_of_rank]
    able = [rank for rank in ranks if name_of[rank] in (shard.readers or ())]
    if not able:
        raise PolicyError(
            f"{shard.file} (shard {number}) is for rank {target} of site {name_of[target]!r}, which "
            "does not see its folder, and of those that do, "
            f"{_in_words({name_of[rank] for rank in ranks})}, none may read it, says {shard.origin!r}, "
            f"where it was born; have the folder where {_in_words(shard.readers)} can see it"
        )
    return able


def able_to_hold(tiers: "Tiers", manifest: Manifest, number: int, seeing: Collection[int]) -> list[int]:
    """Return the ranks that may hold shard `number` and can get it from those `seeing` the folder."""
    cluster = tiers.cluster
    if manifest.signatures is None:
        return [*range(cluster.size)]
    shard, site_of_rank = manifest.shards[number], cluster.site_of_rank
    able = [
        rank for rank, site in enumerate(site_of_rank) if cluster.names[site] in (shard.readers or ())
    ]
    if shard.sealed is None or tiers.sealed:
        return [] if {*able}.isdisjoint(seeing) else able
    near = {site_of_rank[rank] for rank in seeing}  # sealed shards cross no clear link
    return [rank for rank in able if site_of_rank[rank] in near]


def _in_words(names):
    return " and ".join(repr(name) for name in sorted(names or ()))
