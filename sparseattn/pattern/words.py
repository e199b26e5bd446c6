"""A pattern in words: what its repr says."""

from sparseattn.structure import Ranges


def describe(pattern):
    """Size, pairs and each part in a line."""
    n_q, n_k = pattern.shape
    axes = [f"{n} {name}" for n, name in ((pattern.batch, "batch items"), (pattern.n_heads, "heads")) if n > 1]
    whose = " x ".join(axes) if axes else "shared by all heads"
    place = "" if pattern.device == "cpu" else f", on {pattern.device}"
    head = f"Pattern {n_q} x {n_k}, {whose}: {amount(pattern.nnz)} pairs ({pattern.density:.2%}){place}"
    return "\n".join([head] + ["  " + _part(p) for p in pattern.to("cpu").parts])


def _part(part):
    if isinstance(part, Ranges):
        text = "key ranges"
    else:
        block_q, block_k = part.block_size
        text = f"{amount(part.n_blocks)} blocks of {block_q} x {block_k}" if part.block_size != (1, 1) else (
            f"{amount(part.n_blocks)} single pairs")
        if part.mask_ids is not None:
            text += f", {amount(int((part.mask_ids > 0).sum()))} partial with {amount(len(part.masks) - 1)} masks"
    sides = (("queries", part.q_order), ("keys", part.k_order))
    orders = [f"{side} in {order_words(order)}" for side, order in sides if order]
    if part.heads is not None:
        orders.append(f"heads {', '.join(map(str, part.heads))}")
    return ", ".join([text] + orders)


def order_words(order):
    """A few words on an order."""
    if order is None:
        return "natural order"
    if not order.is_affine:
        return f"a listed order of {amount(order.n_slots)}"
    return "an affine order of " + " x ".join(f"{n}{'' if s == 1 else f' (step {s})'}" for _, n, s in order.digits)


def amount(n):
    """A count in at most four digits: 512, 8.4K, 537M."""
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**4, "K")):
        if n >= size:
            scaled = n / (1000 if letter == "K" else size)
            return f"{scaled:.3g}{letter}"
    return str(n)
