"""What options do to tiles of scores: softcap, bias and dropout, and the gradient that reaches a bias.

A tile has one token a row and one a lane. A bias is read at `row_codes[row's token] + lane_codes[lane's token]`, so it
does not matter here which of them are queries; only the draws of dropout ask.
"""

from collections import namedtuple

from sparseattn.kernels.numba_cpu import terms
from sparseattn.kernels.numba_cpu.compile import step
from sparseattn.kernels.numba_cpu.lanewise import dropped, tanh
from sparseattn.kernels.numba_cpu.simd import (add, data, first_lane, fma, lanes_of, load, mul, reverse, shift, slide,
                                               splat, store, sub, sum_of_lanes, transpose)

# of one head: `active`: scores are more than scale * q.k; `codes` and `words` of the lanes, and `spare`, lie in scratch
Shaping = namedtuple("Shaping", "active softcap biased labelled values labels row_codes lane_codes moved low high "
                                "row_step lane_step drops limit kept word tokens codes words spare")

UP, SAME, DOWN, SCATTERED = 1, 0, -1, 2  # how codes go on from lane to lane

draw = step(terms.draw)


@step
def shaping_of(options, b, head, tokens, codes, words, spare):
    """The options of a head, for lanes that hold `tokens`; codes, words (a number a lane) and spare are scratch."""
    biased = options.values.size > 0
    start, moved, first = 0, 0, 0
    if biased:
        start, moved, first = options.value_at[b, head, 0], options.value_at[b, head, 1], options.value_at[b, head, 2]
    word = draw(draw(options.word, b), head) if options.limit >= 0 else 0
    reach = options.reach
    return Shaping(options.softcap != 0 or biased, options.softcap, biased, options.labels.size > 0,
                   shift(data(options.values), start), shift(data(options.labels), first), data(options.row_codes),
                   data(options.lane_codes), moved, reach[0], reach[1], reach[2], reach[3], options.limit >= 0,
                   options.limit, options.kept, word, tokens, codes, words, spare)


@step
def open_lanes(shaping, width, queries):
    """Note codes and draws of the lanes' tokens, which are queries or keys."""
    if shaping.biased:
        for i in range(width):
            shaping.codes[i] = shaping.lane_codes[max(shaping.tokens[i], 0)]
    if shaping.drops:
        for i in range(width):
            number = max(shaping.tokens[i], 0)
            shaping.words[i] = draw(shaping.word, number) if queries else 0x9E3779B9 * number


@step
def shape_scores(s, stride, width, n, scale, rows, shaping, slopes, keeps):
    """Apply softcap and bias to raw products (n, width); rows: the rows' tokens. Returns the factor that s still needs.

    `keeps`: slopes (n, width) become the derivative of the softcap.
    """
    factor = scale
    if shaping.softcap != 0:
        cap_scores(s, stride, width, n, scale / shaping.softcap, shaping.softcap, slopes, keeps)
        factor = 1.0
    if shaping.biased:
        add_bias(s, stride, width, n, factor, rows, shaping)
        factor = 1.0
    return factor


@step
def cap_scores(s, stride, width, n, factor, softcap, slopes, keeps):
    """s = softcap * tanh(s * factor); `keeps`: slopes = 1 - tanh**2."""
    lanes = lanes_of(s)
    times, top, one = splat(s, factor), splat(s, softcap), splat(s, 1)
    for row in range(n):
        for at in range(row * stride, row * stride + width, lanes):
            share = tanh(mul(load(s, at), times))
            store(s, at, mul(share, top))
            if keeps:
                store(slopes, at, sub(one, mul(share, share)))


@step
def lane_run(shaping, col, lanes):
    """How the codes of a register of lanes go on; SCATTERED also where a lane is nobody's."""
    if shaping.labelled:
        return SCATTERED
    way = shaping.codes[col + 1] - shaping.codes[col]
    if way < -1 or way > 1:
        return SCATTERED
    for i in range(lanes):
        if shaping.tokens[col + i] < 0 or shaping.codes[col + i] != shaping.codes[col] + way * i:
            return SCATTERED
    return way


