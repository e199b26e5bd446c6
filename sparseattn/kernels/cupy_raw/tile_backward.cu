// Gradients of block-sparse attention, one walk seen twice (KV picks the face). A stationary tile x of ROWS rows meets
// the moving rows y of its entries:
//   KV = 1: x1 x2 = k v, y1 y2 = q dout, over the transposed structure: out1 = dk = sum dS y1, out2 = dv = sum P y2
//   KV = 0: x1 x2 = q dout, y1 y2 = k v, over the structure itself:     out1 = dq = sum dS y1
// with S = x1 y1^T, dP = x2 y2^T, P = e^(S scale - lse), dS = P (dP - delta): Dao, "FlashAttention-2", 2023
// (arXiv:2307.08691), equations of its section 3.1. S and dP are computed in both walks, so nothing is added by
// several thread blocks and results have equal bits every run.
//
// Grid: (most items of a place, places). Threads: 32 * SLICES for each WARP_ROWS of the ROWS stationary rows. Warp w has those
// from WARP_ROWS * (w % WARPS) on and the D / SLICES result columns of slice w / WARPS. SLICES = 2 is for widths whose
// results do not fit a warp's registers: one warp computes S, the other dP, and they swap them through shared memory.
// WARP_ROWS = 32 reads each moving row half as often as 16, and has registers for one result alone.
// A step is COLS moving rows of one head. Reading runs ahead of the products: rows, statistics and bits one step, tokens
// two, block numbers three, so no step waits for a chain of reads. STAGES = 1 keeps one tile of moving rows, not two.
// A warp goes past the steps that nothing of its rows meets.
// shared: 2 * (ROWS + STAGES * COLS) * row_bytes + STAGES * COLS * (8 + ROWS / 8) + (SLICES == 2) * 4 * ROWS * COLS, where
//   row_bytes = HEAD_DIM * BITS / 8 + 16, in float32 of 32 columns 64 more; and 4 Steps of a fixed size
#ifndef CTAS
#define CTAS 1   // thread blocks an SM should have room for
#endif

#ifndef WARP_ROWS
#define WARP_ROWS 16
#endif

constexpr int M = WARP_ROWS / 16;                // 16-row tiles of a warp
constexpr int WARPS = ROWS / (16 * M);           // of a slice
constexpr int THREADS = 32 * WARPS * SLICES;
constexpr int W = D / SLICES;                    // result columns of a warp
constexpr int STEPS = BLOCK_Y / COLS;            // of a block
constexpr int WORDS = COLS / 32;                 // mask words of a row and step
constexpr int BLOCK_WORDS = BLOCK_Y / 32;
constexpr int X_BYTES = TILE_BYTES<ROWS>, Y_BYTES = TILE_BYTES<COLS>;
constexpr bool EARLY = SLICES == 1 && !SOFTCAP;   // whether dP comes after the weights, which are then made beside its products
constexpr int STATS_AT = 2 * X_BYTES + 2 * STAGES * Y_BYTES;
constexpr int MASKS_AT = STATS_AT + STAGES * COLS * 8;
constexpr int SWAP_AT = MASKS_AT + STAGES * ROWS * WORDS * 4;
static_assert(D % (16 * SLICES) == 0 && ROWS % 16 == 0 && BLOCK_Y % COLS == 0 && THREADS >= COLS && SLICES <= 2 && (M == 1 || SLICES == 1 && !KV) && SWAP_AT % 16 == 0, "tile");

