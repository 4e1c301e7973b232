"""Who may read which shard: what the sites where samples were born say, and sign with their keys."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from isthmus.errors import PolicyError
from isthmus.security.at_rest import FileKey
from isthmus.security.key_files import read_private, read_sealing
from isthmus.shards.manifest import Count, Manifest, Site
from isthmus.toml_files import FrozenModel, check_table

Keys = str | os.PathLike[str]
PURPOSE = b"shard"
"""What keys of files are wrapped for."""
Sites = Annotated[tuple[Site, ...], Field(min_length=1)]


class SomeShards(FrozenModel):
    """Shards by their numbers, of which something else holds than of the others."""

    numbers: Annotated[tuple[Count, ...], Field(min_length=1)]
    origin: Site | None = None
    readers: Sites | None = None


class Policy(FrozenModel):
    """Where samples were born, and which sites may read them: of all shards, and of some.

    readers: left out, the origin alone.
    """

    origin: Site
    readers: Sites | None = None
    shards: tuple[SomeShards, ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Any], source: Keys) -> Self:
        """Return the policy in `table`; PolicyError names `source` if it is wrong."""
        policy = check_table(cls, dict(table), source, PolicyError)
        numbers = [number for some in policy.shards for number in some.numbers]
        if twice := {number for number in numbers if numbers.count(number) > 1}:
            raise PolicyError(f"{source}: shard {min(twice)} is named twice; name it once")
        return policy

    @property
    def origins(self) -> list[str]:
        """The sites that have to sign."""
        return list(dict.fromkeys([self.origin, *(some.origin or self.origin for some in self.shards)]))

    def publics(self, keys: Keys) -> dict[str, bytes]:
        """Return the key to seal files for of every reader, from its .pub in the folder `keys`."""
        folder = Path(keys).expanduser()
        readers = {name for some in self.shards for name in some.readers or ()}
        readers |= {*self.origins, *(self.readers or ())}
        return {name: read_sealing(folder, name) for name in sorted(readers)}

    def check(self, keys: Keys, shards: int, apart: bool) -> None:
        """Raise unless every origin can sign with its key in the folder `keys`, and all numbers exist.

        apart: whether samples are set apart for validation, of which none could be told from the others.
        """
        for origin in self.origins:
            read_private(Path(keys).expanduser(), origin)
        most = max((number for some in self.shards for number in some.numbers), default=0)
        if most >= shards:
            raise PolicyError(
                f"the policy names shard {most}, and there are shards 0 to {shards - 1}; name one of "
                "these"
            )
        if self.shards and apart:
            raise PolicyError(
                "the policy tells of some shards, and what is set apart for validation may be theirs; "
                "pack that by itself, or give one policy for all"
            )

    def of_shard(self, number: int) -> tuple[str, tuple[str, ...]]:
        """Return the origin and the readers of shard `number`."""
        some = next((some for some in self.shards if number in some.numbers), None)
        if some is None:
            return self.origin, self.readers or (self.origin,)
        if some.origin is not None:
            return some.origin, some.readers or (some.origin,)
        return self.origin, some.readers or self.readers or (self.origin,)

    def signed(
        self,
        manifest: Manifest,
        keys: Keys,
        file_keys: Sequence[FileKey] | None,
        publics: Mapping[str, bytes],
    ) -> Manifest:
        """Return the manifest with this policy, signed by its origins.

        file_keys: of the files, which are wrapped for their readers with the `publics` of those; None
        where they are not sealed.
        """
        shards = []
        for number, shard in enumerate(manifest.shards):
            origin, readers = self.of_shard(number)
            told: dict[str, Any] = {"origin": origin, "readers": readers}
            if file_keys is not None:
                of_readers = {name: publics[name] for name in readers}
                told["sealed"] = file_keys[number].wraps(of_readers, PURPOSE)
            shards.append(shard.model_copy(update=told))
        whole = manifest.model_copy(update={"shards": tuple(shards)})
        signatures = {
            origin: read_private(Path(keys).expanduser(), origin).sign(whole.statement).hex()
            for origin in dict.fromkeys(self.of_shard(number)[0] for number in range(len(shards)))
        }
        return whole.model_copy(update={"signatures": signatures})
