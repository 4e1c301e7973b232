"""The loop of `hierarchical` as compiled code that calls MPI itself, without the GIL.

Message by message it does what `Hierarchical` does, so ranks with it and ranks without work together.
All that it knows are int64: `plan` has what stands where below, `rows` a chunk each, `pieces` the first
entry and the one past the last of each piece, `given` the address of each array of a bucket, its first
entry and the one past its last. Vectors, wires and functions are addresses. A function of
compressors is one of `isthmus.compression.by_address`.
"""

from isthmus.collectives.messages import PIECE_NBYTES
from isthmus.kernels.compiled import compiled
from isthmus.links import native_mpi
from isthmus.links.native_mpi import ask, decode_by, encode_by, post, read_clock, sleep

START, ADVANCE, FINISH = range(3)
NOTHING, RISE, FALL = range(3)

# In `plan`: MPI's functions and handles, and where it puts what it says,
ISEND, IRECV, TEST, CLOCK, SLEEP, SITE, LEADERS, FLOAT, BYTE, STATUS, ERROR, FLAG = range(12)
# what the clock says, when the last lap ended, and the nanoseconds of each stage,
SECONDS, NANOSECONDS, NOW, REDUCE, LINKS, ENCODE, DECODE, BROADCAST = range(12, 20)
# this rank's place, its memory, functions for what is no wire, its share, which memory a call reads,
# whether all was finite so far, the tag between leaders, whether the caller waits for the sum,
LEFT, RIGHT, ABOVE, CHILDREN, INDEX, KEYS, EXCHANGES, RETELLS = range(20, 28)
TOTAL, SENT, REQUESTS, REQUEST_NBYTES, SLOTS, PARTS, INBOX, INBOX_NBYTES = range(28, 36)
ADD, WEIGHT, CHECK, COPY, STAGE, SHARE, TURN, FINITE, TAG, AWAITED = range(36, 46)
# whether the main thread computes meanwhile, how long this one sleeps, and the nanoseconds of each stage
# of `native_at_once` of which nobody was told yet,
BESIDE, NAP_SECONDS, NAP_NANOSECONDS, UNTOLD = range(46, 50)
# how many chunks have come how far, and from here on the peers: children, then the one above.
STARTED, RISEN, FALLEN, PASSED, PEER_COUNT, PEERS = range(54, 60)
# In a row of `rows`: a chunk. Beside a wire stands what is kept of it in both memories, 0 where nothing
# is; from WIRES on the wire of each peer, 0 of one that the chunk of the vector takes in.
FIRST, LAST, PIECE, PIECES_END, NBYTES, AHEAD, ENCODER, DECODER, ADDER, BLOCK = range(10)
OWN, TOLD, WIRES = 10, 13, 16

PATIENCE, LONGEST_NAP = 50_000, 1_000_000  # nanoseconds

native = compiled(nogil=True, calls=(native_mpi,))


class RefusedError(Exception):
    """MPI has returned an error code."""


@native
def at(array, place):
    """Return the address of an int64."""
    return array.ctypes.data + 8 * place


@native
def clock(plan):
    """Return what the clock says, in nanoseconds."""
    read_clock(plan[CLOCK], 1, at(plan, SECONDS))  # CLOCK_MONOTONIC
    return 1_000_000_000 * plan[SECONDS] + plan[NANOSECONDS]


@native
def lap(plan, stage):
    """Give the time since the last lap to a stage."""
    now = clock(plan)
    plan[stage] += now - plan[NOW]
    plan[NOW] = now


@native
def done(plan, slot):
    """Return at once whether a message is done, or was never begun."""
    request = plan[REQUESTS] + slot * plan[REQUEST_NBYTES]
    code = ask(plan[TEST], request, at(plan, FLAG), plan[STATUS])
    if code:
        plan[ERROR] = code
        raise RefusedError
    return plan[FLAG] & 0xFFFFFFFF != 0  # an int


