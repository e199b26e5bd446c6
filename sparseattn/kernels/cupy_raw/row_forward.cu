// Softmax attention of one query over b keys a block, forward: the query heads that share a row of the structure and a
// k/v head (at most 16) are the rows of the matrix tile. Serves top-k and selected blocks, single queries over a long
// cache, and pairs that fill no tile. Online softmax over pieces of a row, merged by their sums of weights: Dao et al.,
// "Flash-Decoding", 2023; the heads of a group as rows: Ainslie et al., "GQA", 2023 (arXiv:2305.13245).
//
// Grid: (most items of a place, places); a thread block takes one item: one query and `count` blocks of block_y keys.
// Threads: 128. A step is COLS keys; each of the four warps has COLS / 4 of them, with a maximum, a sum and an output
// of its own for all 16 rows. At the end they are merged through shared memory in the order of the warps.
// Bytes, not products, bound this kernel, so copies run ahead: K and V of the next STAGES steps are under way, the
// tokens of a step are known STAGES steps ahead and its block numbers one more, so no step waits for a chain of reads.
// A key that is masked, nobody or past the end does not exist: it is never read.
// shared: (16 + 2 * STAGES * COLS) * row_bytes + (STAGES + 1) * COLS * 4, where row_bytes = HEAD_DIM * BITS / 8 + 16
#ifndef CTAS
#define CTAS 1   // thread blocks an SM should have room for
#endif

constexpr int THREADS = 128, WARPS = 4;
constexpr int HEADS = 16;              // rows of the tile
constexpr int OWN = COLS / WARPS;      // keys of a warp
constexpr int RING = STAGES + 1;       // steps whose tokens are kept
constexpr int X_BYTES = HEADS * ROW_BYTES, Y_BYTES = COLS * ROW_BYTES;
constexpr int TOKENS_AT = X_BYTES + 2 * STAGES * Y_BYTES;
constexpr int SUM_WIDTH = D + 8;       // numbers of a row of sums: neighbouring rows in other banks
constexpr int STATES_AT = WARPS * HEADS * SUM_WIDTH * 4;
static_assert((OWN == 16 || (BITS == 32 && OWN == 8)) && COLS <= THREADS && STATES_AT + WARPS * HEADS * 8 <= TOKENS_AT, "tile");

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
row_forward(Rows<const element> q, Rows<const element> k, Rows<const element> v, const int* x_order, const int* y_order, const int* places,
            const int4* items, const int* indices, const int* mask_ids, const u32* masks, int block_y, int n_y_slots, int head_dim, int v_dim,
            int n_heads, int n_x, int n_y, float scale,
            float softcap, const float* values, const i64* value_at, const int* labels, const code_t* x_codes, const code_t* y_codes,
            i64 low, i64 high, i64 x_step, i64 y_step, u32 limit, float kept, u32 word,
            int resumes, int keeps, int n_slots, Rows<element> out, Rows<float> carry, float* lse, float* part_out, float* part_lse, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  const int* place = places + 8 * number;
  if ((int)blockIdx.x >= place[5]) return;
  const int batch = place[0], x_head = place[1], y_head = place[2], repeat = place[3], y_at = place[7];
  const int4 item = items[place[4] + blockIdx.x];   // row, first, count, slot
  const int x_token = token_at(x_order, place[6], item.x, n_x);
  if (x_token < 0) return;
  const int total = item.z * block_y, steps = (total + COLS - 1) / COLS;
  const Options options = {values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step, limit, word};

  extern __shared__ __align__(128) unsigned char tiles[];
  const u32 shared = shared_address(tiles), y_tiles = shared + X_BYTES;
  int* tokens = (int*)(tiles + TOKENS_AT);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, c = lane & 3, r = lane / 4;

  auto look = [&](int step) { return look_up(indices, mask_ids, item.y, step * COLS + thread, total, block_y); };
  auto find = [&](const Moving& m) { return find_key(m, block_y, masks, y_order, y_at, n_y_slots, n_y); };
  auto fetch = [&](int step) {
    if (step < steps) {
      const u32 to = y_tiles + step % STAGES * 2 * Y_BYTES;
      const int* t = tokens + step % RING * COLS;
      load_tile<COLS, THREADS>(to, k.at(batch, y_head), k.token, head_dim, [&](int row) { return t[row]; });
      load_tile<COLS, THREADS>(to + Y_BYTES, v.at(batch, y_head), v.token, v_dim, [&](int row) { return t[row]; });
    }
    commit();   // also an empty group, so that wait_for counts steps
  };

  Moving next;
  if (thread < COLS) {
#pragma unroll
    for (int step = 0; step < STAGES; step++) tokens[step * COLS + thread] = find(look(step)).attended();
    next = look(STAGES);
  }
  const element* first_row = q.at(batch, x_head) + x_token * q.token;
  load_rows<HEADS, THREADS>(shared, first_row, head_dim, [&](int row) { return row < repeat ? first_row + row * q.head : nullptr; });
  __syncthreads();
#pragma unroll
  for (int step = 0; step < STAGES; step++) fetch(step);

#if BIAS || DROPOUT
  Shaping shaping[2];   // of the heads of the thread's two rows
  Side sides[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    shaping[h] = shaping_of(options, batch, x_head + min(r + 8 * h, repeat - 1), n_heads);
    sides[h] = query_side(shaping[h], x_codes, x_step, x_token);
  }
#endif
#if SOFTCAP
  const Cap cap(scale, softcap);
#endif
  float o[1][D / 2];
  Row rows[1][2];
#pragma unroll
  for (int i = 0; i < D / 2; i++) o[0][i] = 0.f;
  const float unit = SHAPED ? 1.f : scale, scale2 = unit * LOG2E, slack = 8.f / scale2;

#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    Found key;
    if (thread < COLS) { key = find(next); next = look(step + STAGES + 1); }
    wait_for<STAGES - 1>();
    __syncthreads();
    const Tile keys = tile_at(y_tiles + step % STAGES * 2 * Y_BYTES, COLS).from(warp * OWN), own_values = tile_at(y_tiles + (step % STAGES * 2 + 1) * Y_BYTES, COLS).from(warp * OWN);
    const int* t = tokens + step % RING * COLS + warp * OWN + 2 * c;
    float s[1][OWN / 2];
    scores<1, OWN>(s, tile_at(shared, HEADS), 0, keys, lane);
#if SOFTCAP
    cap(s[0]);
#elif SHAPED
#pragma unroll
    for (int i = 0; i < OWN / 2; i++) s[0][i] *= scale;
#endif
#pragma unroll
    for (int j = 0; j < OWN / 8; j++) {
      const int2 pair = *(const int2*)(t + 8 * j);
#if BIAS
      const Side two[2] = {key_side(y_codes, y_step, pair.x), key_side(y_codes, y_step, pair.y)};
#endif
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& z = s[0][4 * j + i];
#if BIAS
        z += value_of(options, shaping[i / 2], sides[i / 2], two[i % 2]);
#endif
        z = (i % 2 ? pair.y : pair.x) < 0 ? NEG_INF : z;
      }
    }
    float base[1][2], f[1][2];
    online_softmax(s, rows, scale2, slack, base, f);
    weigh<OWN / 2>(s[0], rows[0], scale2, base[0]);
    rescale(o, f);
