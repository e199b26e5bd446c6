// Gradients of softmax attention in blocks of one query by b keys, one walk seen twice (KV picks the face), with the
// formulas of tile_backward.cu:
//   KV = 0: stationary x1 x2 = q dout: the query heads that share a row (at most 16) are the tile's rows;
//           moving y1 y2 = k v: `count` blocks of block_y keys.                                  out1 = dq
//   KV = 1: stationary x1 x2 = k v: block_x keys; moving y1 y2 = q dout: `count` queries times their `repeat` heads,
//           over the transposed structure.                                        out1 = dk, out2 = dv
// Nothing is added by several thread blocks, so results have equal bits every run.
//
// Grid: (most items of a place, places, SLICES); slice z writes D / SLICES of the result columns: widths whose results
// do not fit registers compute S and dP twice. Threads: 128. A step is COLS moving rows. ROWS = 16: each of the four
// warps has COLS / 4 of them and results of its own for all rows, added at the end in the order of the warps.
// ROWS = 64: each warp has 16 stationary rows and all COLS moving ones. Copies run ahead as in row_forward.cu.
// A moving row that is masked for all, nobody or past the end does not exist: it is never read.
// shared: 2 * (ROWS + STAGES * COLS) * row_bytes + KV * STAGES * COLS * 8 + (STAGES + 1) * COLS * (KV ? 12 : 4),
//   where row_bytes = HEAD_DIM * BITS / 8 + 16
#ifndef CTAS
#define CTAS 1   // thread blocks an SM should have room for
#endif

