"""Who goes on where sites, the hub among them, are gone: the rule in all orders of events."""

from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import pytest

from isthmus.links.quorum import (
    Quorum,
    Vote,
    earliest,
    may_let_in,
    may_vote,
    next_number,
    those_who_go_on,
)


class Process(NamedTuple):
    """A start of a site. made: by which change each of its steps was made."""

    vote: Vote
    made: tuple[int, ...]


class Change(NamedTuple):
    """What a hub has decided. hub: index of its process; members: of processes; begin: steps before."""

    hub: int
    members: frozenset[int]
    new: int | None
    begin: tuple[int, ...]


class State(NamedTuple):
    """ballots: (hub, number) -> votes that were given. reached: (change, process) -> steps, the part of
    whose next one it has sent. settled: the longest steps that all members of a change know of."""

    processes: tuple[Process, ...]
    changes: tuple[tuple[int, Change], ...]
    ballots: tuple[tuple[tuple[int, int], frozenset[tuple[int, Process]]], ...]
    reached: tuple[tuple[tuple[int, int], int], ...]
    settled: tuple[int, ...]


class Model:
    """Sites that make steps, vote and decide whenever they may; what is late or lost never happens.

    A site that has died, is frozen or cut off does nothing more for as long as that is so, and another
    start of it may come; what it has sent may still arrive. So neither has events of its own: all
    orders in which the others go on are there. numbers, steps: where a history ends. starts: a second
    one of each of these sites may come. late: sites without which the others begin, and which may come.
    """

    go_on = staticmethod(those_who_go_on)
    may_vote = staticmethod(may_vote)
    may_let_in = staticmethod(may_let_in)

    def __init__(self, ranks, numbers, steps, starts=(), late=()):
        self.sites = {f"site{number}": each for number, each in enumerate(ranks)}
        self.quorum, self.numbers, self.steps = Quorum(self.sites), numbers, steps
        self.starts, self.late = [*starts], [*late]

    def begin(self):
        everyone = [(site, "1") for site in self.sites] + [(site, "2") for site in self.starts]
        there = [
            number
            for number, (site, start) in enumerate(everyone)
            if start == "1" and site not in self.late
        ]
        return State(
            tuple(
                Process(Vote(site, start, 0 if number in there else -1, frozenset(), 0), ())
                for number, (site, start) in enumerate(everyone)
            ),
            ((0, Change(0, frozenset(there), None, ())),),
            (),
            tuple(((0, each), 0) for each in there),
            (),
        )

    def look_at_all(self):
        """Return all states that can be reached; AssertionError where one is wrong."""
        first = self.begin()
        seen, waiting = {first}, [first]
        while waiting:
            for after in map(self.tidy, self.after(waiting.pop())):
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return seen

    def tidy(self, state):
        """Return the state without what can have no effect any more."""
        bound = {process.vote.promised for process in state.processes}
        decided = {(change.hub, number) for number, change in state.changes}
        return state._replace(
            ballots=tuple(
                (of, votes)
                for of, votes in state.ballots
                if of not in decided and state.processes[of[0]].vote.promised == of[1]
            ),
            reached=tuple(each for each in state.reached if each[0][0] in bound),
            changes=tuple(
                (number, change if number in bound else Change(change.hub, frozenset(), None, ()))
                for number, change in state.changes
            ),
        )

    def after(self, state):
        changes = dict(state.changes)
        for number, process in enumerate(state.processes):
            if process.vote.taken >= 0:
                yield from self.step(state, changes, number, process)
                yield from self.vote(state, number, process)
            yield from self.take(state, changes, number, process)
        yield from self.decide(state, changes)

    def step(self, state, changes, number, process):
        """Have a process end a step, for which it needs a part from each member of its change."""
        of, count, reached = process.vote.taken, len(process.made), dict(state.reached)
        if process.vote.promised != of or count == self.steps:
            return
        if any(reached.get((of, each), -1) < count for each in changes[of].members):
            return
        made = (*process.made, of)
        settled = made[:-1]
        short, long = sorted((settled, state.settled), key=len)
        assert long[: len(short)] == short, f"two histories: {long} and {short}"
        reached[of, number] = max(reached.get((of, number), -1), len(made))
        yield self.changed(state, number, process._replace(made=made))._replace(
            settled=long, reached=tuple(sorted(reached.items()))
        )

    def vote(self, state, number, process):
        """Have a process vote for itself, or for another one that does."""
        ballots = dict(state.ballots)
        own = process.vote
        for to in {next_number([own.promised, each]) for each in range(self.numbers)}:
            if to <= self.numbers and self.may_vote(own.promised, to):
                given = {(number, to): frozenset([(number, process)])}
                yield self.voted(state, number, process, to, ballots | given)
        for (hub, to), votes in ballots.items():
            if hub != number and self.may_vote(own.promised, to):
                given = {(hub, to): votes | {(number, process)}}
                yield self.voted(state, number, process, to, ballots | given)

    def voted(self, state, number, process, to, ballots):
        vote = replace(process.vote, promised=to)
        return self.changed(state, number, process._replace(vote=vote))._replace(
            ballots=tuple(sorted(ballots.items(), key=lambda item: item[0]))
        )

    def decide(self, state, changes):
        """Have a process whose voters are enough decide; some of their votes may not have come."""
        for (hub, number), votes in state.ballots:
            others = [vote for vote in votes if vote[0] != hub]
            own = [vote for vote in votes if vote[0] == hub]
            for count in range(len(others) + 1):
                for some in combinations(others, count):
                    yield from self.decided(state, changes, hub, number, [*own, *some])

    def decided(self, state, changes, hub, number, votes):
        stay = self.go_on([process.vote for _, process in votes])
        members = {each: process for each, process in votes if process.vote in stay}
        if hub not in members or not self.quorum.is_reached([vote.site for vote in stay]):
            return
        assert number not in changes, f"two changes of one number, {number}"
        begin = earliest([(len(each.made), each.made) for each in members.values()])[1]
        for each in members.values():
            assert each.made[: len(begin)] == begin, f"{each.made} and {begin}"
            assert len(each.made) <= len(begin) + 1, f"{each.made} is two steps ahead of {begin}"
        here = {vote.site for vote in stay}
        before = {site for site, _ in stay[0].members} or {*self.sites} - {*self.late}
        open_to = self.may_let_in([process.vote.taken for _, process in votes], before, here)
        comes = [
            each
            for each, process in enumerate(state.processes)
            if open_to and process.vote.taken < 0 and process.vote.site not in here
        ]
        for new in (None, *comes):
            change = Change(hub, frozenset([*members, *([] if new is None else [new])]), new, begin)
            yield self.taken(
                state._replace(changes=tuple(sorted((changes | {number: change}).items()))),
                number,
                change,
                hub,
            )

    def take(self, state, changes, number, process):
        """Have a process hear what was decided; one that is new is told by the hub all that was made."""
        for to, change in changes.items():
            if number not in change.members or process.vote.taken >= to:
                continue
            if number == change.new:
                if state.processes[change.hub].vote.taken == to:
                    yield self.taken(state, to, change, number)
            elif process.vote.promised == to:
                yield self.taken(state, to, change, number)

    def taken(self, state, to, change, number):
        votes = [state.processes[each].vote for each in change.members]
        members = frozenset((vote.site, vote.start) for vote in votes)
        vote = replace(state.processes[number].vote, taken=to, promised=to, members=members)
        reached = dict(state.reached) | {(to, number): len(change.begin)}
        return self.changed(state, number, Process(vote, change.begin))._replace(
            reached=tuple(sorted(reached.items()))
        )

    def changed(self, state, number, process):
        processes = [*state.processes]
        processes[number] = process
        return state._replace(processes=tuple(processes))


