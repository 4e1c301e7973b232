"""`[security]` of a run's settings: what is kept from those between the sites, and from later hands."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from isthmus.errors import SecurityError
from isthmus.toml_files import FrozenModel


class LinkSecurity(FrozenModel):
    """link: "sealed": all that crosses between sites is encrypted and cannot be changed unnoticed.
    keys: the folder of a site's keys, on its leader's own host.
    """

    link: Literal["clear", "sealed"] = "clear"
    keys: Path | None = None

    @model_validator(mode="after")
    def _sealing_needs_keys(self):
        if self.link == "sealed" and self.keys is None:
            raise ValueError(
                'link = "sealed" needs keys, the folder with the key of a site: `isthmus keys new SITE` '
                "makes one"
            )
        return self

    def located(self, folder):
        """Return these settings with paths taken from `folder`; ~ stays each leader's own home."""
        paths = {name: path for name, path in self if isinstance(path, Path)}
        return self.model_copy(
            update={
                name: (folder / path).resolve()
                for name, path in paths.items()
                if path.parts[:1] != ("~",)
            }
        )

    @property
    def keys_of_links(self):
        """The folder of keys where links are sealed; None where they are clear."""
        return self.keys if self.link == "sealed" else None


class SecuritySettings(LinkSecurity):
    """What is kept from those between the sites.

    link, keys: as in LinkSecurity. token: a file with the secret of those who may join, where sites are
    jobs of their own.
    record: "chained": each line of metrics.jsonl has a hash of all before it, and each site keeps the
    last; "signed": and signs it.
    """

    token: Path | None = None
    record: Literal["plain", "chained", "signed"] = "plain"

    @model_validator(mode="after")
    def _signing_needs_keys(self):
        if self.record == "signed" and self.keys is None:
            raise ValueError('record = "signed" needs keys, the folder with the key of a site')
        return self

    def keep_keys_out_of(self, folders, source):
        """Raise SecurityError where keys would lie in what is copied, shown or sent to others.

        folders: of runs and data. source: what the settings are from.
        """
        for name, path in {"keys": self.keys, "token": self.token}.items():
            for folder in folders if path is not None else ():
                if path.expanduser().is_relative_to(folder):
                    raise SecurityError(
                        f"{source}: security.{name} is in {folder}, which others are given; keep keys "
                        "in a folder of their own"
                    )
