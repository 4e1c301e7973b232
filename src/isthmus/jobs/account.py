"""What a job has measured so far, and what it tells of it: lines, progress, and the summary."""

import itertools

from isthmus.compression.dense import Dense
from isthmus.folders.metrics import metrics_in_words, number_in_words, told_metrics
from isthmus.folders.record import left_out_sentence
from isthmus.folders.terms import RoundTerms, link_rounds, typical_terms
from isthmus.links.agreement import gather_json
from isthmus.registry import STAGES
from isthmus.testbed import on_testbed
from isthmus.training.loop import MEASURED
from isthmus.watching.links import LinkWatch


class Account:
    """The clock, the curves and the terms of a run; all ranks have one, the job's rank 0 fills it.

    folder: the RunFolder, where the job's rank 0 is; None elsewhere.
    seconds: of training so far; evaluation and checkpoints are not counted.
    measured: of each step so far, its terms and whether an exchange ended it.
    """

    def __init__(self, tiers, settings, plan, training, folder, tell):
        self.settings, self.plan, self.training = settings, plan, training
        self.folder, self.tell = folder, tell
        self.seconds, self.link_nbytes, self.loss = 0.0, 0, None
        self.sent_before = {"site": 0, "link": 0}  # by ranks that are here no more
        self.measured, self.evaluated = [], {}  # evaluated: set -> name -> number
        self.skipped, self.dropped, self.rounds_with_dropped = 0, 0, 0
        exchanges = settings.make_strategy().exchanges(training.recipe.total_steps)
        self.exchanged = training.member.exchanged(exchanges)
        self.slow_links = LinkWatch(tiers.cluster, plan.terms.get("links", 0.0))
        self.terms = RoundTerms(_leaders(tiers.cluster, settings.allreduce.algorithm))
        self._looked_at = 0  # of `measured`, by those who watch the links

    def note(self, kind, **values):
        """Write a line of metrics.jsonl, of the step that is done."""
        if self.folder is not None:
            state, steps = self.training.state, self.training.recipe.steps
            self.folder.note(kind, **({"step": state.step, "epoch": (state.step - 1) // steps} | values))

    def note_told(self, told):
        """Write a line for each kind of what a strategy tells: kind -> values."""
        for kind, values in told.items():
            self.note(kind, **values)
            if kind == "left_out":
                self.tell(left_out_sentence(values["sums"], self.training.tiers.cluster.names))

    def flush(self):
        """Have what was written be on the disk, where this rank writes."""
        if self.folder is not None:
            self.folder.flush()

    def take_up(self, recalled):
        """Go on from what the earlier part of a run has left."""
        self.seconds, self.loss, self.measured = recalled.seconds, recalled.loss, recalled.measured
        self.evaluated, self.dropped = recalled.evaluated, recalled.dropped
        self._looked_at = len(recalled.measured)

    def count_from(self, told):
        """Have bytes go on from what the earlier part of a run has told. Collective.

        told: its last "sent_nbytes", None where there is none.
        """
        counted = gather_json(self.training.tiers.world, self.training.member.sent_nbytes)
        if told is not None:
            for way in self.sent_before:
                self.sent_before[way] = max(0, told[way] - sum(each[way] for each in counted))

    def report(self, look=lambda of_rank: None):
        """Gather what all ranks measured since the last report, and write a line a step. Collective.

        look: shown what each rank measured of each of these steps, name -> float64[ranks].
        """
        rows, dropped = self.training.gather_rows(), self.training.gather_dropped()
        if rows is None or rows.shape[1] == 0:
            return
        state, recipe = self.training.state, self.training.recipe
        first = state.step - rows.shape[1] + 1
        for number in range(rows.shape[1]):
            of_rank = dict(zip(MEASURED, rows[:, number].T))
            self._note_step(first + number, of_rank)
            look(of_rank)
        self._note_dropped(dropped)
        self._look_at_links()
        self.folder.flush()
        loss = "not told" if self.settings.privacy.unit else number_in_words(self.loss)
        self.tell(
            f"step {state.step}/{recipe.total_steps}: loss {loss}, "
            f"{1e3 * typical_terms(self.measured)[1]:.1f} ms a step, "
            f"{self.link_nbytes / 1e6:.1f} MB over links",
            passing=True,
        )

    def _look_at_links(self):
        """Hold the rounds that have ended since the last look against the prediction."""
        new = self.measured[self._looked_at :]
        ends = [number for number, (_, exchanged) in enumerate(new, 1) if exchanged]
        if ends:
            self._looked_at += ends[-1]
            self.slow_links.look(self.training.state.step, link_rounds(new))

    def _note_step(self, step, of_rank):
        self.loss = of_rank["loss"].sum() / max(of_rank["samples"].sum(), 1)
        step_seconds = of_rank["step"][0]
        self.seconds += step_seconds
        terms = self.terms.of_step(of_rank, step in self.exchanged)
        self.measured.append((terms, step in self.exchanged))
        sent = {
            way: before + int(of_rank[f"sent_{way}_nbytes"].sum())
            for way, before in self.sent_before.items()
        }
        self.link_nbytes = sent["link"]
        self.folder.note(
            "step",
            step=step,
            epoch=(step - 1) // self.training.recipe.steps,
            seconds=self.seconds,
            loss=self.loss,
            step_seconds=step_seconds,
            terms=terms,
            exchanged=step in self.exchanged,
            sent_nbytes=sent,
            **self.training.told_of(step),
        )

    def note_skipped(self):
        """Tell of a step that was left out because a gradient, or their sum, was not finite."""
        self.note("non_finite", ranks=self.training.non_finite_ranks, action="skipped")
        self.skipped += 1
        if self.skipped <= 3:
            more = "; more of these are in metrics.jsonl" if self.skipped == 3 else ""
            self.tell(f"step {self.training.state.step}: skipped, {self.training.not_finite}{more}")

    def _note_dropped(self, dropped):
        """Tell of clients that were left out of their round because what they learnt was not finite."""
        for number, group in itertools.groupby(dropped, key=lambda each: each[0]):
            clients = [client for _, client in group]
            epoch = (number - 1) // self.training.recipe.steps
            self.folder.note("dropped", step=number, epoch=epoch, clients=clients)
            self.dropped += len(clients)
            self.rounds_with_dropped += 1
            if self.rounds_with_dropped <= 3:
                more = "; more of these are in metrics.jsonl" if self.rounds_with_dropped == 3 else ""
                self.tell(
                    f"round {number}: {len(clients)} clients dropped, whose change is not finite: "
                    f"{', '.join(map(str, clients[:8]))}{more}"
                )

    def note_evaluation(self, evaluated, best=False):
        """Tell what the test set, and the validation set, said at the end of an epoch.

        evaluated: "test" (and "validation") -> name -> value, as `evaluate` gives it. best: whether the
        validation set has liked no earlier epoch as well.
        """
        self.evaluated = evaluated
        clock = {"seconds": self.seconds, "link_nbytes": self.link_nbytes}
        words = f"test {metrics_in_words(evaluated['test'])}"
        self.note("evaluation", **clock, **told_metrics(evaluated["test"]))
        if "validation" in evaluated:
            self.note("validation", **clock, **told_metrics(evaluated["validation"]), best=best)
            words += (
                f"; validation {metrics_in_words(evaluated['validation'])}" + ", the best so far" * best
            )
        self.tell(f"epoch {self.training.state.step // self.training.recipe.steps}: {words}")

    def summary(self, digest, links, received):
        """Return what the run came to, predicted beside measured."""
        measured, step_seconds = typical_terms(self.measured)
        predicted = {**dict.fromkeys(STAGES, 0.0), **self.plan.terms}
        wire, size = self.settings.make_wires() or Dense(), self.training.model.size
        ratio = Dense().wire_nbytes(size) / wire.wire_nbytes(size)
        return {
            "outcome": "finished",
            "steps": self.training.state.step,
            "seconds": self.seconds,
            "emulated": ["links"] if on_testbed() else [],
            **told_metrics(self.evaluated.get("test", {})),
            "parameter_hash": digest,
            "received_nbytes": received,
            "links": links,
            "dense_link_nbytes": round(ratio * sum(link["sent_nbytes"] for link in links)),
            "terms": [
                {
                    "name": name,
                    "predicted_seconds": predicted[name],
                    "measured_seconds": measured.get(name, 0.0),
                }
                for name in STAGES
            ],
            "step": {"predicted_seconds": self.plan.step_seconds, "measured_seconds": step_seconds},
            **({"dropped_clients": self.dropped} if self.settings.plays_clients else {}),
        }


def _leaders(cluster, algorithm):
    """Return the ranks whose time of an exchange counts; None where all ranks' does."""
    if algorithm != "hierarchical" or len(cluster.sites) == 1:
        return None
    leaders = [cluster.ranks_of_site(name)[0] for name in cluster.names]
    if len(leaders) > 2:  # the top of the tree waits for one way, the others for both
        return [rank for rank, parent in zip(leaders, cluster.tree.parents) if parent is not None]
    return leaders