constexpr int THREADS = 128, WARPS = 4;
constexpr bool SPREAD = ROWS == 16;                   // warps have moving rows of their own
constexpr int OWN = SPREAD ? COLS / WARPS : COLS;     // moving rows of a warp
constexpr int W = D / SLICES;                         // result columns
constexpr int RING = STAGES + 1;                      // steps whose tokens are kept
constexpr int X_BYTES = ROWS * ROW_BYTES, Y_BYTES = COLS * ROW_BYTES;
constexpr int STATS_AT = 2 * X_BYTES + 2 * STAGES * Y_BYTES;
constexpr int TOKENS_AT = STATS_AT + KV * STAGES * COLS * 8;
constexpr int SUM_WIDTH = W + 8;                      // numbers of a row of sums: neighbouring rows in other banks
static_assert(ROWS == 16 || (ROWS == 64 && KV), "rows");
static_assert((OWN % 16 == 0 || (BITS == 32 && OWN % 8 == 0)) && OWN <= 64 && COLS <= THREADS && W % 16 == 0, "tile");
static_assert(WARPS * 16 * SUM_WIDTH * 4 <= STATS_AT, "sums");

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
row_backward(Rows<const element> x1, Rows<const element> x2, Rows<const element> y1, Rows<const element> y2, const float2* stats,
             const int* x_order, const int* y_order, const int* places, const int4* items, const int* indices, const int* mask_ids,
             const u32* masks, int block_x, int block_y, int n_x_slots, int n_y_slots, int head_dim, int v_dim, int n_heads, int n_x, int n_y,
             float scale,
             float softcap, const float* values, const i64* value_at, const int* labels, const code_t* x_codes, const code_t* y_codes,
             i64 low, i64 high, i64 x_step, i64 y_step, u32 limit, float kept, u32 word,
             void* dvalues, u64* row_sums, const double* grain, int adds, int n_slots, Rows<result> out1, Rows<result> out2, Rows<float> carry1, Rows<float> carry2,
             float* part1, float* part2, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  const int* place = places + 8 * number;
  if ((int)blockIdx.x >= place[5]) return;
  const int batch = place[0], x_head = place[1], y_head = place[2], repeat = place[3], x_at = place[6], y_at = place[7];
  const int4 item = items[place[4] + blockIdx.x];   // row, first, count, slot
  const int parts = KV ? repeat : block_y;          // moving rows of an entry
  const int total = item.z * parts, steps = (total + COLS - 1) / COLS, column = blockIdx.z * W;
  const Options options = {values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step, limit, word};

  // token and head of a stationary row; token -1: nobody
  auto x_token = [&](int row) {
    const int slot = KV ? item.x * block_x + row : item.x;
    return row < (KV ? block_x : repeat) && slot < n_x_slots ? token_at(x_order, x_at, slot, n_x) : -1;
  };
  auto head_of = [&](int row) { return KV ? x_head : x_head + row; };

  extern __shared__ __align__(128) unsigned char tiles[];
  const u32 shared = shared_address(tiles), y_tiles = shared + 2 * X_BYTES;
  int* tokens = (int*)(tiles + TOKENS_AT);      // rings of RING steps
  int* heads = tokens + RING * COLS;            // KV: of each moving row
  int* mask_of = heads + RING * COLS;           // KV
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, c = lane & 3;
  const int row = (SPREAD ? 0 : 16 * warp) + lane / 4, first_row = SPREAD ? 0 : 16 * warp, first_col = SPREAD ? warp * OWN : 0;

  // a thread's moving row: what is read for it, and where it is noted
  auto look = [&](int step) { return look_up(indices, mask_ids, item.y, step * COLS + thread, total, parts); };
  auto find = [&](const Moving& m) {
#if KV
    const bool there = m.block >= 0 && m.block < n_y_slots;
    return Found{there ? token_at(y_order, y_at, m.block, n_y) : -1, 0, 1u};
#else
    return find_key(m, block_y, masks, y_order, y_at, n_y_slots, n_y);
#endif
  };
  auto note = [&](int step, const Found& key, const Moving& m) {
    const int at = step % RING * COLS + thread;
    tokens[at] = key.attended();
    if (KV) { heads[at] = y_head + m.part; mask_of[at] = m.mask; }
  };
  auto fetch = [&](int step) {
    if (step < steps) {
      const int buffer = step % STAGES, ring = step % RING * COLS;
      const u32 to = y_tiles + buffer * 2 * Y_BYTES;
      auto begin = [&](const Rows<const element>& y) {
        return [&](int r) -> const element* {
          const int t = tokens[ring + r];
          return t < 0 ? nullptr : y.at(batch, KV ? heads[ring + r] : y_head) + t * y.token;
        };
      };
      load_rows<COLS, THREADS>(to, y1.data, head_dim, begin(y1));
      load_rows<COLS, THREADS>(to + Y_BYTES, y2.data, v_dim, begin(y2));
      if (KV && thread < COLS) {
        const int t = tokens[ring + thread];
        const float2* from = stats + (t < 0 ? 0 : ((i64)batch * n_heads + heads[ring + thread]) * n_y + t);
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared + STATS_AT + (buffer * COLS + thread) * 8), "l"(from) : "memory");
      }
    }
    commit();   // also an empty group, so that wait_for counts steps
  };

  if (!KV && x_token(0) < 0) return;
  Moving next;
  if (thread < COLS) {
#pragma unroll
    for (int step = 0; step < STAGES; step++) { const Moving m = look(step); note(step, find(m), m); }
    next = look(STAGES);
  }
  auto begin_x = [&](const Rows<const element>& x) {
    return [&](int r) -> const element* {
      const int t = x_token(r);
      return t < 0 ? nullptr : x.at(batch, head_of(r)) + t * x.token;
    };
  };
  load_rows<ROWS, THREADS>(shared, x1.data, head_dim, begin_x(x1));
  load_rows<ROWS, THREADS>(shared + X_BYTES, x2.data, v_dim, begin_x(x2));
  __syncthreads();
#pragma unroll
  for (int step = 0; step < STAGES; step++) fetch(step);

  int t[2];             // tokens of the thread's two rows
  float2 row_stats[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    t[h] = x_token(row + 8 * h);
    if (!KV) row_stats[h] = t[h] >= 0 ? stats[((i64)batch * n_heads + head_of(row + 8 * h)) * n_x + t[h]] : make_float2(POS_INF, 0.f);
  }
