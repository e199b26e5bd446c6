"""Set algebra of two parts: ranges stay ranges where they can, blocks keep their order, the rest goes pair by pair."""

from dataclasses import replace

import numpy as np

from sparseattn.index_ops.axes import align
from sparseattn.index_ops.blocks import count_reblocked, join, reblock
from sparseattn.index_ops.pairs import combine
from sparseattn.index_ops.ranges import intersect as intersect_ranges
from sparseattn.index_ops.ranges import repeats, unite
from sparseattn.index_ops.ranges import subtract as subtract_ranges
from sparseattn.index_ops.tiles import clip, count_cut, cut
from sparseattn.structure import Ranges

LONG_REACH = 512  # keys a query from which larger tiles are faster
ROW = 64  # keys of a block of one query alone


def is_empty(part):
    """Whether a part holds no pair."""
    if isinstance(part, Ranges):
        return not (part.stops > part.starts).any()
    return part.n_blocks == 0


def default_block_size(ranges):
    """The tiles of ranges: as asked for, else small ones where queries reach a short way; rows for a single query."""
    if ranges.n_q_slots == 1:  # all lanes of a tile but one would idle
        return 1, ROW if ranges.block_size is None else ranges.block_size[1]
    if ranges.block_size is not None:
        return ranges.block_size
    lengths = ranges.stops - ranges.starts
    some = int((lengths > 0).sum())
    return (64, 64) if some and int(lengths.sum(dtype=np.int64)) / some >= LONG_REACH else (32, 32)


def as_blocks(part, block_size=None):
    """A part as a BlockCSR, in this block size if one is named."""
    if isinstance(part, Ranges):
        return cut(part, block_size or default_block_size(part))
    return reblock(part, block_size) if block_size else part


def count_blocks(part, block_size):
    """How many blocks a part has in this block size; of ranges, at most."""
    return count_cut(part, block_size) if isinstance(part, Ranges) else count_reblocked(part, block_size)


def intersection(a, b, n_heads):
    """`a & b` as a list of parts: none or one."""
    a, b = align(a, b, n_heads, "and")
    if a.heads is not None and a.heads.size == 0:
        return []
    met = None
    if isinstance(a, Ranges) and isinstance(b, Ranges):
        met = intersect_ranges(a, b)
    elif isinstance(a, Ranges) or isinstance(b, Ranges):
        ranges, blocks = (a, b) if isinstance(a, Ranges) else (b, a)
        if not repeats(ranges):
            met = clip(blocks, ranges)
    if met is None:
        a, b = _blocks_of_both(a, b)
        met = join(a, b, "and") if a.space == b.space and a.block_size == b.block_size else combine(a, b, "and")
    return [] if is_empty(met) else [met]


def difference(a, b, n_heads):
    """`a - b` as a list of disjoint parts."""
    a, b = align(a, b, n_heads, "sub")
    pieces = None
    if isinstance(a, Ranges) and isinstance(b, Ranges):
        pieces = subtract_ranges(a, b)
    elif isinstance(b, Ranges) and not repeats(b):
        pieces = [clip(a, b, inside=False)]
    if pieces is None:
        a, b = _blocks_of_both(a, b)
        pieces = [join(a, b, "sub") if a.space == b.space and a.block_size == b.block_size else combine(a, b, "sub")]
    return [p for p in pieces if not is_empty(p)]


def _blocks_of_both(a, b):
    """Two parts as blocks, of one size where they share an order."""
    if isinstance(a, Ranges):
        a = cut(a, b.block_size if not isinstance(b, Ranges) and a.space == b.space else default_block_size(a))
    b = as_blocks(b)
    if a.space == b.space:
        common = a.block_size if min(a.block_size) > 1 else b.block_size
        a, b = reblock(a, common), reblock(b, common)
    return a, b


def merged(a, b, n_heads):
    """Two disjoint parts as one, where they share an order and lose nothing by it; else None."""
    if not _alike(a, b) or not _same_heads(a, b) or a.lead != b.lead:
        return None
    a, b = align(a, b, n_heads, "or")
    return unite(a, b) if isinstance(a, Ranges) else join(a, b, "or")


def compact(parts, n_heads):
    """Disjoint parts with those of equal order merged where that loses nothing."""
    kept = []
    for part in parts:
        for at, other in enumerate(kept):
            whole = merged(other, part, n_heads)
            if whole is not None:
                kept[at] = whole
                break
        else:
            kept.append(part)
    return kept


def stacked(parts, n_heads):
    """Parts of patterns whose heads stand side by side, merged where they are alike."""
    kept = []
    for part in parts:
        for at, other in enumerate(kept):
            whole = _side_by_side(other, part, n_heads)
            if whole is not None:
                kept[at] = whole
                break
        else:
            kept.append(part)
    return [replace(p, heads=None) if p.heads is not None and p.heads.size == n_heads else p for p in kept]


def _side_by_side(a, b, n_heads):
    """Two alike parts about different heads, or about the same, as one; else None."""
    if not _alike(a, b):
        return None
    if _same_heads(a, b):
        return merged(a, b, n_heads)
    if a.heads is None or b.heads is None or np.intersect1d(a.heads, b.heads).size:
        return None
    if a.lead[1] == b.lead[1] == 1 and replace(a, heads=None).digest == replace(b, heads=None).digest:
        return replace(a, heads=np.union1d(a.heads, b.heads))
    if any(o is not None and o.lead[1] > 1 for o in (a.q_order, a.k_order)):
        return None
    a, b = align(a, b, n_heads, "or")
    return unite(a, b) if isinstance(a, Ranges) else join(a, b, "or")


def _alike(a, b):
    """Whether two parts are of one kind, order and block size."""
    return type(a) is type(b) and a.space == b.space and a.block_size == b.block_size


def _same_heads(a, b):
    return (a.heads is None) == (b.heads is None) and (a.heads is None or np.array_equal(a.heads, b.heads))


def as_tiles(parts, n_heads):
    """Disjoint parts as BlockCSRs, one for each order: what a kernel runs."""
    return tuple(one_structure(group, n_heads) for group in by_order(parts))


def by_order(parts):
    """Lists of the parts that may be one structure."""
    return grouped(parts, lambda a, b: a.space == b.space and _same_heads(a, b) and _cuts_alike(a, b))


def grouped(parts, alike):
    """Lists of the parts that are `alike` to the first of their list."""
    groups = []
    for part in parts:
        for group in groups:
            if alike(part, group[0]):
                group.append(part)
                break
        else:
            groups.append([part])
    return groups


def _cuts_alike(a, b):
    """Whether two parts of one order may share tiles: rows of single queries stay by themselves."""
    single = [not isinstance(x, Ranges) and x.block_size[0] == 1 for x in (a, b)]
    return single[0] == single[1]


def one_structure(parts, n_heads):
    """The parts of one order in blocks of one size: the first stored one's, else the largest any of them asks for."""
    if len(parts) == 1:
        return as_blocks(parts[0])
    fixed = [p.block_size for p in parts if not isinstance(p, Ranges)]
    block_size = fixed[0] if fixed else max(default_block_size(p) for p in parts)
    whole = as_blocks(parts[0], block_size)
    for part in parts[1:]:
        whole = join(*align(whole, as_blocks(part, block_size), n_heads, "or"), "or")
    return whole