// A warp's results, times f: to rows of a partial tile from `part` on, or to the rows of tokens, of which each lane knows its
// row's (-1: none). `tile`: rows of a tile that only this warp has read.
__device__ __forceinline__ void write_results(float (&o)[M][W / 2], float f, int first, int width, int token, const Rows<result>& out, const Rows<float>& carry,
                                              int batch, int head, bool adds, float* part, u32 tile, int lane) {
  const int c = lane & 3;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = 16 * m + 8 * h + lane / 4, t = __shfl_sync(~0u, token, r);
      float2 sum[W / 8];
#pragma unroll
      for (int j = 0; j < W / 8; j++) sum[j] = make_float2(0.f, 0.f);
      if (adds) {   // all are read before any is waited for; nobody reads some row
        const float* before = carry.at(batch, head) + max(t, 0) * carry.token;
#pragma unroll
        for (int j = 0; j < W / 8; j++) sum[j] = read_pair_f32(before, first + 8 * j + 2 * c, width);
      }
#pragma unroll
      for (int j = 0; j < W / 8; j++) {
        float &x = o[m][4 * j + 2 * h], &y = o[m][4 * j + 2 * h + 1];
        x = fmaf(x, f, sum[j].x);
        y = fmaf(y, f, sum[j].y);
      }
      auto pair = [&](int j) { return make_float2(o[m][4 * j + 2 * h], o[m][4 * j + 2 * h + 1]); };
      if (part) write_row_f32<W>(part + r * width, first, width, c, pair);
#if OUT32
      else if (t >= 0) write_row_f32<W>(out.at(batch, head) + t * out.token, first, width, c, pair);
#endif
    }
#if !OUT32
  if (!part) write_rows<M, W>(out, batch, head, token, first, width, tile, o, lane);
#endif
}

// The two warps of the same rows wait for each other.
__device__ __forceinline__ void meet(int row) { asm volatile("bar.sync %0, 64;" ::"r"(1 + row / 16) : "memory"); }
// After it both have s as slice 0 had it and d as slice 1 had it; `at` is a place for COLS / 2 numbers of each lane.
__device__ __forceinline__ void swap(float (&s)[COLS / 2], float (&d)[COLS / 2], int slice, int row, float4* at) {
  float4 own[COLS / 8];
#pragma unroll
  for (int j = 0; j < COLS / 8; j++) own[j] = make_float4(s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]);
  if (slice == 0)
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) at[32 * j] = own[j];
  meet(row);
  if (slice == 1)
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) { const float4 other = at[32 * j]; at[32 * j] = own[j]; own[j] = other; }
  meet(row);
#pragma unroll
  for (int j = 0; j < COLS / 8; j++) {
    float4 x = own[j], y = slice == 0 ? at[32 * j] : make_float4(s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]);
    s[4 * j] = x.x; s[4 * j + 1] = x.y; s[4 * j + 2] = x.z; s[4 * j + 3] = x.w;
    d[4 * j] = y.x; d[4 * j + 1] = y.y; d[4 * j + 2] = y.z; d[4 * j + 3] = y.w;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