#if BIAS || DROPOUT
  Shaping row_shaping[2];   // with KV each moving row has a head of its own
  Side sides[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (!KV) row_shaping[h] = shaping_of(options, batch, x_head + min(row + 8 * h, repeat - 1), n_heads);
    sides[h] = stationary_side(row_shaping[h], x_codes, x_step, t[h]);
  }
#endif
#if SOFTCAP
  const Cap cap(scale, softcap);
  const float inverse = 1.f / softcap;
#endif
#if ROW_SUMS
  float row_sum[2] = {0.f, 0.f};
#endif
  const float factor = (SHAPED ? 1.f : scale) * LOG_UNIT;
  float sum1[1][W / 2], sum2[1][KV ? W / 2 : 4];
#pragma unroll
  for (int i = 0; i < W / 2; i++) { sum1[0][i] = 0.f; if (KV) sum2[0][i] = 0.f; }

#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    Found key;
    Moving found;
    if (thread < COLS) { key = find(next); found = next; next = look(step + STAGES + 1); }
    wait_for<STAGES - 1>();
    __syncthreads();
    const int buffer = step % STAGES, ring = step % RING * COLS + first_col + 2 * c;
    const Tile t1 = tile_at(y_tiles + buffer * 2 * Y_BYTES, COLS).from(first_col), t2 = tile_at(y_tiles + (buffer * 2 + 1) * Y_BYTES, COLS).from(first_col);
    float s[1][OWN / 2], d[1][OWN / 2];
    scores<1, OWN>(s, tile_at(shared, ROWS), first_row, t1, lane);
    scores<1, OWN>(d, tile_at(shared + X_BYTES, ROWS), first_row, t2, lane);

    // bit 2 j + i: the pair of the thread's row and moving row 8 j + 2 c + i is attended
    u32 attended[2] = {0, 0};
    bool masked = false;
#pragma unroll
    for (int j = 0; j < OWN / 8; j++) {
      const int2 pair = *(const int2*)(tokens + ring + 8 * j);
      attended[0] |= (u32)(pair.x >= 0) << 2 * j | (u32)(pair.y >= 0) << (2 * j + 1);
      if (KV) { const int2 m = *(const int2*)(mask_of + ring + 8 * j); masked = masked || m.x || m.y; }
    }
    attended[1] = attended[0];
    if (KV && __any_sync(~0u, masked)) {
#pragma unroll
      for (int i = 0; i < OWN / 4; i++) {
        const u32* bits = masks + (i64)mask_of[ring + i / 2 * 8 + i % 2] * block_x;
#pragma unroll
        for (int h = 0; h < 2; h++) attended[h] &= ~((~bits[min(row + 8 * h, block_x - 1)] & 1) << i);
      }
    }

#if SOFTCAP
    cap(s[0]);
#elif SHAPED
#pragma unroll
    for (int i = 0; i < OWN / 2; i++) s[0][i] *= scale;
#endif
    // s becomes the weights that multiply y2, d becomes dS times the slope of softcap
