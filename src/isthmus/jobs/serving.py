"""`isthmus infer --serve`: edge ranks that answer what programs beside them ask over HTTP."""

import threading
import time

from isthmus.errors import SettingsError
from isthmus.inference.feed import Feed
from isthmus.inference.front import Front
from isthmus.links.agreement import gather_json, ranks_on_host, together


def serve_requests(inference, world, door, most_waiting, sample, tell):
    """Answer what comes through the fronts of all edge ranks; return this one's counts. Collective.

    door: (host, port, seconds): each edge rank listens at the port plus its number among those of its
    host, at any where it is 0, for so many seconds; None: until it is stopped. sample: features
    [1, ...] of the shape and dtype that are taken. Cloud ranks return once edge ranks have left.
    """
    host, port, seconds = door
    asks = gather_json(world, inference.asks)
    place = [rank for rank in ranks_on_host(world) if asks[rank]]

    def open_front():
        if not inference.asks:
            return None
        feed = Feed(sample.shape[1:], sample.dtype, most_waiting, time.monotonic)
        own = port and port + place.index(world.rank)
        try:
            return Front(feed, host=host, port=own)
        except (OSError, UnicodeError, OverflowError) as problem:  # no name of a host, or no port
            why = getattr(problem, "strerror", problem)
            raise SettingsError(
                f"--serve: {host}:{own} cannot be listened at ({why}); give another port or --host"
            ) from None

    front = together(world, open_front)
    addresses = [each for each in gather_json(world, front and front.address) if each]
    tell(f"listening: {', '.join(f'http://{each}/v2/models/model' for each in addresses)}")
    if front is None:
        inference.serve()
    else:
        with front:
            if seconds is not None:
                closing = threading.Timer(min(seconds, threading.TIMEOUT_MAX), front.feed.close)
                closing.daemon = True
                closing.start()
            inference.answer_feed(front.feed)
    return front and front.counts
