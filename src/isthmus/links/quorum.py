"""Which sites may go on without others, and from what: the rule alone, without a message.

Those who go on have more than half of all ranks of the cluster file, where each site counts whole; the
one that comes first there has half a vote more, so of two halves one has it. A site has one voice for
each change of members, which are numbered: once it has given it, it takes part in nothing that has a
lower number. A step needs all members, and any two sets of members that may make steps have a site in
common. So of what was done under the one before the next knows all but the last step, at most, which
is done again.

That is the vote of Paxos (Lamport 1998) and of Raft (Ongaro and Ousterhout 2014) by weights (Gifford
1979), over members that change; there is no log to agree on, as each step needs everybody.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Vote:
    """What a site tells who would be the hub.

    start: which start of the site's job this is, as it may have been started again since. taken: the
    number of the last change that it has taken, members: (site, start) of those who take part since,
    none where all began. promised: the highest number for which it has given its voice.
    """

    site: str
    start: str
    taken: int
    members: frozenset[tuple[str, str]]
    promised: int


Point = TypeVar("Point", bound=Sequence[Any])


class Quorum:
    """Of a cluster whose sites have so many ranks each, in the order of its file."""

    def __init__(self, ranks_of_site: Mapping[str, int]):
        self.votes = {
            site: 2 * ranks + (not number) for number, (site, ranks) in enumerate(ranks_of_site.items())
        }

    def is_reached(self, sites: Collection[str]) -> bool:
        """Whether these sites may go on."""
        return 2 * sum(self.votes[site] for site in {*sites}) > sum(self.votes.values())


def next_number(promised: Iterable[int]) -> int:
    """Return the number of a change that sites may still vote for."""
    return 1 + max(promised)


def may_vote(promised: int, number: int) -> bool:
    """Whether a site that has given its voice for `promised` may give it for the change `number`."""
    return number > promised


def those_who_go_on(votes: Collection[Vote]) -> list[Vote]:
    """Return those who have taken part in the last change that any of them knows.

    Who has voted for it, and did not hear of it, is one of them: without it no step was made since.
    """
    last = max(votes, key=lambda vote: vote.taken)
    return [
        vote for vote in votes if vote.taken == last.taken or (vote.site, vote.start) in last.members
    ]


def may_let_in(taken: Iterable[int], before: Collection[str], here: Collection[str]) -> bool:
    """Whether a site that was started again may take part from this change on.

    taken: the last change of each site `here`; before: the sites that took part in it. Else a start of
    the site that is not known to be over could give its voice a second time.
    """
    return len({*taken}) == 1 and {*before} == {*here}


def earliest(points: Iterable[Point]) -> Point:
    """Return from where all go on: who is further, by a step at most, goes back."""
    return min(points)