@step
def row_run(shaping, rows, row, lanes):
    """Whether the next rows, as many as lanes, have codes that go up by 1."""
    first = shaping.row_codes[max(rows[row], 0)]
    for i in range(lanes):
        if rows[row + i] < 0 or shaping.row_codes[rows[row + i]] != first + i:
            return False
    return not shaping.labelled


@step
def limited(place, shaping):
    """The place within the reach of the values: beyond it they are 0, or go on as they end."""
    return min(max(place, shaping.low), shaping.high)


@step
def place_of(code, row, lane, shaping):
    """Where the value of a pair of tokens stands."""
    place = limited(code, shaping)
    return shaping.labels[place] + row * shaping.row_step + lane * shaping.lane_step if shaping.labelled else place


@step
def add_bias(s, stride, width, n, factor, rows, shaping):
    """s = s * factor + bias; the scores of nobody stay 0, whatever the bias holds."""
    lanes = lanes_of(s)
    times = splat(s, factor)
    for col in range(0, width, lanes):
        way = lane_run(shaping, col, lanes)
        row = 0
        while row < n:
            at = row * stride + col
            if way == SCATTERED and row + lanes <= n and row_run(shaping, rows, row, lanes):
                add_square(s, at, stride, times, shaping.row_codes[rows[row]] + shaping.moved, col, shaping)
                row += lanes
                continue
            token = rows[row]
            row += 1
            if token < 0:
                continue
            code = shaping.row_codes[token] + shaping.moved
            if way == UP:
                more = load(shaping.values, limited(code + shaping.codes[col], shaping))
                store(s, at, fma(load(s, at), times, more))
            elif way == DOWN:
                more = load(shaping.values, limited(code + shaping.codes[col] - lanes + 1, shaping))
                store(s, at, fma(load(s, at), times, reverse(more)))
            elif way == SAME:
                more = splat(s, shaping.values[limited(code + shaping.codes[col], shaping)])
                store(s, at, fma(load(s, at), times, more))
            else:
                for i in range(lanes):
                    if shaping.tokens[col + i] >= 0:
                        place = place_of(code + shaping.codes[col + i], token, shaping.tokens[col + i], shaping)
                        s[at + i] = s[at + i] * factor + shaping.values[place]


@step
def add_square(s, at, stride, times, code, col, shaping):
    """add_bias for lanes x lanes scores whose values lie side by side along the rows: read so, then transposed."""
    lanes = lanes_of(s)
    turned, zero = shift(shaping.spare, lanes * lanes), splat(s, 0)
    for i in range(lanes):
        store(shaping.spare, i * lanes, zero)
        if shaping.tokens[col + i] >= 0:
            store(shaping.spare, i * lanes, load(shaping.values, limited(code + shaping.codes[col + i], shaping)))
    transpose(turned, 0, lanes, shaping.spare, 0, lanes)
    for i in range(lanes):
        here = at + i * stride
        store(s, here, fma(load(s, here), times, load(turned, i * lanes)))


@step
def add_bias_gradient(to, ds, stride, width, n, rows, shaping):
    """Add the gradients of scores (n, width) to those of the values they were given."""
    lanes = lanes_of(ds)
    for col in range(0, width, lanes):
        way = lane_run(shaping, col, lanes)
        row = 0
        while row < n:
            at = row * stride + col
            code = shaping.row_codes[max(rows[row], 0)] + shaping.moved
            place = code + shaping.codes[col] - (lanes - 1 if way == DOWN else 0)
            size, turn = 1, 0
            if way in (UP, DOWN):
                size, turn = diagonal_run(shaping, rows, row, n, place)
            if size > 1:
                add_diagonals(to, place, turn, ds, at, stride, size, way != turn, shaping.spare)
            elif rows[row] >= 0:
                place = limited(place, shaping)
                if way == UP:
                    store(to, place, add(load(to, place), load(ds, at)))
                elif way == DOWN:
                    store(to, place, add(load(to, place), reverse(load(ds, at))))
                elif way == SAME:
                    to[place] += sum_of_lanes(load(ds, at))
                else:
                    for i in range(lanes):
                        token = shaping.tokens[col + i]
                        if token >= 0:
                            to[place_of(code + shaping.codes[col + i], rows[row], token, shaping)] += ds[at + i]
            row += size