#if DROPOUT
#pragma unroll
    for (int j = 0; j < OWN / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (is_dropped(options, sides[i / 2], key_side(y_codes, y_step, t[8 * j + i % 2]))) s[0][4 * j + i] = 0.f;
#endif
    accumulate<1, OWN, D>(o, s, own_values, 0, lane);
    // the ring's place of the step before this one, which all warps have left
    if (thread < COLS) tokens[(step + STAGES) % RING * COLS + thread] = key.attended();
    __syncthreads();
    fetch(step + STAGES);
  }
  wait_for<0>();
  __syncthreads();

  // each warp's maximum and sum, then its output on the common maximum, take the place of the tiles
  float* sums = (float*)tiles;
  float2* states = (float2*)(tiles + STATES_AT);
  Row &row0 = rows[0][0], &row1 = rows[0][1];
#pragma unroll
  for (int d = 1; d < 4; d *= 2) {
    row0.l += __shfl_xor_sync(~0u, row0.l, d);
    row1.l += __shfl_xor_sync(~0u, row1.l, d);
  }
  if (c == 0) {
    states[warp * HEADS + r] = make_float2(row0.m, row0.l);
    states[warp * HEADS + r + 8] = make_float2(row1.m, row1.l);
  }
  __syncthreads();
  auto highest = [&](int row) { return fmaxf(fmaxf(states[row].x, states[HEADS + row].x), fmaxf(states[2 * HEADS + row].x, states[3 * HEADS + row].x)); };
  auto factor = [&](float m, float top) { return m == NEG_INF ? 0.f : ex2((m - top) * scale2); };
  const float f0 = factor(row0.m, highest(r)), f1 = factor(row1.m, highest(r + 8));
  float* mine = sums + (warp * HEADS + r) * SUM_WIDTH + 2 * c;
#pragma unroll
  for (int j = 0; j < D / 8; j++) {
    *(float2*)(mine + 8 * j) = make_float2(o[0][4 * j] * f0, o[0][4 * j + 1] * f0);
    *(float2*)(mine + 8 * SUM_WIDTH + 8 * j) = make_float2(o[0][4 * j + 2] * f1, o[0][4 * j + 3] * f1);
  }
  __syncthreads();

  // eight threads write a row
  const int row = thread / 8, head = x_head + row;
  const bool written = row < repeat, whole = item.w < 0;
  const float top = highest(row);
  float l = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) l += states[w * HEADS + row].y * factor(states[w * HEADS + row].x, top);
  float f = l == 0.f ? 0.f : (DROPOUT ? kept : 1.f) / l, e = log_sum(top, l, unit), old = 0.f;
  const i64 at = ((i64)batch * n_heads + head) * n_x + x_token;
  const i64 part_row = ((i64)number * n_slots + item.w) * HEADS + row;
  const float before = written && whole && resumes ? lse[at] : NEG_INF, higher = fmaxf(e, before);
  __syncwarp();   // all eight have read it before one of them writes
  if (before != NEG_INF) {
    const float a = ex2((e - higher) * LOG2E), b = ex2((before - higher) * LOG2E), share = 1.f / (a + b);
    f *= a * share;
    old = b * share;
    e = higher + logf(a + b);
  }
  if (!written) return;
  if (thread % 8 == 0) (whole ? lse[at] : part_lse[part_row]) = e;
#pragma unroll 4
  for (int col = thread % 8 * 2; col < v_dim; col += 16) {
    float x = 0.f, y = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float2 z = *(const float2*)(sums + (w * HEADS + row) * SUM_WIDTH + col);
      x += z.x;
      y += z.y;
    }
    x *= f;
    y *= f;
    if (!whole) { write_pair_f32(part_out + part_row * v_dim, col, v_dim, x, y); continue; }
    float* kept_row = carry.at(batch, head) + x_token * carry.token;
    if (resumes == 1) {
      const float2 z = read_pair_f32(kept_row, col, v_dim);
      x = fmaf(old, z.x, x);
      y = fmaf(old, z.y, y);
    }
    if (keeps != ONLY_KEPT) write_pair(out.at(batch, head) + x_token * out.token, col, v_dim, x, y);
    if (keeps) write_pair_f32(kept_row, col, v_dim, x, y);
  }
}
