"""Which rank runs which task of a graph, and when, where messages take turns on the links."""
