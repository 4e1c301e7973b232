"""Searches for trees: all of few sites by branch and bound, likely ones of many, with a lower bound."""

import itertools

import numpy as np

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.planning.tree_bounds import far_apart, least_by_tops, narrowest
from isthmus.timing.tree_times import hubs_allowed, shortest, told_parents, tops_told

CLOSE = 1 - 1e-9
"""Trees that are better by less than this are as good."""


def best_of_all(times):
    """Return the AggregationTree of the least cost, and the seconds that none beats. Exact.

    Each choice of the top, and with two there of which half each site is in, is bounded by shortest
    ways; what the best known tree does not rule out is searched parent by parent.
    """
    return _Exact(times).search()


class _Exact:
    def __init__(self, times):
        self.times, cluster = times, times.cluster
        self.sites = len(cluster.sites)
        self.relays = [site for site in range(self.sites) if cluster.sites[site].relay]
        self.told = told_parents(cluster)
        latency, chunk = times.pairs()
        self.first, self.each = latency + chunk, np.maximum(chunk, chunk.T)
        self.ways = shortest(self.first, self.relays)
        names = cluster.names
        # Pipes of an edge, up and down: numbers and seconds of a chunk.
        self.pipes = {
            (a, b): [
                (link.pipe, times.message_nbytes / link.line(times.stream_nbytes)[1])
                for ends in ((names[a], names[b]), (names[b], names[a]))
                for link in cluster.route(*ends)
            ]
            for a in range(self.sites)
            for b in range(self.sites)
            if a != b
        }
        self.prices = np.zeros((self.sites, self.sites))
        if times.price is not None:
            for a, b in self.pipes:
                self.prices[a, b] = times.edge_price(a, b)

    def search(self):
        tops = self._tops()
        self.best = self.times.cluster.tree
        self.best_cost = self.times.cost(self.best)
        forms = [form for top in tops for form in self._forms(top)]
        bounds = [self._bound(form, {}) for form in forms]
        for form in sorted(range(len(forms)), key=lambda form: bounds[form])[:40]:
            self._try_shortest(forms[form])
        for form in sorted(range(len(forms)), key=lambda form: bounds[form]):
            if self._hopeless(bounds[form]):
                break
            self._place(forms[form], {}, self._order(forms[form]))
        return self.best, self.best_cost[1]

    def _tops(self):
        """Return [(hub, partner or None)] that the cluster file allows."""
        cluster = self.times.cluster
        if (told := tops_told(cluster)) is not None:
            return [told]
        hubs = hubs_allowed(cluster)
        alone = [(hub, None) for hub in hubs]
        if not self.times.portable:
            return alone
        # Of two, the one that relays is the hub.
        return alone + [
            (hub, other)
            for hub in hubs
            for other, parent in enumerate(self.told)
            if parent is None and (hub < other or (other != hub and other not in hubs))
        ]

    def _forms(self, top):
        """Yield (tops, half of each site) that the file allows."""
        hub, partner = top
        if partner is None:
            yield (hub,), [0] * self.sites
            return
        others = [site for site in range(self.sites) if site not in top]
        for halves in itertools.product((0, 1), repeat=len(others)):
            half = [0] * self.sites
            half[partner] = 1
            for site, side in zip(others, halves):
                half[site] = side
            if all(
                parent is None or half[parent] == half[site] for site, parent in enumerate(self.told)
            ) and (partner in self.relays or not any(halves)):
                yield top, half

    def _candidates(self, form, site):
        half = form[1]
        if self.told[site] is not None:
            return [self.told[site]]
        return [
            other
            for other in range(self.sites)
            if other != site and half[other] == half[site] and (other in self.relays or self.sites == 2)
        ]

    def _order(self, form):
        tops, half = form
        below = [site for site in range(self.sites) if site not in tops]
        return sorted(
            below,
            key=lambda site: -self.ways[site, tops[half[site]]] - self.ways[tops[half[site]], site],
        )

    def _bound(self, form, parents):
        """Return (price, seconds) that no tree of this form beats in which sites have these parents."""
        tops, half = form
        up, down, height = [0.0] * len(tops), [0.0] * len(tops), 1 if len(tops) == 1 else 0
        each, price, load = 0.0, 0.0, {}
        children = [0] * self.sites
        if len(tops) == 2:
            hub, partner = tops
            each, price = self.each[hub, partner], self.prices[partner, hub]
            self._load(load, partner, hub)
        for site in range(self.sites):
            if site in tops:
                continue
            side = half[site]
            top, at, there, back, steps = tops[side], site, 0.0, 0.0, 0
            while at in parents:
                there += self.first[at, parents[at]]
                back += self.first[parents[at], at]
                at, steps = parents[at], steps + 1
            there, back = there + self.ways[at, top], back + self.ways[top, at]
            up[side], down[side] = max(up[side], there), max(down[side], back)
            height = max(height, steps + (at != top))
            if site in parents:
                parent = parents[site]
                children[parent] += 1
                each = max(each, self.each[site, parent])
                price += self.prices[site, parent]
                self._load(load, site, parent)
            else:
                options = self._candidates(form, site)
                each = max(each, min(self.each[site, other] for other in options))
                price += min(self.prices[site, other] for other in options)
        first = up[0] + down[0]
        if len(tops) == 2:
            there, back = self.first[partner, hub], self.first[hub, partner]
            first = max(max(up[0], up[1] + there) + down[0], max(up[1], up[0] + back) + down[1])
        each = max(each, max(load.values(), default=0.0))
        peers = max(max(children), 1)
        return price, self.times.least_seconds(first, each, height, peers, len(tops) == 2)

    def _load(self, load, site, parent):
        for pipe, seconds in self.pipes[site, parent]:
            load[pipe] = load.get(pipe, 0.0) + seconds

    def _hopeless(self, bound):
        price, seconds = self.best_cost
        return bound[0] > price or (bound[0] == price and bound[1] >= seconds * CLOSE)

    def _place(self, form, parents, left):
        if not left:
            self._try(form, parents)
            return
        site, rest = left[0], left[1:]
        options = []
        for parent in self._candidates(form, site):
            at = parent
            while at in parents:
                at = parents[at]
            if at == site:  # a circle
                continue
            parents[site] = parent
            options.append((self._bound(form, parents), parent))
            del parents[site]
        for bound, parent in sorted(options):
            if self._hopeless(bound):
                break
            parents[site] = parent
            self._place(form, parents, rest)
            del parents[site]

    def _try_shortest(self, form):
        """Try the tree of shortest ways of a form."""
        tops, half = form
        parents = {}
        for site in range(self.sites):
            if site in tops:
                continue
            top = tops[half[site]]

            def whole(other, site=site, top=top):
                both = self.first[site, other] + self.first[other, site]
                return both + self.ways[other, top] + self.ways[top, other]

            nearer = [
                other
                for other in self._candidates(form, site)
                if other == top or self.ways[other, top] < self.ways[site, top]
            ]
            if not nearer:
                return
            parents[site] = min(nearer, key=whole)
        if all(self._ends(parents, site, tops) for site in parents):
            self._try(form, parents)

    def _ends(self, parents, site, tops):
        for _ in parents:
            site = parents.get(site, site)
        return site in tops

    def _try(self, form, parents):
        tree = AggregationTree(tuple(parents.get(site) for site in range(self.sites)), form[0][0])
        cost = self.times.cost(tree)
        if not self._hopeless(cost):
            self.best, self.best_cost = tree, cost