@native
def rest(plan):
    """While nothing comes, leave the core to a thread that computes, where there is one: an eighth of
    the time since the last lap, so that what comes is found that much later at most."""
    if not plan[BESIDE]:  # then MPI gives way to others, where it knows that it should
        return
    waited = clock(plan) - plan[NOW]
    if waited > PATIENCE:
        plan[NAP_NANOSECONDS] = min(waited // 8, LONGEST_NAP)
        sleep(plan[SLEEP], at(plan, NAP_SECONDS), 0)


@native
def wait(plan, slot):
    """Return when a message is done."""
    while not done(plan, slot):
        rest(plan)


@native
def begin(plan, function, data, count, kind, peer, comm, slot):
    """Begin to send or to receive a message."""
    request = plan[REQUESTS] + slot * plan[REQUEST_NBYTES]
    tag = plan[TAG] if comm == LEADERS else 0
    code = post(plan[function], data, count, plan[kind], peer, tag, plan[comm], request)
    if code:
        plan[ERROR] = code
        raise RefusedError


@native
def count_sent(plan, site, nbytes):
    """Count bytes that are handed to MPI."""
    native_mpi.add_word(plan[SENT] + 8 * site, nbytes)


@native
def wire_slot(plan, chunk, place, way):
    """Return the first request of a wire from (way 0) or to (way 1) peer number `place`."""
    return ((chunk * plan[PEER_COUNT] + place) * 2 + way) * plan[PARTS]


@native
def begin_wire(plan, rows, function, chunk, place, wire):
    """Begin to send or to receive a wire, in as many messages as it takes."""
    slot = wire_slot(plan, chunk, place, function == ISEND)
    for first in range(0, rows[chunk, NBYTES], PIECE_NBYTES):
        count = min(PIECE_NBYTES, rows[chunk, NBYTES] - first)
        begin(plan, function, wire + first, count, BYTE, plan[PEERS + place], LEADERS, slot)
        slot += 1


@native
def send_wire(plan, rows, chunk, wire, first, last):
    """Send the wire of a chunk to peers number `first` to `last`."""
    for place in range(first, last):
        count_sent(plan, plan[PEERS + place], rows[chunk, NBYTES])
        begin_wire(plan, rows, ISEND, chunk, place, wire)
    lap(plan, ENCODE)


@native
def arrived(plan, chunk, first, last, way=0):
    """Return at once whether wires of peers number `first` to `last` are there, or, way 1, have left."""
    for place in range(first, last):
        slot = wire_slot(plan, chunk, place, way)
        for part in range(plan[PARTS]):
            if not done(plan, slot + part):
                return False
    return True


@native
def piece_slot(plan, piece, to_right):
    """Return the request of a piece that is sent; the three past the last are of those that come."""
    return plan[SLOTS] + 2 * piece + to_right


@native
def part_of(plan, rows, chunk):
    """Return the address of a chunk of the vector that is to hold the sum."""
    return plan[TOTAL] + 4 * rows[chunk, FIRST]


@native
def place_of(plan, rows, chunk, which):
    """Return where what goes into the wire `which` is summed: in the memory that a call writes."""
    kept = rows[chunk, which + 2 - plan[TURN]]
    return kept if kept else part_of(plan, rows, chunk)


@native
def encode(plan, rows, chunk, which, key, number):
    """Encode what is summed of a chunk into one of its wires, OWN or TOLD."""
    summed, size = place_of(plan, rows, chunk, which), rows[chunk, LAST] - rows[chunk, FIRST]
    kept, dither = rows[chunk, which + 1 + plan[TURN]], key * plan[KEYS] + number
    data, left = (kept, summed) if kept else (summed, 0)
    first, block = rows[chunk, FIRST], rows[chunk, BLOCK]
    encode_by(rows[chunk, ENCODER], data, left, rows[chunk, which], size, block, dither, first)


@native
def decode(rows, chunk, function, wire, data):
    """Overwrite a chunk at `data` with what `wire` holds (DECODER), or add that to it (ADDER)."""
    size = rows[chunk, LAST] - rows[chunk, FIRST]
    decode_by(rows[chunk, function], wire, data, size, rows[chunk, BLOCK])


@native
def rise(plan, rows, key):
    """Add the children's wires to the next chunk, encode it, and send it up, or as the hub down."""
    chunk, children = plan[RISEN], plan[CHILDREN]
    for place in range(children):
        decode(rows, chunk, ADDER, rows[chunk, WIRES + place], place_of(plan, rows, chunk, OWN))
    if children:
        lap(plan, DECODE)
    own = rows[chunk, OWN]
    if own:
        encode(plan, rows, chunk, OWN, key, plan[INDEX])
    else:  # it is sent from where it is
        own = part_of(plan, rows, chunk)
    plan[RISEN] += 1
    if plan[ABOVE]:
        send_wire(plan, rows, chunk, own, children, children + 1)
        return
    send_wire(plan, rows, chunk, own, 0, children)
    decode(rows, chunk, DECODER, own, part_of(plan, rows, chunk))
    lap(plan, DECODE)
    plan[FALLEN] += 1


@native
def fall(plan, rows, key):
    """Leave in the next chunk the sum over all sites, as all leaders have it; tell those below."""
    chunk, children = plan[FALLEN], plan[CHILDREN]
    wire = rows[chunk, WIRES + children]
    if not wire:  # it is where its sum is to be
        wire = plan[STAGE]
        decode_by(plan[COPY], part_of(plan, rows, chunk), wire, (rows[chunk, NBYTES] + 3) // 4, 1)
    if not rows[chunk, OWN]:
        decode(rows, chunk, ADDER, wire, part_of(plan, rows, chunk))
    elif plan[EXCHANGES]:
        summed = place_of(plan, rows, chunk, TOLD)
        decode(rows, chunk, DECODER, wire, summed)
        decode(rows, chunk, ADDER, rows[chunk, OWN], summed)
        if plan[RETELLS]:
            lap(plan, DECODE)
            encode(plan, rows, chunk, TOLD, key, plan[KEYS] - 1)
            wire = rows[chunk, TOLD]
    send_wire(plan, rows, chunk, wire, 0, children)
    if plan[RETELLS] or not plan[EXCHANGES]:
        decode(rows, chunk, DECODER, wire, part_of(plan, rows, chunk))
    lap(plan, DECODE)
    plan[FALLEN] += 1


@native
def ready(plan, rows):
    """Return what the next chunk is ready for: RISE, FALL, or NOTHING until more has arrived."""
    children, away = plan[CHILDREN], plan[RISEN] - plan[FALLEN]
    may_rise = plan[RISEN] < plan[STARTED] and (not plan[AWAITED] or away <= rows[plan[RISEN], AHEAD])
    if may_rise and arrived(plan, plan[RISEN], 0, children):
        return RISE
    if plan[FALLEN] == plan[RISEN] or not arrived(plan, plan[FALLEN], children, children + 1):
        return NOTHING
    # What is sent from where it is must stay as it is until then.
    left = rows[plan[FALLEN], OWN] or arrived(plan, plan[FALLEN], children, children + 1, 1)
    return FALL if left else NOTHING


@native
def advance(plan, rows, key):
    """Take one chunk a stage further, without waiting; return whether there was one."""
    stage = ready(plan, rows)
    if stage == RISE:
        rise(plan, rows, key)
    elif stage == FALL:
        fall(plan, rows, key)
    return stage != NOTHING


@native
def send_piece(plan, data, count, piece, to_right):
    """Send a piece at `data` to a neighbour in the site."""
    count_sent(plan, plan[INDEX], 4 * count)
    peer = plan[RIGHT] if to_right else plan[LEFT]
    begin(plan, ISEND, data, count, FLOAT, peer, SITE, piece_slot(plan, piece, to_right))


@native
def pass_down(plan, rows, pieces):
    """Pass the next chunk's result down the chain."""
    arriving = piece_slot(plan, len(pieces), 0) + 2
    for piece in range(rows[plan[PASSED], PIECE], rows[plan[PASSED], PIECES_END]):
        first, last = pieces[piece]
        data = plan[TOTAL] + 4 * first
        if plan[LEFT] >= 0:
            wait(plan, piece_slot(plan, piece, 0))  # it is about to be overwritten
            begin(plan, IRECV, data, last - first, FLOAT, plan[LEFT], SITE, arriving)
            wait(plan, arriving)
        if plan[RIGHT] >= 0:
            send_piece(plan, data, last - first, piece, 1)
        plan[FINITE] &= decode_by(plan[CHECK], 0, data, last - first, 1)
    plan[PASSED] += 1
    lap(plan, BROADCAST)


@native
def receive_piece(plan, pieces, piece):
    """Let a piece come from the right, into its half of the inbox."""
    half, (first, last) = piece % 2, pieces[piece]
    data, slot = plan[INBOX] + half * plan[INBOX_NBYTES], piece_slot(plan, len(pieces), 0) + half
    begin(plan, IRECV, data, last - first, FLOAT, plan[RIGHT], SITE, slot)


@native
def write_given(plan, given, data, first, last):
    """Write this rank's share of the entries from `first` to `last` of its vector."""
    for row in range(len(given)):
        start, stop = max(first, given[row, 1]), min(last, given[row, 2])
        if start < stop:
            source = given[row, 0] + 4 * (start - given[row, 1]) if given[row, 0] else 0
            decode_by(plan[WEIGHT], source, data + 4 * (start - first), stop - start, plan[SHARE])


@native
def reduce(plan, pieces, given, piece, data, end):
    """Sum a piece at `data` over this rank and those to its right, and pass it to the left. end: past
    the last piece of the bucket."""
    first, last = pieces[piece]
    write_given(plan, given, data, first, last)
    if plan[RIGHT] >= 0:
        if piece + 1 < end:  # whose half of the inbox is free: the piece before this one has been added
            receive_piece(plan, pieces, piece + 1)
        wait(plan, piece_slot(plan, len(pieces), 0) + piece % 2)
        decode_by(plan[ADD], plan[INBOX] + piece % 2 * plan[INBOX_NBYTES], data, last - first, 1)
    if plan[LEFT] >= 0:
        send_piece(plan, data, last - first, piece, 0)


@native
def start(plan, rows, pieces, given, first, last, key):
    """Reduce chunks to the leader, who sends on those with their children's wires; none goes down."""
    while advance(plan, rows, key):
        pass
    for chunk in range(first, last):
        for place in range(plan[PEER_COUNT]):
            inbox = rows[chunk, WIRES + place]
            begin_wire(plan, rows, IRECV, chunk, place, inbox if inbox else part_of(plan, rows, chunk))
    if first < last and plan[RIGHT] >= 0:
        receive_piece(plan, pieces, rows[first, PIECE])
    for chunk in range(first, last):
        place = place_of(plan, rows, chunk, OWN)
        for piece in range(rows[chunk, PIECE], rows[chunk, PIECES_END]):
            data = place + 4 * (pieces[piece, 0] - rows[chunk, FIRST])
            reduce(plan, pieces, given, piece, data, rows[last - 1, PIECES_END])
        lap(plan, REDUCE)
        plan[STARTED] += 1
        if plan[PEER_COUNT] == 0:
            plan[RISEN] += 1
            plan[FALLEN] += 1
            continue
        while advance(plan, rows, key):  # what is there is taken on at once: it is in the cache still
            pass


@native
def finish(plan, rows, pieces, key):
    """Take what the other sites sent, and pass the result down the chain."""
    while plan[PASSED] < plan[STARTED]:
        if plan[PASSED] < plan[FALLEN]:
            pass_down(plan, rows, pieces)
        elif not advance(plan, rows, key):
            while ready(plan, rows) == NOTHING:
                rest(plan)
            lap(plan, LINKS)
    for slot in range(piece_slot(plan, len(pieces), 0)):
        wait(plan, slot)
    plan[STARTED] = plan[RISEN] = plan[FALLEN] = plan[PASSED] = 0
    lap(plan, LINKS if plan[PEER_COUNT] else BROADCAST)


@native
def exchange(what, plan, rows, pieces, total, given, first, last, key):
    """START chunks number `first` to `last` of float32 `total`, ADVANCE those under way, or FINISH."""
    plan[TOTAL] = total.ctypes.data
    if what == START:
        start(plan, rows, pieces, given, first, last, key)
    elif what == FINISH:
        finish(plan, rows, pieces, key)
    else:
        while advance(plan, rows, key):
            pass
