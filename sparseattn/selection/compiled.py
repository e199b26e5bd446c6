"""Loops over tokens that NumPy has no function for, compiled by Numba on first use. Imported inside functions alone, so
that `import sparseattn` stays light; in one file, since Numba's cache does not see edits of what another file holds."""

import numpy as np
from numba import njit

BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


@njit(cache=True, nogil=True)
def products(q, panels, scores):
    """scores[i, c * width + j] = sum over d of q[i, d] * panels[c, d, j], in the order of d, without fused steps.

    Four rows and four d at a time: their numbers of q and the four rows of sums stay near, and each key is read once.
    """
    width = panels.shape[2]
    sums = np.empty((4, width), scores.dtype)
    for c in range(panels.shape[0]):
        k = panels[c]
        for i in range(0, q.shape[0], 4):
            for row in range(4):
                for j in range(width):
                    sums[row, j] = 0
            for d in range(0, q.shape[1], 4):
                q00, q01, q02, q03 = q[i, d], q[i, d + 1], q[i, d + 2], q[i, d + 3]
                q10, q11, q12, q13 = q[i + 1, d], q[i + 1, d + 1], q[i + 1, d + 2], q[i + 1, d + 3]
                q20, q21, q22, q23 = q[i + 2, d], q[i + 2, d + 1], q[i + 2, d + 2], q[i + 2, d + 3]
                q30, q31, q32, q33 = q[i + 3, d], q[i + 3, d + 1], q[i + 3, d + 2], q[i + 3, d + 3]
                for j in range(width):
                    k0, k1, k2, k3 = k[d, j], k[d + 1, j], k[d + 2, j], k[d + 3, j]
                    sums[0, j] = sums[0, j] + q00 * k0 + q01 * k1 + q02 * k2 + q03 * k3
                    sums[1, j] = sums[1, j] + q10 * k0 + q11 * k1 + q12 * k2 + q13 * k3
                    sums[2, j] = sums[2, j] + q20 * k0 + q21 * k1 + q22 * k2 + q23 * k3
                    sums[3, j] = sums[3, j] + q30 * k0 + q31 * k1 + q32 * k2 + q33 * k3
            for row in range(4):
                for j in range(width):
                    scores[i + row, c * width + j] = sums[row, j]


@njit(cache=True, nogil=True)
def top_of_rows(scores, limits, chosen):
    """chosen (n_rows, k) int32: columns of the k largest of scores[row, :limits[row]], rising; the rest stays as it is.

    Candidates are gathered in the order of columns until a buffer is full, which then keeps its k best. Afterwards a
    column enters only by a score above the least of them: of equal scores the first ones stay.
    """
    k = chosen.shape[1]
    size = max(4 * k, 64)
    values, cols, keys = np.empty(size, np.float64), np.empty(size, np.int32), np.empty(size, np.int64)
    for row in range(scores.shape[0]):
        n, least = 0, -np.inf
        for col in range(limits[row]):
            if scores[row, col] > least:
                values[n], cols[n] = scores[row, col] + 0.0, col  # -0.0 becomes 0.0
                n += 1
                if n == size:
                    least, n = keep_best(values, cols, keys, n, k), k
        if n > k:
            keep_best(values, cols, keys, n, k)
        for i in range(min(n, k)):
            chosen[row, i] = cols[i]


@njit(cache=True, nogil=True)
def keep_best(values, cols, keys, n, k):
    """Move the k best of n > k candidates to the front, their order kept; returns the least of them.

    The k-th largest is found by halving an interval: counting is free of branches, which sorting a few is not.
    """
    bits = values.view(np.int64)
    low = high = np.int64(0)
    for i in range(n):  # whole numbers in the order of the values
        keys[i] = bits[i] ^ ((bits[i] >> 63) & 0x7FFFFFFFFFFFFFFF)
        low, high = (keys[i], keys[i]) if i == 0 else (min(low, keys[i]), max(high, keys[i]))
    low, above = low - 1, 0
    while high - 1 > low:  # more than k keys are above `low`, at most k above `high`
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        count = 0
        for i in range(n):
            count += keys[i] > middle
        if count > k:
            low = middle
        else:
            high, above = middle, count
            if count == k:
                break
    ties, kept, least = k - above, 0, np.inf
    for i in range(n):
        if keys[i] > high or (keys[i] == high and ties > 0):
            ties -= keys[i] == high
            least = min(least, values[i])
            values[kept], cols[kept] = values[i], cols[i]
            kept += 1
    return least