tile_backward(Rows<const element> x1, Rows<const element> x2, Rows<const element> y1, Rows<const element> y2, const float2* stats,
              const int* x_order, const int* y_order, const int* places, const int4* items, const int* indices, const int* mask_ids,
              const u32* masks, const u32* live, int head_dim, int v_dim, int n_heads, int n_x, int n_y, float scale,
              float softcap, const float* values, const i64* value_at, const int* labels, const code_t* x_codes, const code_t* y_codes,
              i64 low, i64 high, i64 x_step, i64 y_step, u32 limit, float kept, u32 word,
              void* dvalues, u64* row_sums, const double* grain, int adds, int n_slots, Rows<result> out1, Rows<result> out2, Rows<float> carry1, Rows<float> carry2,
              float* part1, float* part2, int together, int apart, int first_place) {
  const Turn turn = turn_of(first_place, BIAS == BY_CODE || BIAS == BY_LABEL ? together : 1, apart);
  const int4 *place = (const int4*)places + 2 * turn.place, who = place[0], where = place[1];
  int4 item = items[turn.item];   // row, first, count, slot; right where the place's begin the list, read meanwhile
  if (turn.item >= where.y) return;
  if (where.x) item = items[where.x + turn.item];
  const int batch = who.x, x_head = who.y, y_head = who.z, n_y_heads = who.w, x_at = where.z, y_at = where.w;
  const int steps = item.z * STEPS * (KV ? n_y_heads : 1);
  const Options options = {values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step, limit, word};

  extern __shared__ __align__(128) unsigned char tiles[];
  const u32 shared = shared_address(tiles), y_tiles = shared + 2 * X_BYTES;
  const Tile tx1 = tile_at(shared, ROWS), tx2 = tile_at(shared + X_BYTES, ROWS);
  __shared__ Step<COLS> moving[4];
  const int thread = threadIdx.x, lane = thread % 32, c = lane & 3, row = thread / 32 % WARPS * 16 * M, slice = thread / (32 * WARPS);

  const int head_steps = item.z * STEPS;
  int ahead = 0, fetched = 0, fetch_head = y_head;   // steps of a head whose block is known, whose rows are fetched; the head of those
  auto next_block = [&]() {   // block number and mask; behind the last one once more the first
    const int entry = item.y + ahead / STEPS;
    ahead = ahead + 1 == head_steps ? 0 : ahead + 1;
    return make_int2(indices[entry], mask_ids[entry]);
  };
  auto find = [&](int step, int2 block) {
    return thread < COLS ? find_moving<BLOCK_Y>(y_order, y_at, n_y, live, block.x, block.y, step % STEPS * COLS + thread) : Found{-1, 0, 0u};
  };
  auto fetch = [&](int step) {
    if (step < steps) {
      const Step<COLS>& rows = moving[step & 3];
      const int buffer = step % STAGES, head = fetch_head, mask = rows.mask;
      const u32 to = y_tiles + buffer * 2 * Y_BYTES;
      auto token = [&](int r) { return rows.tokens[r]; };
      load_tile<COLS, THREADS>(to, y1.at(batch, head), y1.token, head_dim, token);
      load_tile<COLS, THREADS>(to + Y_BYTES, y2.at(batch, head), y2.token, v_dim, token);
      if (KV && thread < COLS) {
        const int t = rows.tokens[thread], at = STATS_AT + (buffer * COLS + thread) * 8;
        if (t >= 0) copy_small<8>(shared + at, stats + ((i64)batch * n_heads + head) * n_y + t);
        else *(float2*)(tiles + at) = make_float2(POS_INF, 0.f);
      }
      if (KV && ++fetched == head_steps) { fetched = 0; fetch_head++; }
      if (mask && thread < ROWS)
        copy_small<WORDS * 4>(shared + MASKS_AT + (buffer * ROWS + thread) * WORDS * 4, masks + ((i64)mask * ROWS + thread) * BLOCK_WORDS + step % STEPS * WORDS);
    }
    commit();
  };

  auto x_token = [&](int r) { return token_at(x_order, x_at, item.x * ROWS + r, n_x); };
  // the query heads of the present step and of the one whose rows are looked up, two ahead, and the steps left to each
  int query_head = KV ? y_head : x_head, ahead_head = query_head, left = head_steps, ahead_left = head_steps;
  // A query all of whose pairs have a bias of -inf is nobody: its gradients are 0, even where its dout holds NaN.
  auto if_loud = [&](int query, int head) {
    return BIAS && query >= 0 && stats[((i64)batch * n_heads + head) * (KV ? n_y : n_x) + query].x == POS_INF ? -1 : query;
  };
  int2 block;
  if (steps) {
    const int2 first = next_block(), second = next_block();
    block = next_block();
    const Found first_found = find(0, first), second_found = find(1, second);
    auto token = [&](int r) { return KV ? x_token(r) : if_loud(x_token(r), x_head); };
    load_tile<ROWS, THREADS>(tx1.at, x1.at(batch, x_head), x1.token, head_dim, token);
    load_tile<ROWS, THREADS>(tx2.at, x2.at(batch, x_head), x2.token, v_dim, token);
    int first_token = first_found.attended(), second_token = second_found.attended();
    if (KV) { first_token = if_loud(first_token, y_head); second_token = if_loud(second_token, y_head + (head_steps == 1 && steps > 1)); }
    if (thread < COLS) { tell(moving[0], first_token, first.y); tell(moving[1], second_token, second.y); }
  }
  __syncthreads();
  fetch(0);
  int t[M][2];
  float2 row_stats[M][2];
#if BIAS || DROPOUT
  __shared__ Sides<COLS> columns[4];   // of the moving rows of steps: two are known ahead
  Side sides[M][2];
  Shaping shaping = shaping_of(options, batch, query_head, n_heads), ahead_shaping = shaping;   // of the two heads
  auto side_ahead = [&](int token) {   // and one step further
    const Side side = moving_side(ahead_shaping, y_codes, y_step, token);
    if (KV && --ahead_left == 0) {
      ahead_left = head_steps;
      ahead_head = min(ahead_head + 1, y_head + n_y_heads - 1);
      ahead_shaping = shaping_of(options, batch, ahead_head, n_heads);
    }
    return side;
  };
#endif
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      t[m][h] = x_token(row + lane / 4 + 16 * m + 8 * h);
      if (!KV) row_stats[m][h] = t[m][h] >= 0 ? stats[((i64)batch * n_heads + x_head) * n_x + t[m][h]] : make_float2(POS_INF, 0.f);
#if BIAS || DROPOUT
      sides[m][h] = stationary_side(shaping, x_codes, x_step, t[m][h]);
#endif
    }