HUBS = 8
"""Hubs that are tried among many sites."""
LEVELS = 8
"""How slow links may be in a tree, from as fast as they can be to as slow as they are."""
TREES_TIMES_SITES = 24_000
"""How many trees are tried, times how many sites they have: a constant time, about."""


def best_of_likely(times):
    """Return the best AggregationTree found for many sites, and the seconds that no tree beats."""
    return _Likely(times).search()


class _Likely:
    def __init__(self, times):
        self.times, cluster = times, times.cluster
        self.sites = len(cluster.sites)
        index = {name: number for number, name in enumerate(cluster.names)}
        self.ends = np.array([(index[link.source], index[link.target]) for link in cluster.links])
        self.latency, self.chunk = np.array([times.line([link]) for link in cluster.links]).T
        self.told, self.relays = told_parents(cluster), np.array([site.relay for site in cluster.sites])
        self.left = max(12, TREES_TIMES_SITES // self.sites)

    def search(self):
        times, cluster, told = self.times, self.times.cluster, tops_told(self.times.cluster)
        reach, distances = far_apart(self.sites, self.ends, self.latency)
        narrow = narrowest(self.sites, self.ends, self.chunk)
        bound = times.least_seconds(reach + self.chunk.min(), narrow, 1, 1, False)
        self.best, self.best_cost = cluster.tree, times.cost(cluster.tree)
        hubs = [told[0]] if told else self._likely_hubs(distances)
        between = self.chunk[self.chunk >= narrow]
        levels = np.unique(np.quantile(between, np.linspace(0, 1, LEVELS), method="lower"))
        for most in levels[:: max(1, LEVELS * len(hubs) * 2 // self.left)]:
            for hub in hubs:
                if (told or (hub, None))[1] is None:
                    self._try(self._shortest_tree(hub, self.chunk <= most))
        if told is None and times.portable:
            self._let_two_exchange()
        self._try_other_parents()
        most = self.best_cost[1]
        return self.best, min(most, max(bound, least_by_tops(times, self.ends, narrow, most)))

    def _likely_hubs(self, distances):
        """Return the usual hub, and those in the middle between sites that are far apart."""
        middle = distances.max(axis=0)
        hubs = sorted(hubs_allowed(self.times.cluster), key=lambda site: middle[site])
        return list(dict.fromkeys([self.times.cluster.hub, *hubs]))[:HUBS]

    def _try(self, tree):
        """Keep a tree if it is better; return whether it is."""
        if tree is None or self.left <= 0:
            return False
        self.left -= 1
        cost = self.times.cost(tree)
        better = cost < self.best_cost
        if better:
            self.best, self.best_cost = tree, cost
        return better

    def _let_two_exchange(self):
        """Try the best tree with one of the hub's children, those far away first, as its partner."""
        tree = self.best
        latency = {(a, b): seconds for (a, b), seconds in zip(self.ends.tolist(), self.latency)}
        far = sorted(
            (site for site in tree.children[tree.hub] if self.told[site] is None),
            key=lambda site: -latency.get((site, tree.hub), 0.0),
        )
        for child in far[:HUBS]:
            parents = list(tree.parents)
            parents[child] = None
            self._try(AggregationTree(tuple(parents), tree.hub))

    def _try_other_parents(self):
        """Give sites another parent, a neighbour that relays, as long as that makes the tree better."""
        moves = [
            (site, parent)
            for site, parent in self.ends.tolist()
            if self.told[site] is None and self.relays[parent]
        ]
        better = True
        while better and self.left > 0:
            better = False
            for site, parent in moves[:: max(1, len(moves) // (self.left + 1))]:
                parents = list(self.best.parents)
                at = parent
                while at is not None and at != site:
                    at = parents[at]
                if at is None and parents[site] not in (None, parent):
                    parents[site] = parent
                    better |= self._try(AggregationTree(tuple(parents), self.best.hub))

    def _shortest_tree(self, hub, allowed):
        """Return the tree of shortest ways from `hub` over allowed links, None if it reaches nobody."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import dijkstra

        ok = allowed & self.relays[self.ends[:, 0]]
        if any(parent is not None for parent in self.told):
            ok &= np.array([self.told[b] in (None, a) for a, b in self.ends.tolist()])
        seconds = (self.latency + self.chunk)[ok]
        ways = coo_matrix((seconds, self.ends[ok].T), (self.sites, self.sites)).tocsr()
        reach, before = dijkstra(ways, indices=hub, return_predecessors=True)
        if not np.isfinite(reach).any():
            return None
        parents = [None if site == hub else int(parent) for site, parent in enumerate(before)]
        for site in np.flatnonzero(~np.isfinite(reach)).tolist():
            usual = self.times.cluster.tree.above(site)  # over sites that may not relay
            if self.told[site] is not None:
                usual = self.told[site]
            parents[site] = usual if usual is not None and np.isfinite(reach[usual]) else hub
            if self.told[site] not in (None, parents[site]):
                return None
        return AggregationTree(tuple(parents), hub)
