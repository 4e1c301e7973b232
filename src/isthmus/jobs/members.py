"""The ledger of a job: kept by all ranks, and written down by the one that writes the run's folder."""

from isthmus.links.agreement import broadcast_json
from isthmus.recovery.ledger import Ledger, Part


class Members:
    """Who takes part, and with which shards: told when it changes, and held to account every epoch.

    account: the job's `Account`, which writes lines where this rank does.
    """

    def __init__(self, tiers, training, account):
        self.tiers, self.training, self.account = tiers, training, account
        shards, recipe = training.local.manifest.shards, training.recipe
        self.ledger = Ledger([shard.samples for shard in shards], recipe.steps, recipe.seed)
        self.counts = not hasattr(
            training, "turn"
        )  # a round takes the samples of clients that are drawn

    def begin(self, shards_of_rank):
        """Have the ranks that are here begin with these shards after the step that is done."""
        cluster = self.tiers.cluster.to_table()
        part = Part(self.training.state.step, cluster, [list(shards) for shards in shards_of_rank])
        self.ledger.add(part)
        self.account.note("members", epoch=part.first // self.training.recipe.steps, **part.told())

    def take_up(self, lines, shards_of_rank):
        """Go on from what the lines of an earlier start tell, where the job's rank 0 is. Collective."""
        lines = broadcast_json(self.tiers.world, lines, self.tiers.home)
        for line in lines:
            self.ledger.add(Part.of_line(line))
        if not lines:  # of a version that told none
            self.ledger.add(Part(0, self.tiers.cluster.to_table(), shards_of_rank))

    def note_samples(self):
        """Write how often the samples of the epoch that has ended were taken."""
        if self.counts and self.account.folder is not None:
            epoch = self.training.state.step // self.training.recipe.steps - 1
            self.account.note("samples", **self.ledger.account(epoch))