#if BIAS_GRAD == BY_SUM
  __shared__ Sums sums[2];   // of the present steps, and of those before
  __shared__ int2 row_ranges[THREADS / 32], col_ranges[4][COLS / 32];
  const float coarse = (float)(grain[0] / 65536);
  u64* const head_sums = (u64*)dvalues + shaping.sums;
  Span open;   // of the sums of the present steps
  int side = 0;
  for (int i = thread; i < 2 * PLACES; i += THREADS) sums[i / PLACES].high[i % PLACES] = sums[i / PLACES].low[i % PLACES] = 0;
  {
    int2 own = range_of(sides[0][0].code, t[0][0]);
#pragma unroll
    for (int i = 1; i < 2 * M; i++) own = joined(own, range_of(sides[i / 2][i % 2].code, t[i / 2][i % 2]));
    own = joined_by_warp(own);
    if (lane == 0) row_ranges[thread / 32] = own;
  }
#endif
#if BIAS || DROPOUT
  auto set_columns = [&](int step, const Side& side, int token) {   // by the first COLS threads, a moving row each
    columns[step & 3].set(thread, side);
#if BIAS_GRAD == BY_SUM
    const int2 range = joined_by_warp(range_of(side.code, token));
    if (lane == 0) col_ranges[step & 3][thread / 32] = range;
#endif
  };
#endif
#if SOFTCAP
  const Cap cap(scale, softcap);
  const float inverse = 1.f / softcap;
  const float nothing = BIAS ? NEG_INF : -2.f * softcap - 300.f;   // of weight 0; finite where slopes are made of it
#else
  const float nothing = NEG_INF;
#endif
#if BIAS || DROPOUT
  if (steps && thread < COLS)
    for (int i = 0; i < 2; i++) { const int token = moving[i].tokens[thread]; set_columns(i, side_ahead(token), token); }
#endif
#if BIAS_GRAD == BY_SUM
  __syncthreads();
  const int2 rows_range = joined_all(row_ranges);
#endif

  float sum1[M][W / 2], sum2[M][KV ? W / 2 : 4];
  bool attended[M][2];   // whether anything meets the thread's rows: what does not must not spread NaN of its own
#if ROW_SUMS
  float row_sum[M][2];
#endif
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int i = 0; i < W / 2; i++) { sum1[m][i] = 0.f; if (KV) sum2[m][i] = 0.f; }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      attended[m][h] = false;
#if ROW_SUMS
      row_sum[m][h] = 0.f;
#endif
    }
  }
  const float factor = (SHAPED ? 1.f : scale) * LOG_UNIT;

  if (HALVES && steps) {
    wait_for<0>();
    split_tile<ROWS, THREADS>(tx1);
    split_tile<ROWS, THREADS>(tx2);
  }