@njit(cache=True, nogil=True)
def _product(x, y, acc):
    """x . y of (.., 8) numbers each, added up in one order wherever they stand; acc (8,): scratch."""
    acc[:] = 0
    for b in range(x.shape[0]):
        for lane in range(8):
            acc[lane] += x[b, lane] * y[b, lane]
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]))


@njit(cache=True, nogil=True)
def _bucket(token, columns, acc):
    """The number of the largest of [y, -y], y the products of a token with columns (n, .., 8)."""
    best, code = acc.dtype.type(-1), 0
    for c in range(columns.shape[0]):
        y = _product(token, columns[c], acc)
        own = c if y >= 0 else c + columns.shape[0]
        if abs(y) > best or (abs(y) == best and own < code):
            best, code = abs(y), own
    return code


@njit(cache=True, nogil=True)
def strongest(projected, factors, tokens, turns, slack, buckets):
    """Add to buckets (n_hashes, n): for each factor the number of the largest of [y, -y], y its columns of projected
    (n_hashes, columns, n); the first factor counts least. Ties to the lower number; NaN is never the largest.

    projected: products of tokens (n, .., 8) and turns (n_hashes, columns, .., 8) to within slack (n_hashes, n); where
    two are as near as that they are computed again, in one order.
    """
    size, acc = 1024, np.empty(8, projected.dtype)  # tokens whose best lie in the nearest cache
    best, second, code = np.empty(size, projected.dtype), np.empty(size, projected.dtype), np.empty(size, np.int32)
    for r in range(projected.shape[0]):
        first, weight = 0, np.int32(1)
        for factor in factors:
            half = np.int32(factor // 2)
            for begin in range(0, projected.shape[2], size):
                best[:], second[:], code[:] = -1, 0, 0
                for c in range(half):
                    column = projected[r, first + c, begin : begin + size]
                    for t in range(column.size):
                        y = column[t]
                        larger = abs(y) > best[t]
                        less = best[t] if larger else abs(y)
                        second[t] = less if less > second[t] else second[t]
                        best[t] = abs(y) if larger else best[t]
                        own = np.int32(c) if y >= 0 else np.int32(c + half)
                        code[t] = own if larger else code[t]
                for t in range(min(size, projected.shape[2] - begin)):
                    if not best[t] - second[t] > slack[r, begin + t]:
                        code[t] = _bucket(tokens[begin + t], turns[r, first : first + half], acc)
                    buckets[r, begin + t] += weight * code[t]
            first, weight = first + half, np.int32(weight * factor)


@njit(cache=True, nogil=True)
def sort_by_class(classes, n_classes, tokens):
    """tokens (lines, n) int32: 0 to n - 1 sorted by classes[line], stable."""
    starts = np.empty(n_classes + 1, np.int64)
    for line in range(classes.shape[0]):
        starts[:] = 0
        for c in classes[line]:
            starts[c + 1] += 1
        for c in range(n_classes):
            starts[c + 1] += starts[c]
        for t in range(classes.shape[1]):
            c = classes[line, t]
            tokens[line, starts[c]] = t
            starts[c] += 1


@njit(cache=True, nogil=True)
def slots_of_tokens(tokens, slots):
    """slots[line, tokens[line, s]] = s."""
    for line in range(tokens.shape[0]):
        for s in range(tokens.shape[1]):
            slots[line, tokens[line, s]] = s


@njit(cache=True, nogil=True)
def turn_bits(bits):
    """Exchange rows and columns of 32 x 32 bits, uint32 (32,), low bit first: halves, quarters, ... change places."""
    step, mask = 16, np.uint32(0xFFFF)
    while step:
        for first in range(0, 32, 2 * step):
            for row in range(first, first + step):
                moved = ((bits[row] >> np.uint32(step)) ^ bits[row + step]) & mask
                bits[row] ^= moved << np.uint32(step)
                bits[row + step] ^= moved
        step >>= 1
        mask ^= mask << np.uint32(step)


@njit(cache=True, nogil=True)
def turn_masks(packed, masks, live):
    """masks (n, block_k, words of 16 bits) uint16 from packed (n, block_q, words of 32 bits) uint32, bits low first.

    live (n, block_k): whether a slot has a bit. Both come as zeros.
    """
    n_masks, block_q, n_words = packed.shape
    block_k, square = masks.shape[1], np.empty(32, np.uint32)
    for m in range(n_masks):
        for word in range(n_words):
            for first in range(0, block_q, 32):
                for i in range(32):
                    square[i] = packed[m, first + i, word] if first + i < block_q else 0
                turn_bits(square)
                for j in range(min(32, block_k - 32 * word)):
                    masks[m, 32 * word + j, first // 16] = square[j] & 0xFFFF
                    if first // 16 + 1 < masks.shape[2]:
                        masks[m, 32 * word + j, first // 16 + 1] = square[j] >> 16
                    live[m, 32 * word + j] |= square[j] != 0


@njit(cache=True, nogil=True)
def _note_queries(queries, earlier, q_chunks, q_buckets, window, per_round, near, alike):
    """Set bit i of near[chunk] where query i of a tile saw the chunk in a round before `earlier`, and of alike[e,
    bucket] where its bucket in round e is this one. Without buckets (`alike` empty), rounds see each other's chunks."""
    before, seen = window
    for i in range(queries.size):
        token, bit = queries[i], np.uint64(1) << np.uint64(i)
        if token < 0:
            continue
        for e in range(earlier):
            for d in range(seen):
                other = (q_chunks[token, e] - before + d) % near.size
                if not alike.size or other // per_round == e:
                    near[other] |= bit
        for e in range(len(alike)):
            alike[e, q_buckets[token, e]] |= bit


@njit(cache=True, nogil=True)
def _forget_queries(queries, earlier, q_chunks, q_buckets, window, near, alike):
    """Clear what `_note_queries` set."""
    before, seen = window
    for token in queries:
        if token < 0:
            continue
        for e in range(earlier):
            for d in range(seen):
                near[(q_chunks[token, e] - before + d) % near.size] = 0
        for e in range(len(alike)):
            alike[e, q_buckets[token, e]] = 0


@njit(cache=True, nogil=True)
def _sits_earlier(token, first, n, k_round, k_chunks, per_round):
    """Whether a key of round k_round is, through another round, in one of the n chunks from `first` on."""
    for d in range(n):
        other = (first + d) % (k_chunks.shape[1] * per_round)
        if other // per_round != k_round and k_chunks[token, other // per_round] == other:
            return True
    return False


@njit(cache=True, nogil=True)
def _turn_tile(turned, gone):
    """gone (64, 2) uint32, bits of keys for each query, from turned (64,) uint64, bits of queries for each key."""
    square = np.empty(32, np.uint32)
    for half in range(2):
        for w in range(2):
            for j in range(32):
                square[j] = np.uint32(turned[32 * w + j] >> np.uint64(32 * half))
            turn_bits(square)
            for i in range(32):
                gone[32 * half + i, w] = square[i]


@njit(cache=True, nogil=True)
def _bits_within(keys, w, low, high):
    """A word whose bit j says whether low <= keys[w, j] <= high; keys (2, 32) int32."""
    word, low, high = np.uint32(0), np.int32(low), np.int32(high)
    for j in range(32):
        word |= BITS[j] if (keys[w, j] >= low) & (keys[w, j] <= high) else np.uint32(0)
    return word


@njit(cache=True, nogil=True)
def rising_slots(tokens, n, rising):
    """rising (n_hashes, tiles, tile) int8: the slots of each tile in the order of their tokens, -1 behind them."""
    tile_of, slot_of = np.empty(n, np.int32), np.empty(n, np.int8)
    for r in range(tokens.shape[0]):
        tile_of[:] = -1
        for t in range(tokens.shape[1]):
            for i in range(tokens.shape[2]):
                if tokens[r, t, i] >= 0:
                    tile_of[tokens[r, t, i]], slot_of[tokens[r, t, i]] = t, i
        filled = np.zeros(tokens.shape[1], np.int32)
        for token in range(n):
            t = tile_of[token]
            if t >= 0:
                rising[r, t, filled[t]] = slot_of[token]
                filled[t] += 1


@njit(cache=True, nogil=True)
def _past_bits(queries, q_rising, keys, k_rising, apart, past):
    """past (tile, 2): which keys of a tile are up to each query, before it with `apart`; by merging both in order."""
    p, first, second = 0, np.uint32(0), np.uint32(0)
    for i in q_rising:
        if i < 0:
            return
        while p < k_rising.size and k_rising[p] >= 0 and keys[k_rising[p]] <= queries[i] - apart:
            if k_rising[p] < 32:
                first |= BITS[k_rising[p]]
            else:
                second |= BITS[k_rising[p] - 32]
            p += 1
        past[i, 0], past[i, 1] = first, second


@njit(cache=True, nogil=True)
def round_masks(r, q_slots, k_slots, q_chunks, k_chunks, q_buckets, k_buckets, n_buckets, window, rules, q_rising,
                k_rising, masks, states, met):
    """masks (tiles of queries, tiles of keys that they see, tile, words) of the pairs of hash round r, and their states
    (tiles of queries, tiles of keys): -1 empty, 1 every pair of tokens, else 0.

    q_slots, k_slots: (n_hashes, chunks of a round, pieces, tile), the token at each slot, -1 for nobody, tile <= 64.
    q_chunks, k_chunks: (n, n_hashes), the chunk of a token in each round, numbered over all rounds; q_buckets,
    k_buckets: the same of its bucket, read where n_buckets > 0: then pairs of one bucket alone. window: chunks before,
    chunks seen. rules: once (not what met in an earlier round or chunk), causal, apart (no token is its own key).
    q_rising, k_rising: as from `rising_slots`, read with `causal`, tiles counted through a round. met[i] is set where
    query i has a key.
    """
    before, (once, causal, apart) = window[0], rules
    n_hashes, per_round, pieces, tile = q_slots.shape
    n_chunks, words, earlier = n_hashes * per_round, masks.shape[3], r if once else 0
    near = np.zeros(n_chunks, np.uint64)
    alike = np.zeros((n_hashes if n_buckets else 0, n_buckets), np.uint64)
    turned, gone, past = np.zeros(64, np.uint64), np.zeros((64, 2), np.uint32), np.zeros((64, 2), np.uint32)
    keys, live, there = np.zeros((2, 32), np.int32), np.empty(2, np.uint32), np.empty(2, np.uint32)
    for row in range(masks.shape[0]):
        chunk, queries = r * per_round + row // pieces, q_slots[r, row // pieces, row % pieces]
        _note_queries(queries, earlier, q_chunks, q_buckets, window, per_round, near, alike)
        for t in range(masks.shape[1]):
            place = chunk - before + t // pieces
            other, k_round = place % n_chunks, place % n_chunks // per_round
            own = apart and place == chunk and t % pieces == row % pieces
            borders = once and n_buckets == 0 and (chunk - before) // per_round != place // per_round
            some, live[:], there[:] = False, 0, 0
            for j in range(tile):
                token = k_slots[k_round, other % per_round, t % pieces, j]
                turned[j] = 0
                if token >= 0:
                    there[j >> 5] |= BITS[j & 31]
                if token < 0 or (n_buckets and k_round != r):
                    continue
                if borders and _sits_earlier(token, chunk - before, t // pieces, k_round, k_chunks, per_round):
                    continue
                keys[j >> 5, j & 31] = token
                live[j >> 5] |= BITS[j & 31]
                if earlier:
                    for e in range(n_hashes):
                        seen_by = near[k_chunks[token, e]]
                        turned[j] |= seen_by & alike[e, k_buckets[token, e]] if n_buckets else seen_by
                if n_buckets:
                    turned[j] |= ~alike[r, k_buckets[token, r]]
                some |= turned[j] != 0
            if some:
                _turn_tile(turned, gone)
            else:
                gone[:] = 0
            if causal:
                at = other % per_round * pieces + t % pieces
                _past_bits(queries, q_rising[r, row], k_slots[k_round, other % per_round, t % pieces],
                           k_rising[k_round, at], apart, past)
            empty, full = True, True
            for i in range(tile):
                token = queries[i]
                for w in range(words):
                    word = live[w] & ~gone[i, w] if token >= 0 else np.uint32(0)
                    if causal:
                        word &= past[i, w]
                    elif apart and k_round != r and word:
                        word &= ~_bits_within(keys, w, token, token)
                    elif own and w == i >> 5:
                        word &= ~BITS[i & 31]
                    masks[row, t, i, w] = word
                    empty &= word == 0
                    if token >= 0:
                        full &= word == there[w]
                        met[token] |= word != 0
            states[row, t] = -1 if empty else 1 if full else 0
        _forget_queries(queries, earlier, q_chunks, q_buckets, window, near, alike)


@njit(cache=True, nogil=True)
def number_memberships(members, n_met, numbers):
    """numbers[c, s]: in how many clusters before c token members[c, s] is; n_met (n,): in how many at all. -1: nobody.
    """
    n_met[:] = 0
    for c in range(members.shape[0]):
        for s in range(members.shape[1]):
            token = members[c, s]
            numbers[c, s] = -1
            if token >= 0:
                numbers[c, s] = n_met[token]
                n_met[token] += 1


@njit(cache=True, nogil=True)
def list_clusters(members, numbers, starts, clusters):
    """clusters[starts[token] + number]: the cluster that is a token's membership of this number."""
    for c in range(members.shape[0]):
        for s in range(members.shape[1]):
            if members[c, s] >= 0:
                clusters[starts[members[c, s]] + numbers[c, s]] = c


@njit(cache=True, nogil=True)
def rows_of_membership(members, numbers, number, tokens, cluster):
    """Fill rows of tiles, tokens (n_rows, tile) and the cluster (n_rows,) of each, with the members that are in a
    cluster by their membership of this number; -1 elsewhere. Returns the rows filled; it counts, too, where there are
    none to fill."""
    n_rows, tile = 0, tokens.shape[1]
    for c in range(members.shape[0]):
        i = 0
        for s in range(members.shape[1]):
            if members[c, s] >= 0 and numbers[c, s] == number:
                if tokens.shape[0]:
                    tokens[n_rows + i // tile, i % tile] = members[c, s]
                    cluster[n_rows + i // tile] = c
                i += 1
        n_rows += -(-i // tile)
    return n_rows


@njit(cache=True, nogil=True)
def _note_keys(slots, starts, clusters, note, shared):
    """Set, or clear, the bits shared[c] (n_clusters, pieces, words) of the keys in slots (pieces, tile) that are in
    cluster c too."""
    for t in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            if slots[t, j] >= 0:
                for at in range(starts[slots[t, j]], starts[slots[t, j] + 1]):
                    shared[clusters[at], t, j >> 5] = shared[clusters[at], t, j >> 5] | BITS[j & 31] if note else 0


@njit(cache=True, nogil=True)
def _count_up_to(slots, last):
    """How many tokens of slots (pieces, tile), rising with -1 behind them, are <= last."""
    low, high = 0, slots.size
    while low < high:
        middle = (low + high) // 2
        token = slots[middle // slots.shape[1], middle % slots.shape[1]]
        if token < 0 or token > last:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def _first_bits(n):
    """A word with its first n bits set; none for n < 0."""
    return np.uint32((np.uint64(1) << np.uint64(min(max(n, 0), 32))) - np.uint64(1))


@njit(cache=True, nogil=True)
def cluster_masks(order, queries, cluster, q_starts, q_clusters, k_slots, k_starts, k_clusters, offset, masks, states):
    """masks (n_rows, pieces, tile, words) of the rows of `rows_of_membership` with the keys of their cluster, k_slots
    (n_clusters, pieces, tile_k <= 64), but for pairs that met in an earlier cluster, and their states (n_rows, pieces):
    -1 empty, 1 every pair of tokens, else 0. starts, clusters: those of each token. offset: query i attends keys up to
    i + offset; negative: all. order: the rows sorted by cluster."""
    (n_clusters, pieces, tile_k), words = k_slots.shape, masks.shape[3]
    shared = np.zeros((n_clusters, pieces, words), np.uint32)
    live, past, own = np.empty(2, np.uint32), np.empty(queries.shape[1], np.int64), -1
    for row in order:
        if cluster[row] < 0:
            states[row] = -1
            continue
        if cluster[row] != own:
            if own >= 0:
                _note_keys(k_slots[own], k_starts, k_clusters, False, shared)
            own = cluster[row]
            _note_keys(k_slots[own], k_starts, k_clusters, True, shared)
        for i in range(queries.shape[1] if offset >= 0 else 0):
            past[i] = _count_up_to(k_slots[own], queries[row, i] + offset)
        for t in range(pieces):
            live[:] = 0
            for j in range(tile_k):
                if k_slots[own, t, j] >= 0:
                    live[j >> 5] |= BITS[j & 31]
            empty, full = True, True
            for i in range(queries.shape[1]):
                token = queries[row, i]
                for w in range(words):
                    word = live[w] if token >= 0 else np.uint32(0)
                    for at in range(q_starts[token], q_starts[token + 1]) if word else range(0):
                        if q_clusters[at] == own:
                            break
                        word &= ~shared[q_clusters[at], t, w]
                    if offset >= 0:
                        word &= _first_bits(past[i] - t * tile_k - 32 * w)
                    masks[row, t, i, w] = word
                    empty &= word == 0
                    full &= token < 0 or word == live[w]
            states[row, t] = -1 if empty else 1 if full else 0


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def inverse_lengths(x, inverse):
    """inverse (n,): 1 / |x[t]|, 1 for a vector of zeros. The order of the sum is left to the compiler, for speed."""
    for t in range(x.shape[0]):
        total = x.dtype.type(0)
        for d in range(x.shape[1]):
            total += x[t, d] * x[t, d]
        inverse[t] = 1 / np.sqrt(total) if total > 0 else 1


@njit(cache=True, nogil=True)
def top_of_clusters(scores, factors, tokens, means, margins, chosen):
    """As `top_of_rows`, of ``means[row] . tokens[col] * factors[col]``, each (.., 8) numbers. A factor of NaN: never.

    scores: products that times their factor are right to within margins[row] / 2; those near the best are computed
    again, in one order, so that equal tokens tie. Most are passed over: the k-th largest of the maxima of 4 k groups of
    columns is no more than the k-th best.
    """
    k, n, lowest = chosen.shape[1], scores.shape[1], scores.dtype.type(-np.inf)
    size, acc = max(4 * k, 64), np.empty(8, scores.dtype)
    values, cols, keys = np.empty(n + size, np.float64), np.empty(n + size, np.int32), np.empty(n + size, np.int64)
    most = np.empty(size, scores.dtype)
    for row in range(scores.shape[0]):
        floor, found = lowest, 0
        if n >= 2 * size:
            most[:] = lowest
            for first in range(0, n - size + 1, size):
                part, factor = scores[row, first : first + size], factors[first : first + size]
                for g in range(size):
                    s = part[g] * factor[g]
                    most[g] = s if s > most[g] else most[g]
            values[:size] = most
            floor = scores.dtype.type(keep_best(values, cols, keys, size, k)) - margins[row]
        for first in range(0, n, 32):
            part, factor, hits = scores[row, first : first + 32], factors[first : first + 32], 0
            for j in range(part.size):
                hits += part[j] * factor[j] >= floor
            for j in range(part.size if hits else 0):
                if part[j] * factor[j] >= floor:
                    s = _product(tokens[first + j], means[row], acc) * factor[j]
                    if s > lowest:
                        values[found], cols[found] = s + 0.0, first + j  # -0.0 becomes 0.0
                        found += 1
        if found > k:
            keep_best(values, cols, keys, found, k)
        chosen[row, : min(found, k)] = cols[: min(found, k)]


@njit(cache=True, nogil=True)
def add_rows(rows, tokens, total):
    """total[tokens[c, s]] += rows[c, s], in order; tokens of -1 are left out."""
    for c in range(tokens.shape[0]):
        for s in range(tokens.shape[1]):
            if tokens[c, s] >= 0:
                for d in range(rows.shape[2]):
                    total[tokens[c, s], d] += rows[c, s, d]