@pytest.mark.parametrize(
    ("ranks", "numbers", "steps", "starts", "late"),
    [
        ((2, 1, 1), 2, 1, [], []),
        ((1, 1, 1), 2, 1, ["site2"], []),
        ((1, 1, 1), 2, 1, [], ["site2"]),
        ((1, 1, 1, 1), 1, 2, [], []),
        pytest.param((1, 1, 1, 1, 1), 1, 1, [], [], marks=pytest.mark.slow),
    ],
)
def test_in_no_order_of_events_are_there_two_histories(ranks, numbers, steps, starts, late):
    """And there are some in which the others go on without the first hub, and let another start in, or
    one that was late."""
    found = Model(ranks, numbers, steps, starts, late).look_at_all()
    made = {process.made for state in found for process in state.processes}
    assert max(map(len, made)) == steps
    assert any(set(range(1, numbers + 1)) <= {*each} for each in made) or steps < numbers
    hubs = {change.hub for state in found for _, change in state.changes}
    assert {*range(len(ranks))} <= hubs
    new = {change.new for state in found for _, change in state.changes} - {None}
    assert len(new) == len(starts) + len(late)


class HalfIsEnough(Model):
    """As many as the others may go on."""

    def __init__(self, *how):
        super().__init__(*how)
        self.quorum.votes = {site: 2 * ranks for site, ranks in self.sites.items()}
        self.quorum.is_reached = lambda sites: (
            sum(self.quorum.votes[site] for site in sites) * 2 >= sum(self.quorum.votes.values())
        )


class VotesTwice(Model):
    """A site gives its voice for one number as often as it is asked."""

    may_vote = staticmethod(lambda promised, number: number >= promised)


class AllGoOn(Model):
    """Whoever votes goes on, whatever it has taken part in."""

    go_on = staticmethod(list)


class LetsInAtOnce(Model):
    """A site that was started again is let in while others go."""

    may_let_in = staticmethod(lambda taken, before, here: True)


@pytest.mark.parametrize(
    ("broken", "how"),
    [
        (HalfIsEnough, ((1, 1, 1, 1), 1, 2)),
        (VotesTwice, ((1, 1, 1), 1, 2)),
        (AllGoOn, ((1, 1, 1), 2, 3, ["site2"])),
        (LetsInAtOnce, ((1, 1, 1), 2, 2, ["site2"])),
    ],
)
def test_without_a_part_of_the_rule_there_are(broken, how):
    with pytest.raises(AssertionError):
        broken(*how).look_at_all()


def test_one_half_alone_has_the_quorum():
    quorum = Quorum({"cloud": 2, "north": 1, "south": 1})
    sites = {"cloud", "north", "south"}
    for count in range(4):
        for some in map(set, combinations(sorted(sites), count)):
            assert quorum.is_reached(some) != quorum.is_reached(sites - some)
    assert quorum.is_reached({"cloud"})
    assert not quorum.is_reached({"north", "south"})
    assert Quorum({"cloud": 1, "north": 1, "south": 1}).is_reached(["north", "south"])
    assert not Quorum({"cloud": 1, "north": 1}).is_reached(["north", "north"])