#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    const Step<COLS>& present = moving[step & 3];
    const int buffer = step % STAGES;
    const Tile t1 = tile_at(y_tiles + buffer * 2 * Y_BYTES, COLS), t2 = tile_at(t1.at + Y_BYTES, COLS);
    wait_for<0>();
    split_tile<COLS, THREADS>(t1);
    split_tile<COLS, THREADS>(t2);
    __syncthreads();
    const Pairs<M, COLS> pairs = {present, (const u32*)(tiles + MASKS_AT) + (buffer * ROWS + row) * WORDS, lane};
    bool all, some;
    pairs.judge(all, some);
    if (STAGES == 2) fetch(step + 1);
    const Found found = find(step + 2, block);
    const int found_mask = block.y;
    block = next_block();
#if BIAS || DROPOUT
    const Sides<COLS>& present_sides = columns[step & 3];
#endif
#if BIAS_GRAD == BY_SUM
    const Span span(rows_range, joined_all(col_ranges[step & 3]));
    const bool fits = span.fits(), counts = fits && !span.outside(options);
    if (counts && !open.takes(span)) {
      sums[side].flush<THREADS>(options, open, head_sums);
      side ^= 1;
      open = span;
    }
#endif
#if BIAS || DROPOUT
    Side ahead_side;
#endif
    int found_token = -1;
    auto take_found = [&]() {   // what was read ahead
      found_token = found.attended();
#if BIAS || DROPOUT
      if (KV) found_token = if_loud(found_token, ahead_head);
      ahead_side = side_ahead(found_token);
#endif
    };
    auto end = [&]() {
      if (thread < COLS) tell(moving[(step + 2) & 3], found_token, found_mask);
#if BIAS || DROPOUT
      if (thread < COLS) set_columns(step + 2, ahead_side, found_token);
      if (KV && --left == 0) { left = head_steps; shaping = shaping_of(options, batch, min(++query_head, y_head + n_y_heads - 1), n_heads); }
#endif
      if (STAGES == 1) {
        __syncthreads();
        fetch(step + 1);
      }
    };
    if (!some) { if (thread < COLS) take_found(); end(); continue; }

    float s[M][COLS / 2], d[M][COLS / 2];
#if SLICES == 1
    scores<M, COLS>(s, tx1, row, t1, lane);
    if (!EARLY) scores<M, COLS>(d, tx2, row, t2, lane);
#else
    scores<1, COLS>(s, slice ? tx2 : tx1, row, slice ? t2 : t1, lane);
    swap(s[0], d[0], slice, row, (float4*)(tiles + SWAP_AT) + row / 16 * COLS * 4 + lane);
#endif
#if SOFTCAP
#if BIAS
    float slopes[M][COLS / 2];
#endif
#pragma unroll
    for (int m = 0; m < M; m++) {
      cap(s[m]);
#if BIAS
#pragma unroll
      for (int i = 0; i < COLS / 2; i++) { const float u = s[m][i] * inverse; slopes[m][i] = fmaf(-u, u, 1.f); }
#endif
    }
#elif SHAPED && !BIAS
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < COLS / 2; i++) s[m][i] *= scale;
#endif
#if BIAS
    add_bias<M, COLS>(s, options, shaping, sides, present_sides, SOFTCAP ? 1.f : scale, lane);
#endif
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (all) { attended[m][0] = attended[m][1] = true; continue; }
#pragma unroll
      for (int h = 0; h < 2; h++) attended[m][h] = attended[m][h] || pairs.of(m, h).any();
      apply_mask<COLS>(s[m], pairs.of(m, 0), pairs.of(m, 1), lane, nothing);
    }
    auto stats_of = [&](int j, int m) {   // lse and delta of two columns (KV) or of the thread's two rows
      if (KV) return *(const float4*)(tiles + STATS_AT + (buffer * COLS + 8 * j + 2 * c) * 8);
      return make_float4(row_stats[m][0].x, row_stats[m][0].y, row_stats[m][1].x, row_stats[m][1].y);
    };
    auto weigh_all = [&]() {   // s becomes weights
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
          const float4 q = stats_of(j, m);
#pragma unroll
          for (int i = 0; i < 4; i++) weigh(s[m][4 * j + i], (KV ? i % 2 : i / 2) ? q.z : q.x, factor);
        }
    };
    if (EARLY) {
      weigh_all();
      scores<M, COLS>(d, tx2, row, t2, lane);
    }
