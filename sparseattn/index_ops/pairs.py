"""Pair by pair, for block structures in different orders: membership of pairs, and pairs moved into another order."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.blocks import from_pairs, join
from sparseattn.index_ops.cells import common_lead, from_cells, refuse_too_many_masks, to_cells
from sparseattn.index_ops.masks import count_bits, distinct, pack, unpack
from sparseattn.structure import Order
from sparseattn.xp import namespace

CHUNK = 1 << 21  # pairs written out at a time


def stored_pairs(part):
    """Pairs whose bits are set in a BlockCSR, counting bits of slots that hold no token: the size of the work, int."""
    x = to_cells(part)
    return int(count_bits(x.masks)[x.ids].sum())


def listing(order, n_tokens):
    """The tokens of an order, int32 (1 | batch, 1 | heads, n_slots); None is the natural one."""
    return np.arange(n_tokens, dtype=np.int32).reshape(1, 1, -1) if order is None else order.listing()


def by_block(tokens, block):
    """(1 | batch, 1 | heads, n_slots) to (1 | batch, 1 | heads, n_blocks, block), padded with -1."""
    n_blocks = -(-tokens.shape[2] // block)
    padded = np.full(tokens.shape[:2] + (n_blocks * block,), -1, np.int32)
    padded[..., : tokens.shape[2]] = tokens
    return padded.reshape(tokens.shape[:2] + (n_blocks, block))


def tokens_of_cells(cells, piece):
    """b, h (n,), query tokens (n, block_q), key tokens (n, block_k) of some cells; -1 for nobody."""
    b, h, row, col = (x[piece] for x in cells.coordinates())
    q = by_block(listing(cells.q_order, cells.shape[0]), cells.block_size[0])
    k = by_block(listing(cells.k_order, cells.shape[1]), cells.block_size[1])
    return b, h, q[b % q.shape[0], h % q.shape[1], row], k[b % k.shape[0], h % k.shape[1], col]


def pairs(part, lead=None):
    """Yield the pairs of a BlockCSR as arrays (b, h, query token, key token), some blocks at a time."""
    cells = to_cells(part, lead)
    step = max(CHUNK // (part.block_size[0] * part.block_size[1]), 1)
    for at in range(0, cells.numbers.size, step):
        piece = slice(at, at + step)
        b, h, q, k = tokens_of_cells(cells, piece)
        bits = unpack(cells.masks[cells.ids[piece]], part.block_size[1])
        which, s, t = np.nonzero(bits & (q >= 0)[:, :, None] & (k >= 0)[:, None, :])
        yield b[which], h[which], q[which, s], k[which, t]


def without_repeats(part, side="k_order"):
    """The part as parts in whose order of keys (or, by `side`, of queries) no token repeats, so that it has an inverse.
    Of either library."""
    order = getattr(part, side)
    if order is None or not order.repeats:
        return [part]
    cells = to_cells(part)
    return [from_cells(replace(cells, **{side: turn})) for turn in order.memo.get("turns", lambda: _turns(order))]


def _turns(order):
    """Orders without repeats: a token that sits at several slots is in as many of them, and nobody elsewhere."""
    tokens, turn = order.listing(), order.occurrence()
    where = namespace(tokens).where
    return [Order.listed(where(turn == t, tokens, -1), order.n_tokens) for t in range(int(turn.max()) + 1)]


class Members:
    """Membership test of pairs in an aligned BlockCSR, by its inverse orders; O(log blocks) a pair."""

    def __init__(self, part):
        self.pieces = [(to_cells(p), self._slots(p.q_order), self._slots(p.k_order)) for p in without_repeats(part)]

    @staticmethod
    def _slots(order):
        return None if order is None else order.inverse()

    def __call__(self, b, h, q, k):
        """bool, broadcast shape of the token arrays; b, h too. Tokens of -1 are in no pair."""
        found = np.zeros(np.broadcast_shapes(b.shape, h.shape, q.shape, k.shape), bool)
        for cells, q_slots, k_slots in self.pieces:
            found |= self._in_piece(cells, _slot(q_slots, b, h, q), _slot(k_slots, b, h, k), b, h)
        return found

    @staticmethod
    def _in_piece(cells, s, t, b, h):
        (block_q, block_k), (n_rows, n_cols) = cells.block_size, cells.grid
        lead = (b % cells.lead[0]) * cells.lead[1] + h % cells.lead[1]
        number = (lead * n_rows + s // block_q) * n_cols + t // block_k
        if cells.numbers.size == 0:
            return np.zeros(number.shape, bool)
        at = np.minimum(np.searchsorted(cells.numbers, number), cells.numbers.size - 1)
        word = cells.masks[cells.ids[at], s % block_q, t % block_k >> 5]
        bit = (word >> (t % block_k & 31).astype(np.uint32)) & 1
        return (cells.numbers[at] == number) & (s >= 0) & (t >= 0) & (bit == 1)


def _slot(slots, b, h, token):
    """The slot of each token, -1 for none."""
    if slots is None:
        return token
    return np.where(token >= 0, slots[b % slots.shape[0], h % slots.shape[1], np.maximum(token, 0)], -1)


def narrow(part, other, inside=True):
    """The pairs of aligned BlockCSR `part` that are in `other` (or not in it), in the order of `part`. O(its pairs)."""
    cells, members = to_cells(part, common_lead(part, other)), Members(other)
    ids, masks, count = np.zeros(cells.numbers.size, np.int64), [], 0
    step = max(CHUNK // (part.block_size[0] * part.block_size[1]), 1)
    for at in range(0, cells.numbers.size, step):
        piece = slice(at, at + step)
        b, h, q, k = tokens_of_cells(cells, piece)
        hit = members(b[:, None, None], h[:, None, None], q[:, :, None], k[:, None, :])
        narrowed = cells.masks[cells.ids[piece]] & pack(hit if inside else ~hit)
        first, which = distinct(narrowed)
        masks.append(narrowed[first])
        ids[piece] = count + which
        count += first.size
        refuse_too_many_masks(count, part.block_size)
    return from_cells(replace(cells, ids=ids, masks=np.concatenate(masks))) if masks else part


def moved(part, like):
    """The pairs of aligned BlockCSR `part` in the order and block size of `like`, which has no repeats; the rest is
    dropped."""
    cells = to_cells(like, common_lead(part, like))
    single = replace(cells, block_size=(1, 1))
    n_rows, n_cols = single.grid
    q_slots, k_slots = (None if o is None else o.inverse() for o in (like.q_order, like.k_order))
    numbers = [np.zeros(0, np.int64)]
    for b, h, q, k in pairs(part, cells.lead):
        s, t = _slot(q_slots, b, h, q), _slot(k_slots, b, h, k)
        number = ((b * cells.lead[1] + h) * n_rows + s) * n_cols + t
        numbers.append(number[(s >= 0) & (t >= 0)])
    return from_pairs(cells, np.concatenate(numbers))


def combine(a, b, operation):
    """`a & b` ("and") or `a - b` ("sub") of aligned BlockCSRs in different orders, in the order of the result's base.

    "and" keeps the order of the one with fewer pairs; "sub" that of `a`, walking the pairs of the smaller one.
    """
    if operation == "and":
        small, large = (a, b) if stored_pairs(a) <= stored_pairs(b) else (b, a)
        return narrow(small, large)
    if stored_pairs(a) <= stored_pairs(b) or (a.k_order is not None and a.k_order.repeats):
        return narrow(a, b, inside=False)
    return join(a, moved(b, a), "sub")
