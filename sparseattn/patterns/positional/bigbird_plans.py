"""How BigBird's random blocks are drawn: uniformly, or bit for bit as the released code does. Rows 1 to n_rows - 2."""

import numpy as np

from sparseattn.patterns.positional.random_blocks import distinct


def uniform_plan(n_rows, n_random, n_heads, seed, first, last, side):
    """Distinct blocks of all that are neither global nor in the window, int32 (n_heads, n_rows - 2, n_random), -1 for
    none."""
    row = np.arange(1, max(n_rows - 1, 1))
    low, high = np.clip(row - side, first, n_rows - last), np.clip(row + side + 1, first, n_rows - last)
    sizes = np.where(row < first, 0, n_rows - last - first - (high - low))
    drawn = distinct(np.random.default_rng(seed), np.broadcast_to(sizes, (n_heads, row.size)), n_random)
    # the numbers count blocks from the first that is not global, less the window
    blocks = first + drawn + np.where(first + drawn >= low[:, None], (high - low)[:, None], 0)
    return np.where(drawn < 0, -1, blocks).astype(np.int32)


def general_plan(n_rows, n_random, n_heads, seed):
    """The plan of the released code for any length: segments of rows and keys, one permutation a draw."""
    random = np.random.RandomState(seed)
    ends, counts = _segments(n_rows, n_random)
    drawn = np.zeros((n_heads, n_rows, n_random), np.int32)

    def draw(rows, segment):
        low = ends[segment - 1] if segment else 0
        at = sum(counts[:segment])
        for row in rows:
            for head in range(n_heads):
                legal = _legal(random.permutation(np.arange(low, ends[segment], dtype=np.int32)), row, ends[segment])
                if legal.size < counts[segment]:
                    raise ValueError(f"the official plan finds {legal.size} of {counts[segment]} random blocks for "
                                     f"row {row} of {n_rows}; "
                                     f"it needs n_rows > 2 * n_random + 5 or n_rows = n_random + 5: use plan='uniform'")
                drawn[head, row, at : at + counts[segment]] = legal[: counts[segment]]

    for s in range(len(ends)):
        if s > 0 and counts[s] > 0:
            draw(range(1, ends[s - 1]), s)
        for earlier in range(s):
            if counts[earlier] > 0:
                draw(range(ends[s - 1], ends[s]), earlier)
        if counts[s] > 0:
            draw(range(ends[s - 1] if s else 1, ends[s]), s)
    return drawn[:, 1:-1]


def _segments(n_rows, n_random):
    """Ends of the segments of blocks, and how many random blocks a row takes from each."""
    if n_rows > 2 * n_random + 5:
        return [2 * n_random + 5, n_rows], [n_random, 0]
    if n_rows > n_random + 5:
        return [n_random + 5, n_rows], [n_random // 2, n_random - n_random // 2]
    return [n_rows], [n_random]


def _legal(blocks, row, end):
    """Those of the permuted blocks that a row may take."""
    illegal = [row - 1, row, row + 1, 0, end - 1]
    if row == 1:
        illegal.append(end - 2)
    if row == end - 2:
        illegal.append(1)
    return blocks[~np.isin(blocks, illegal)]


def legacy_plan(n_rows, n_random, n_heads, seed, block_size, max_length):
    """The plan of the released code for lengths 1024, 3072 and 4096: all random keys in the first 1024 tokens."""
    random = np.random.RandomState(seed)
    m = max_length // block_size
    if m < n_rows:
        raise ValueError(f"the legacy plan is for at most max_length={max_length} tokens, {m} blocks, but there are "
                         f"{n_rows} blocks; raise max_length")
    last = 1024 // block_size - 1 if block_size < 512 else m - 1
    middle = np.arange(1, m - 1, dtype=np.int32)
    drawn = np.zeros((n_heads, m - 2, n_random), np.int32)
    for head in range(n_heads):
        for row in range(1, m - 1):
            pool = _legacy_pool(middle, row, m, last)
            taken = random.permutation(pool)[:n_random]
            if taken.size < n_random:
                raise ValueError(f"the legacy plan finds {taken.size} of {n_random} random blocks for row {row}; use "
                                 "plan='uniform'")
            drawn[head, row - 1] = taken
    return drawn[:, : max(n_rows - 2, 0)]


def _legacy_pool(middle, row, m, last):
    """Blocks that a row draws from: middle[b - 1] is block b, slices end at the last middle block by themselves."""
    if row == 1:
        return middle[2:last]
    if row == 2:
        return middle[3:last]
    if row in (m - 3, m - 2) or row - 2 > last:
        return middle[:last]
    if row + 1 == last:
        return middle[: row - 2]
    return np.concatenate([middle[: row - 2], middle[row + 1 : last]])