#if BIAS || DROPOUT
    if (thread < COLS) take_found();
#endif
#if BIAS_GRAD
    if (!all)
#pragma unroll
      for (int m = 0; m < M; m++) apply_mask<COLS>(d[m], pairs.of(m, 0), pairs.of(m, 1), lane, 0.f);   // a row of no pairs may hold NaN
#endif

    // s becomes the weights that multiply y2, d becomes dS times the slope of softcap
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int j = 0; j < COLS / 8; j++) {
        const float4 q = stats_of(j, m);
#if DROPOUT
        Side two[2];
        present_sides.get(8 * j + 2 * c, two);
#endif
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int h = i / 2, at = 4 * j + i;
          const bool second = KV ? i % 2 : h;
          bool dropped = false;
#if DROPOUT
          dropped = is_dropped(options, sides[m][h], two[i % 2]);
#endif
#if SOFTCAP && !BIAS
          const float u = s[m][at] * inverse, slope = fmaf(-u, u, 1.f);
#endif
          if (!EARLY) weigh(s[m][at], second ? q.z : q.x, factor);
          pair_gradient(s[m][at], d[m][at], second ? q.w : q.y, dropped, kept);
#if ROW_SUMS
          row_sum[m][h] += d[m][at];
#endif
#if SOFTCAP && !BIAS
          d[m][at] *= slope;
#endif
        }
      }
#if BIAS_GRAD == BY_SUM
    if (slice == 0 && counts) sums[side].add_tile<M, COLS>(d, sides, present_sides, open, coarse, lane);
    if (slice == 0 && !fits)
#elif BIAS_GRAD
    if (slice == 0)
#endif
#if BIAS_GRAD   // with KV a row of nobody has weights too
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
          Side two[2];
          present_sides.get(8 * j + 2 * c, two);
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (d[m][4 * j + i] != 0.f && (!KV || t[m][i / 2] >= 0)) add_to_values(d[m][4 * j + i], options, shaping, sides[m][i / 2], two[i % 2], dvalues, grain);
        }
#endif
#if SOFTCAP && BIAS
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < COLS / 2; i++) d[m][i] *= slopes[m][i];
#endif
#if KV
    accumulate<M, COLS, W>(sum2, s, t2, slice * W, lane);
#endif
    accumulate<M, COLS, W>(sum1, d, t1, slice * W, lane);
#if !BIAS && !DROPOUT
    if (thread < COLS) take_found();
#endif
    end();
  }

#if BIAS_GRAD == BY_SUM
  __syncthreads();
  sums[side].flush<THREADS>(options, open, head_sums);
#endif
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
#if ROW_SUMS
      add_row_sum(row_sum[m][h], slice == 0 && t[m][h] >= 0 && attended[m][h], row_sums + ((i64)batch * n_heads + x_head) * n_x + t[m][h], grain[0]);
#endif
      if (!attended[m][h])
#pragma unroll
        for (int i = 0; i < W / 8; i++) {
          sum1[m][4 * i + 2 * h] = sum1[m][4 * i + 2 * h + 1] = 0.f;
          if (KV) sum2[m][4 * i + 2 * h] = sum2[m][4 * i + 2 * h + 1] = 0.f;
        }
    }
  const int own = x_token(row + lane % (16 * M));
  const bool whole = item.w < 0;
  const i64 part_row = ((i64)turn.place * n_slots + item.w) * ROWS + row;
  const u32 tile = (slice ? tx2 : tx1).from(row).at;
  write_results(sum1, scale, slice * W, head_dim, own, out1, carry1, batch, x_head, whole && adds, whole ? nullptr : part1 + part_row * head_dim, tile, lane);
#if KV
  write_results(sum2, DROPOUT ? kept : 1.f, slice * W, v_dim, own, out2, carry2, batch, x_head, whole && adds, whole ? nullptr : part2 + part_row * v_dim, tile, lane);
#endif
}
