"""Patterns behind each other on the diagonal: their parts of one kind become one part over all of them."""

import numpy as np

from sparseattn.index_ops.assemble import Place, assembled, by_kind
from sparseattn.pattern import checking
from sparseattn.pattern.devices import structural
from sparseattn.pattern.slicing import check_alike
from sparseattn.structure import Order, Ranges


@structural
def block_diagonal(patterns):
    """Patterns behind each other, along queries and keys at once."""
    patterns = list(patterns)
    check_alike(patterns, (2, 3))
    batch, n_heads = max(p.batch for p in patterns), max(p.n_heads for p in patterns)
    sizes = np.array([p.shape for p in patterns])
    shape = checking.shape(tuple(sizes.sum(axis=0).tolist()))
    begins = np.cumsum(sizes, axis=0) - sizes
    parts = []
    for group in by_kind(p.parts_over(n_heads) for p in patterns):
        for shared in (True, False):  # what all batch items share keeps being shared
            pieces = [(part, begins[number]) for number, part in group if (part.lead[0] == 1) == shared]
            parts += [_one_part(pieces, shape)] if pieces else []
    return type(patterns[0])(tuple(parts), shape, batch, n_heads)


def _one_part(pieces, shape):
    """(part, tokens at which it begins) behind each other, in whole blocks of slots."""
    first, batch = pieces[0][0], pieces[0][0].lead[0]
    blocks = (1, 1) if isinstance(first, Ranges) else first.block_size
    (q_order, rows), (k_order, cols) = (_side(pieces, shape, axis, blocks[axis]) for axis in (0, 1))
    places = [Place(part, 0, batch, row, col) for (part, _), row, col in zip(pieces, rows, cols)]
    return assembled(places, shape, batch, q_order, k_order)


def _side(pieces, shape, axis, block):
    """The order of queries (axis 0) or keys (1) over all pieces, and the slot at which each begins."""
    orders = [part.k_order if axis else part.q_order for part, _ in pieces]
    lengths = np.array([part.shape[axis] for part, _ in pieces])
    begins = np.array([begin[axis] for _, begin in pieces])
    if orders[0] is None and _on_blocks(lengths, begins, shape[axis], block):
        return None, begins
    slots = np.array([n if o is None else o.n_slots for o, n in zip(orders, lengths)])
    slots = -(-slots // block) * block
    order = None
    if lengths[0] * len(pieces) == shape[axis] and (lengths == lengths[0]).all() and len(set(orders)) == 1:
        order = _repeated(orders[0], len(pieces), lengths[0], slots[0])
    return order or _listed(orders, lengths, begins, slots, shape[axis]), np.cumsum(slots) - slots


def _on_blocks(lengths, begins, n_tokens, block):
    """Whether in the natural order no block of a piece holds tokens beyond it."""
    ends = begins + lengths
    return not (begins % block).any() and not (ends[ends < n_tokens] % block).any()


def _repeated(order, times, n_tokens, n_slots):
    """The affine order of equal pieces that fill all tokens; None where it is none."""
    if order is None:
        order = Order.affine((n_tokens,), ((0, n_slots, 1),))
    if not order.is_affine or order.n_slots != n_slots:
        return None
    digits = ((0, times, 1), *((axis + 1, size, step) for axis, size, step in order.digits))
    return Order.affine((times, *order.grid), digits, (0, *order.origin))


def _listed(orders, lengths, begins, slots, n_tokens):
    """Tokens in each piece's order, behind each other, with nobody up to the next whole block."""
    lead = tuple(np.max([(1, 1) if o is None else o.lead for o in orders], axis=0))
    tokens = np.full(lead + (slots.sum(),), -1, np.int32)
    at = 0
    for order, n, begin, size in zip(orders, lengths, begins.astype(np.int32), slots):
        own = np.arange(n, dtype=np.int32) if order is None else order.listing()
        tokens[..., at : at + own.shape[-1]] = np.where(own >= 0, own + begin, -1)
        at += size
    return Order.listed(tokens, n_tokens)