#pragma unroll
    for (int j = 0; j < OWN / 8; j++) {
      float4 q;   // lse and delta of two columns (KV) or of the thread's two rows
      if (KV) q = *(const float4*)(tiles + STATS_AT + (buffer * COLS + first_col + 8 * j + 2 * c) * 8);
      else q = make_float4(row_stats[0].x, row_stats[0].y, row_stats[1].x, row_stats[1].y);
#pragma unroll
      for (int i = 0; i < 2; i++) {
#if BIAS || DROPOUT
        const int y_token = tokens[ring + 8 * j + i];
        const Shaping col_shaping = KV ? shaping_of(options, batch, heads[ring + 8 * j + i], n_heads) : row_shaping[0];
        const Side side = moving_side(col_shaping, y_codes, y_step, y_token);
#endif
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int at = 4 * j + 2 * h + i;
          const bool second = KV ? i : h;
          bool there = attended[h] >> (2 * j + i) & 1, dropped = false;
#if SOFTCAP
          const float u = s[0][at] * inverse, slope = fmaf(-u, u, 1.f);
#endif
#if BIAS
          const Shaping& shaping = KV ? col_shaping : row_shaping[h];
          s[0][at] += value_of(options, shaping, sides[h], side);
          there = there && s[0][at] != NEG_INF;   // a bias of -inf leaves a pair out, even where dP is NaN
#endif
#if DROPOUT
          dropped = is_dropped(options, sides[h], side);
#endif
          s[0][at] = there ? s[0][at] : NEG_INF;
          weigh(s[0][at], second ? q.z : q.x, factor);
          pair_gradient(s[0][at], d[0][at], second ? q.w : q.y, dropped, kept);
          d[0][at] = there ? d[0][at] : 0.f;
#if ROW_SUMS
          row_sum[h] += d[0][at];
#endif
#if BIAS_GRAD   // with KV a row of nobody has weights too, and blocks that share the columns of dk and dv have the same
          if (d[0][at] != 0.f && (!KV || t[h] >= 0 && blockIdx.z == 0)) add_to_values(d[0][at], options, shaping, sides[h], side, dvalues, grain);
#endif
#if SOFTCAP
          if (there) d[0][at] *= slope;   // that of a key that nobody attends may be NaN
#endif
        }
      }
    }
#if KV
    accumulate<1, OWN, W>(sum2, s, t2, column, lane);
#endif
    accumulate<1, OWN, W>(sum1, d, t1, column, lane);
    // the ring's place of the step before this one, which all warps have left
    if (thread < COLS) note(step + STAGES, key, found);
    __syncthreads();
    fetch(step + STAGES);
  }
  wait_for<0>();
#if ROW_SUMS
#pragma unroll
  for (int h = 0; h < 2; h++)
    add_row_sum(row_sum[h], t[h] >= 0, row_sums + ((i64)batch * n_heads + head_of(row + 8 * h)) * n_x + t[h], grain[0]);
#endif

  // the warps' results take the place of the tiles, then whole rows are written
  auto write_rows = [&](const float (&sum)[W / 2], float f, int width, const Rows<result>& out, const Rows<float>& carry, float* part) {
    float* sums = (float*)tiles;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < W / 8; j++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        *(float2*)(sums + (16 * warp + lane / 4 + 8 * h) * SUM_WIDTH + 8 * j + 2 * c) = make_float2(sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]);
    __syncthreads();
    for (int i = thread; i < ROWS * W / 2; i += THREADS) {
      const int r = i / (W / 2), own = i % (W / 2) * 2, col = column + own, token = x_token(r);
      if (token < 0 || col >= width) continue;
      float x = 0.f, y = 0.f;
#pragma unroll
      for (int w = 0; w < (SPREAD ? WARPS : 1); w++) {
        const float2 z = *(const float2*)(sums + (16 * w + r) * SUM_WIDTH + own);
        x += z.x;
        y += z.y;
      }
      x *= f;
      y *= f;
      if (item.w >= 0) {
        write_pair_f32(part + (((i64)number * n_slots + item.w) * ROWS + r) * width, col, width, x, y);
        continue;
      }
      result* to = out.at(batch, head_of(r)) + token * out.token;
      if (adds) { const float2 before = read_pair_f32(carry.at(batch, head_of(r)) + token * carry.token, col, width); x += before.x; y += before.y; }
#if OUT32
      write_pair_f32(to, col, width, x, y);
#else
      write_pair(to, col, width, x, y);
#endif
    }
  };
  write_rows(sum1[0], scale, head_dim, out1, carry1, part1);
#if KV
  write_rows(sum2[0], DROPOUT ? kept : 1.f, v_dim, out2, carry2, part2);
#endif
}
