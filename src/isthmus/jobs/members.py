"""The ledger of a job: kept by all ranks, and written down by the one that writes the run's folder."""

from isthmus.links.agreement import broadcast_json
from isthmus.recovery.ledger import Ledger, Part
from isthmus.training.loop import Training
from isthmus.training.strategies.strategy import Member


def counts_samples(training):
    """Whether an epoch takes each sample once: not with clients or samples that are drawn, nor where
    sites make unequally many steps."""
    return type(training) is Training and type(training.member).walked is Member.walked


class Members:
    """Who takes part, and with which shards: told when it changes, and held to account every epoch.

    account: the job's `Account`, which writes lines where this rank does.
    """

    def __init__(self, tiers, training, account):
        self.tiers, self.training, self.account = tiers, training, account
        shards, recipe = training.local.manifest.shards, training.recipe
        self.ledger = Ledger([shard.samples for shard in shards], recipe.steps, recipe.seed)
        self.counts = counts_samples(training)

    def begin(self, shards_of_rank, **changed):
        """Have the ranks that are here begin with these shards after the step that is done.

        changed: `came_from` and `resumed` of the Part, where the ranks are others than before.
        """
        if "came_from" in changed:
            for each in self.training.member.sums:
                each.begin_anew()
        cluster, shards = self.tiers.cluster.to_table(), [list(each) for each in shards_of_rank]
        part = Part(self.training.state.step, cluster, shards, **changed)
        self.ledger.add(part)
        self._note(part)

    def note_again(self, found):
        """Write the lines of parts after the first `found`, which a rank that is gone has not."""
        for part in self.ledger.parts[found:]:
            self._note(part)

    def note_late(self, sites, seconds):
        """Write, and tell, that sites were not there after so many seconds, and others began."""
        self.account.note("late", sites=sites, seconds=seconds, never=self.ledger.never)
        self.account.flush()
        for words in self.unread():
            self.account.tell(f"while {', '.join(sites)} is not there, {words}")

    def unread(self):
        """Return what is to be told of shards that nobody can read: a sentence in a list, or nothing."""
        never = ", ".join(map(str, self.ledger.never))
        return [f"nobody can read shards {never}"] if never else []

    def _note(self, part):
        epoch = part.first // self.training.recipe.steps
        self.account.note("members", epoch=epoch, **part.told())

    def take_up(self, lines, shards_of_rank):
        """Go on from what the lines of an earlier start tell, where the job's rank 0 is. Collective."""
        lines = broadcast_json(self.tiers.world, lines, self.tiers.home)
        for line in lines:
            self.ledger.add(Part.of_line(line))
        if not lines:  # of a version that told none
            self.ledger.add(Part(0, self.tiers.cluster.to_table(), shards_of_rank))

    def take_rest(self):
        """Take up an epoch that began with other ranks, where one is under way. Collective."""
        rest = self.ledger.rest_of(self.tiers.world.rank)
        if rest is not None and rest.epoch == self.training.state.step // self.training.recipe.steps:
            self.training.take(self.training.local, rest)

    def go_on_without(self, notes, shards_of_rank):
        """Go on from a checkpoint that other ranks have written, with these shards. Collective.

        notes: those of the checkpoint, as `recovery.handover.adapted` gives them. Returns what is to be
        told.
        """
        self.begin(shards_of_rank, came_from=notes["came_from"], resumed=True)
        self.take_rest()
        new = sum(before is None for before in notes["came_from"])
        lost = f"; the residuals of {', '.join(notes['lost'])} are lost" if notes["lost"] else ""
        return (
            f"{len(notes['came_from'])} ranks go on, {new} of them new: what is left of the epoch is "
            f"shared anew{lost}"
        )

    def note_samples(self):
        """Write how often the samples of the epoch that has ended were taken."""
        self._note_samples(self.training.state.step // self.training.recipe.steps - 1)

    def note_samples_until(self, step):
        """Write that of all epochs that have ended by `step`, told elsewhere by the hub before."""
        steps = self.training.recipe.steps
        for epoch in range(step // steps):
            self._note_samples(epoch, step=(epoch + 1) * steps, epoch=epoch)

    def _note_samples(self, number, **when):
        if self.counts and self.account.folder is not None:
            self.account.note("samples", **when, **self.ledger.account(number))
