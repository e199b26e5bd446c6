"""The rules of the prefill estimators, slowly and in float64, pair by pair; nothing of the package is imported.

Each takes q (batch, n_heads, n_queries, d), k (batch, n_kv_heads, n_keys, d) and gives bool (batch, n_heads, n_queries,
n_keys). The last query sits at the last key.
"""

import numpy as np


def each_head(rule):
    """`rule` of one head's q and k, for all of them."""
    def mask(q, k, scale=None, **options):
        group, scale = q.shape[1] // k.shape[1], q.shape[3] ** -0.5 if scale is None else scale
        return np.array([[rule(q[b, h].astype(float), k[b, h // group].astype(float), scale, head=h, **options)
                          for h in range(q.shape[1])] for b in range(q.shape[0])])
    return mask


def positions(q, k):
    """(queries as keys count (n_queries, 1), keys (1, n_keys))."""
    return np.arange(len(k) - len(q), len(k))[:, None], np.arange(len(k))[None]


def probabilities(scores, allowed):
    """Softmax rows over the allowed."""
    e = np.where(allowed, np.exp(np.where(allowed, scores, 0)), 0)
    return e / e.sum(1, keepdims=True)


def last_softmax(q, k, scale, count):
    i, j = positions(q, k)
    return probabilities(q[-count:] @ k.T * scale, j <= i[-count:]), i[-count:], j


def best_first(scores):
    return sorted(range(len(scores)), key=lambda c: (-scores[c], c))


def lines_of(q, k, scale, n_vertical, n_slash, last_q, n_first, n_recent):
    """(chosen keys, chosen distances)."""
    p, i, j = last_softmax(q, k, scale, last_q)
    column = p.sum(0)
    distance = np.array([p[(i - j) == d].sum() for d in range(len(k))])
    column[:n_first], distance[:n_recent] = np.inf, np.inf
    return set(best_first(column)[:max(n_vertical, 30)]), set(best_first(distance)[:max(n_slash, 50)])


@each_head
def vertical_slash(q, k, scale, head, n_vertical, n_slash, last_q=64, exact=True, n_first=30, n_recent=30):
    columns, distances = lines_of(q, k, scale, n_vertical, n_slash, last_q, n_first, n_recent)
    i, j = positions(q, k)
    pairs = (np.isin(j, list(columns)) | np.isin(i - j, list(distances))) & (j <= i)
    if exact:
        return pairs
    row = np.arange(len(q))[:, None] // 64
    tile = row * len(k) + j // 64
    return np.isin(tile, tile[pairs | (i == j)]) & (j <= i)


@each_head
def xattention(q, k, scale, head, stride, threshold, block_size=128):
    threshold = np.broadcast_to(threshold, head + 1)[head] if np.ndim(threshold) == 0 else threshold[head]
    offset, n_q, n_k = (len(k) - len(q)) // stride, -(-len(q) // stride), -(-len(k) // stride)
    s = np.zeros((n_q, n_k))
    for a, b, u in np.ndindex(n_q, n_k, stride):
        i, j = a * stride + stride - 1 - u, b * stride + u
        if i < len(q) and j < len(k):
            s[a, b] += q[i] @ k[j] * scale / stride
    p = probabilities(s, np.arange(n_k) <= np.arange(n_q)[:, None] + offset)
    per, chosen = block_size // stride, set()
    for r in range(-(-n_q // per)):
        own = r + offset // per
        mass = [p[r * per : (r + 1) * per, c * per : (c + 1) * per].sum() for c in range(own + 1)]
        taken = {0, own}
        for c in best_first(mass):
            if c not in taken and sum(mass[t] for t in taken) < threshold * sum(mass):
                taken.add(c)
        chosen |= {(r, c) for c in taken}
    return blocks_as_pairs(q, k, chosen, block_size, block_size)


def blocks_as_pairs(q, k, chosen, block_q, block_k):
    i, j = positions(q, k)
    layout = np.zeros((-(-len(q) // block_q), -(-len(k) // block_k)), bool)
    for r, c in chosen:
        layout[r, c] = True
    return layout[np.arange(len(q))[:, None] // block_q, j // block_k] & (j <= i)


def pieces(x, block):
    return [x[at : at + block] for at in range(0, len(x), block)]


def likeness(x):
    unit = x / np.sqrt((x * x).sum(1, keepdims=True))
    return np.mean([a @ b for a in unit for b in unit])


@each_head
def sparge(q, k, scale, head, tau, theta):
    rows, cols, offset, chosen = pieces(q, 128), pieces(k, 64), len(k) - len(q), set()
    alike = [likeness(x) >= theta for x in cols]
    for r, x in enumerate(rows):
        positions_of_row = range(offset + 128 * r, offset + 128 * r + len(x))
        before = [c for c in range(len(cols)) if 64 * c <= positions_of_row[-1]]
        own = {p // 64 for p in positions_of_row}
        told = [c for c in before if alike[c]]
        e = np.exp([x.mean(0) @ cols[c].mean(0) * scale for c in told])
        p, total, taken = dict(zip(told, e / e.sum())), 0.0, set()
        for c in sorted(told, key=lambda c: (-p[c], c)):
            total += p[c]
            if total <= tau or not taken:
                taken.add(c)
            else:
                break
        taken |= own | {c for c in before if not alike[c]}
        chosen |= {(r, c) for c in (taken if likeness(x) >= theta else before)}
    return blocks_as_pairs(q, k, chosen, 128, 64)


@each_head
def flex_prefill(q, k, scale, head, gamma, tau, block_size=128, min_budget=1, max_budget=10**9):
    size, (p, i, j) = block_size, last_softmax(q, k, scale, block_size)
    column = p.mean(0)
    diagonal = np.array([p[(i - j) == d].sum() for d in range(len(k))]) / len(p)
    means = np.array([x.mean(0) for x in pieces(k, size)])
    a = np.array([x.sum() for x in pieces(column, size)])
    b = probabilities(q[-size:].mean(0)[None] @ means.T * scale, True)[0]
    middle = (a + b) / 2
    believed = np.sqrt((a * np.log(a / middle) + b * np.log(b / middle)).sum() / 2) < tau
    least, most = -(-min_budget // size), -(-max_budget // size)
    counts = []
    for mass in (column, diagonal):
        total, count = 0.0, 0
        for x in sorted(mass, reverse=True):
            if total < gamma:
                total, count = total + x, count + 1
        counts.append(min(max(1 if believed else count // size + 1, least), most))
    d = np.array([x.sum() for x in pieces(diagonal, size)])
    a[0], d[0] = np.inf, np.inf
    columns, diagonals = (set(best_first(x)[:n]) for x, n in zip((a, d), counts))
    n_rows, offset = -(-len(q) // size), (len(k) - len(q)) // size
    every = [(r, c) for r in range(n_rows) for c in range(r + offset + 1)]
    chosen = {(r, c) for r, c in every if c in columns or r + offset - c in diagonals}
    if believed:
        pooled = np.array([x.mean(0) for x in pieces(q, size)]) @ means.T * scale
        mass = probabilities(pooled, np.arange(len(means)) <= np.arange(n_rows)[:, None] + offset)
        total = 0.0
        for r, c in sorted(every, key=lambda rc: (-mass[rc], rc)):
            total += mass[r, c]
            if total <= gamma * n_rows:
                chosen.add((r, c))
    return blocks_as_pairs(q, k, chosen, size, size)