@step
def diagonal_run(shaping, rows, row, n, place):
    """Rows from `row` on whose codes go up by 1, or down, and which way; 1 where it is only one or a place, the first
    row's being `place`, is out of reach."""
    if rows[row] < 0 or row + 1 >= n or rows[row + 1] < 0:
        return 1, 0
    first = shaping.row_codes[rows[row]]
    turn = shaping.row_codes[rows[row + 1]] - first
    if turn != 1 and turn != -1:
        return 1, 0
    most = (shaping.high - place if turn > 0 else place - shaping.low) if shaping.low <= place <= shaping.high else 0
    lanes = lanes_of(shaping.values)
    size, most = 1, min(most, n - row, 2 * lanes * lanes)  # of those that `spare` holds
    while size < most and rows[row + size] >= 0 and shaping.row_codes[rows[row + size]] == first + turn * size:
        size += 1
    return size, turn


@step
def add_diagonals(to, place, turn, ds, at, stride, size, reverses, edges):
    """to[place + turn * row + lane] += ds[row, lane], lanes in the opposite order if `turn` and theirs differ.

    A register moves along `to` with the rows: each sum leaves it complete, into `edges`, at the end it moves away from.
    Adding each row to memory would read what the row before wrote a place beside, which processors wait for.
    """
    lanes = lanes_of(ds)
    sums = splat(ds, 0)
    for row in range(size):
        here = load(ds, at + row * stride)
        sums = add(sums, reverse(here) if reverses else here)
        edges[row if turn > 0 else size - 1 - row] = first_lane(sums)
        sums = slide(sums)
    begin = place if turn > 0 else place + lanes - size
    i = 0
    while i + lanes <= size:
        store(to, begin + i, add(load(to, begin + i), load(edges, i)))
        i += lanes
    while i < size:
        to[begin + i] += edges[i]
        i += 1
    end = place + turn * size
    store(to, end, add(load(to, end), sums if turn > 0 else reverse(sums)))


@step
def gradients_at(dvalues, options, slice_size, margin, b, head, number):
    """Where the gradients of a head's values begin: in the layout of the values, where each of them has one owner; else
    (slice_size > 0) `margin` after the beginning of the owner's slice, which is the slice of this number."""
    if slice_size > 0:
        return shift(data(dvalues), number * slice_size + margin)
    return shift(data(dvalues), options.value_at[b, head, 0] if dvalues.size > 0 else 0)


@step
def gradient_of_scores(ds, stride, width, n, scale, rows, shaping, slopes, dvalues):
    """From gradients (n, width) of finished scores to those of q.k; on the way the bias gets its own."""
    if shaping.biased:
        add_bias_gradient(dvalues, ds, stride, width, n, rows, shaping)
    lanes = lanes_of(ds)
    times = splat(ds, scale)
    for row in range(n):
        for at in range(row * stride, row * stride + width, lanes):
            slope = mul(load(slopes, at), times) if shaping.softcap != 0 else times
            store(ds, at, mul(load(ds, at), slope))


@step
def drop(p, stride, width, n, rows, shaping, keys):
    """Dropout: numbers (n, width) become 0 where their pair is not kept, else times `kept`. `keys`: rows are keys."""
    lanes = lanes_of(p)
    times = splat(p, shaping.kept)
    for row in range(n):
        number = max(rows[row], 0)
        word = 0x9E3779B9 * number if keys else draw(shaping.word, number)
        for col in range(0, width, lanes):
            at = row * stride + col
            store(p, at, dropped(mul(load(p, at), times), shaping.words, col, word, shaping.limit))
