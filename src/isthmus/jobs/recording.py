"""What sites keep of a run's record while it goes on."""

from isthmus.folders.statements import state, stated
from isthmus.links.agreement import from_root, together


class Recording:
    """Asked at every checkpoint and at the end. security: the settings' [security]."""

    def __init__(self, tiers, security, path):
        self.tiers, self.path = tiers, path
        self.chained = security.record != "plain"
        self.keys = security.keys.expanduser() if security.record == "signed" else None

    def state(self, folder, step):
        """Have each site's leader state the last line that was written. Collective.

        folder: the RunFolder, where the job's rank 0 is.
        """
        if not self.chained:
            return
        tiers = self.tiers

        def last_line():
            folder.flush()
            return stated(self.path, step, folder.written, folder.chain)

        told = from_root(tiers.world, last_line, tiers.home)
        leads = tiers.site.rank == 0
        together(
            tiers.world, lambda: state(self.path, tiers.site_name, told, self.keys) if leads else None
        )
