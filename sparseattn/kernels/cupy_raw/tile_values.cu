// The gradient of a bias that is an array whose values batch items or heads share, of a structure in tiles: of each value the
// sum of dS = P (dP - delta) over its pairs, with S = q k^T, dP = dout v^T, P = e^(S scale + bias - lse). A third walk of the
// backward, after the two of tile_backward.cu and after deltas.cu, whose delta has not the rounding of `out`.
//
// Places (a batch item, a query head) whose pairs have the same values, and the same structure and orders, are a group. A
// thread block has ROWS queries and one or two blocks of 64 keys, and goes through the places of its group, so a pair's value
// is added to once, not once a place. Within a thread sums are of float32, in the order of places; what blocks add is whole
// numbers. So equal calls give equal bits.
//
// Grid: (most items of a group, groups, 2 / ENTRIES). An item is a row and one or two entries of it, next to each other in its
// list. Threads: 32 for each WARP_ROWS queries of each of ENTRIES blocks of keys; a warp has those and all 64 keys.
// What tokens, masks and values of the bias are is looked up once for all places. With BUFFERS = 2, q and k of the next place
// arrive while dP and the weights are computed, its dout and v during the weights and S. With 1 they take turns in the same
// memory. Keys that the next place has too, of grouped heads, are not read again.
// 128 keys a block, since each place's tiles are read from the cache for two products alone; 32 queries a warp
// read shared memory less often; with that a thread has 192 sums, so an SM has room for one thread block.
// shared: BUFFERS * (ROWS + COLS) * row_bytes, with STAGED 4 * ROWS * COLS more, for the values, where row_bytes = HEAD_DIM *
//   BITS / 8 + 16, in float32 of 32 columns 64 more

constexpr int N = 64;                            // keys of a block and of a warp
constexpr int M = WARP_ROWS / 16;                // 16-row tiles of a warp
constexpr int COLS = N * ENTRIES;
constexpr int ROW_WARPS = ROWS / WARP_ROWS;      // of an entry
constexpr int THREADS = 32 * ROW_WARPS * ENTRIES;
constexpr int WORDS = N / 32;                    // mask words of a row and an entry
constexpr int X_BYTES = TILE_BYTES<ROWS>, PAIR_BYTES = X_BYTES + TILE_BYTES<COLS>;
constexpr int VALUES_AT = BUFFERS * PAIR_BYTES;
static_assert(BIAS == BY_CODE && BIAS_GRAD == BY_VALUE && SHAPED && ROWS % WARP_ROWS == 0 && BUFFERS <= 2, "values");

// Whole numbers of a warp's sums, added where their values stand. Where its queries, or its keys, all have one value, theirs are
// added up before.
__device__ __forceinline__ void add_sums(const float (&sums)[M][N / 2], const code_t (&rows)[M][2], const Sides<N>& columns, u64* to, double grain, int lane) {
  const code_t first_row = __shfl_sync(~0u, rows[0][0], 0), first_column = columns.codes[0];
  bool one_row = true, one_column = true;
#pragma unroll
  for (int g = 0; g < 2 * M; g++) one_row = one_row && rows[g / 2][g % 2] == first_row;
#pragma unroll
  for (int i = 0; i < N; i += 32) one_column = one_column && columns.codes[i + lane] == first_column;
  one_row = __all_sync(~0u, one_row);
  one_column = __all_sync(~0u, one_column);
  auto whole = [&](float x) { return __double2ll_rn(x * grain); };
  auto add = [&](code_t at, i64 sum) { if (sum) atomicAdd(to + at, (u64)sum); };
  if (one_row) {
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        i64 sum = 0;
#pragma unroll
        for (int g = 0; g < 2 * M; g++) sum += whole(sums[g / 2][4 * j + 2 * (g % 2) + i]);
#pragma unroll
        for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane < 4) add(first_row + columns.codes[8 * j + 2 * lane + i], sum);
      }
    return;
  }
#pragma unroll
  for (int g = 0; g < 2 * M; g++) {
    i64 total = 0;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const i64 sum = whole(sums[g / 2][4 * j + 2 * (g % 2) + i]);
        if (one_column) total += sum;
        else add(rows[g / 2][g % 2] + columns.codes[8 * j + 2 * (lane & 3) + i], sum);
      }
    if (!one_column) continue;
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (lane % 4 == 0) add(rows[g / 2][g % 2] + first_column, total);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
tile_values(Rows<const element> q, Rows<const element> dout, Rows<const element> k, Rows<const element> v, const float2* stats,
            const int* x_order, const int* y_order, const int4* groups, const int4* places, const int4* items, const int* indices,
            const int* mask_ids, const u32* masks, const u32* live, int head_dim, int v_dim, int n_heads, int n_x, int n_y, float scale,
            float softcap, const float* values, const i64* value_at, const int* labels, const code_t* x_codes, const code_t* y_codes,
            i64 low, i64 high, i64 x_step, i64 y_step, u32 limit, float kept, u32 word, u64* dvalues, const double* grain,
            int first_group) {
  const int group = first_group + (int)blockIdx.y;
  const int4 who = groups[2 * group], where = groups[2 * group + 1];   // first place, places, x_at, y_at; first item, items
  if ((int)blockIdx.x >= where.y) return;
  const int4 item = items[where.x + blockIdx.x];   // row, first entry, entries
  const int entry = item.y + blockIdx.z * ENTRIES, n_entries = item.z - (int)blockIdx.z * ENTRIES;
  if (n_entries <= 0) return;
  places += who.x;
  const Options options = {values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step, limit, word};

  extern __shared__ __align__(128) unsigned char tiles[];
  __shared__ int x_tokens[ROWS], y_tokens[COLS];
  __shared__ code_t row_codes[ROWS];
  __shared__ Sides<N> columns[ENTRIES];
  __shared__ float2 row_stats[2][ROWS];        // lse and delta, of places in turn
  __shared__ Words<WORDS> attended[ENTRIES][ROWS];
  __shared__ u32 there[COLS / 32];
  const int thread = threadIdx.x, lane = thread % 32, c = lane & 3, warp = thread / 32, row = warp % ROW_WARPS * WARP_ROWS, own = warp / ROW_WARPS;
  const u32 shared = shared_address(tiles), second = shared + (BUFFERS - 1) * PAIR_BYTES;
  const Tile tq = tile_at(shared, ROWS), tk = tile_at(shared + X_BYTES, COLS), tdout = tile_at(second, ROWS), tv = tile_at(second + X_BYTES, COLS);

  int4 next = places[0];   // batch item, head, k/v head, whether that or the batch item is not the one of the place before
  const Shaping shaping = shaping_of(options, next.x, next.y, n_heads);   // where values begin is the same for all places
  for (int i = thread; i < COLS; i += THREADS) {   // whole warps
    const int e = i / N;
    int token = -1;
    if (e < n_entries) token = find_moving<N>(y_order, who.w, n_y, live, indices[entry + e], mask_ids[entry + e], i % N).attended();
    y_tokens[i] = token;
    columns[e].set(i % N, key_side(y_codes, y_step, token));
    const u32 bits = __ballot_sync(~0u, token >= 0);
    if (lane == 0) there[i / 32] = bits;
  }
  for (int i = thread; i < ROWS; i += THREADS) {
    const int token = token_at(x_order, who.z, item.x * ROWS + i, n_x);
    x_tokens[i] = token;
    row_codes[i] = query_side(shaping, x_codes, x_step, token).code;
  }
  __syncthreads();

  auto x_token = [&](int r) { return x_tokens[r]; };
  auto y_token = [&](int r) { return y_tokens[r]; };
  next.w = 1;
  // The tiles of place number `place`; those of keys stay where the place before had the same.
  auto fetch_qk = [&](int place) {
    if (place < who.y) {
      load_tile<ROWS, THREADS>(tq.at, q.at(next.x, next.y), q.token, head_dim, x_token);
      if (next.w) load_tile<COLS, THREADS>(tk.at, k.at(next.x, next.z), k.token, head_dim, y_token);
    }
    commit();
  };
  auto fetch_dv = [&](int place, const int4& at) {
    if (place < who.y) {
      load_tile<ROWS, THREADS>(tdout.at, dout.at(at.x, at.y), dout.token, v_dim, x_token);
      if (at.w) load_tile<COLS, THREADS>(tv.at, v.at(at.x, at.z), v.token, v_dim, y_token);
      for (int i = thread; i < ROWS; i += THREADS) {
        float2& to = row_stats[place % 2][i];
        if (x_tokens[i] >= 0) copy_small<8>(shared_address(&to), stats + ((i64)at.x * n_heads + at.y) * n_x + x_tokens[i]);
        else to = make_float2(POS_INF, 0.f);
      }
    }
    commit();
  };
  fetch_qk(0);
  if (BUFFERS == 2) fetch_dv(0, next);
  for (int i = thread; i < ENTRIES * ROWS; i += THREADS) {
    const int e = i / ROWS, r = i % ROWS, mask = e < n_entries ? mask_ids[entry + e] : 0;
#pragma unroll
    for (int w = 0; w < WORDS; w++)
      attended[e][r].w[w] = x_tokens[r] < 0 ? 0u : there[e * WORDS + w] & (mask ? masks[((i64)mask * ROWS + r) * WORDS + w] : ~0u);
  }
#if STAGED
  float4* const own_values = (float4*)(tiles + VALUES_AT) + warp * (M * N / 8) * 32 + lane;   // read by the thread that writes them
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
    Side two[2];
    columns[own].get(8 * j + 2 * c, two);
#pragma unroll
    for (int m = 0; m < M; m++) {
      auto value = [&](int h, int i) { return value_of(options, shaping, {row_codes[row + 16 * m + 8 * h + lane / 4], 0, 0u}, two[i]); };
      own_values[32 * (m * N / 8 + j)] = make_float4(value(0, 0), value(0, 1), value(1, 0), value(1, 1));
    }
  }
#endif
  __syncthreads();
  bool whole = true, some = false;   // whether all of the warp's pairs are attended, and any
#pragma unroll
  for (int i = 0; i < WARP_ROWS; i += 32) {
    const Words<WORDS> bits = attended[own][row + i + lane % WARP_ROWS];
    whole = whole && bits.all();
    some = some || bits.any();
  }
  whole = __all_sync(~0u, whole);
  some = __any_sync(~0u, some);
#if SOFTCAP
  const Cap cap(scale, softcap);
#endif

  float sums[M][N / 2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < N / 2; i++) sums[m][i] = 0.f;
  int4 present;
  // Before S, before dP, and behind it: tiles are there or done with, others are fetched.
  auto begin = [&](int place) {
    present = next;
    wait_for<BUFFERS - 1>();
    split_tile<ROWS, THREADS>(tq);
    if (present.w) split_tile<COLS, THREADS>(tk);
    __syncthreads();
    next = places[min(place + 1, who.y - 1)];
    if (BUFFERS == 1) next.w = 1;
  };
  auto go_on = [&](int place) {
    if (BUFFERS == 1) {
      __syncthreads();
      fetch_dv(place, present);
    }
    wait_for<0>();
    split_tile<ROWS, THREADS>(tdout);
    if (present.w) split_tile<COLS, THREADS>(tv);
    __syncthreads();
    if (BUFFERS == 2) fetch_qk(place + 1);
  };
  auto end = [&](int place) {
    __syncthreads();
    if (BUFFERS == 2) fetch_dv(place + 1, next);
    else fetch_qk(place + 1);
  };

  if (!some) {   // the block's other warps need what this one reads
#pragma unroll 1
    for (int place = 0; place < who.y; place++) { begin(place); go_on(place); end(place); }
    return;
  }
#pragma unroll 1
  for (int place = 0; place < who.y; place++) {
    float s[M][N / 2], d[M][N / 2];
    begin(place);
    scores<M, N>(s, tq, row, tk.from(own * N), lane);
    go_on(place);
    scores<M, N>(d, tdout, row, tv.from(own * N), lane);
    end(place);

#if !STAGED || DROPOUT
    Side sides[M][2];
#if DROPOUT
    const Shaping drawn = shaping_of(options, present.x, present.y, n_heads);
#endif
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = row + 16 * m + 8 * h + lane / 4;
        sides[m][h].code = row_codes[r];
#if DROPOUT
        sides[m][h].word = draw(drawn.draw, x_tokens[r]);
#endif
      }
#endif
#if SOFTCAP
#pragma unroll
    for (int m = 0; m < M; m++) cap(s[m]);
#endif
    const float times = SOFTCAP ? 1.f : scale;
#if !STAGED
    add_bias<M, N>(s, options, shaping, sides, columns[own], times, lane);
#endif
    float2 own_stats[M][2];   // lse and delta of the thread's rows
    bool loud = true;         // whether no row's pairs all have a bias of -inf: what others hold, NaN too, is nobody's
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        own_stats[m][h] = row_stats[place % 2][row + 16 * m + 8 * h + lane / 4];
        loud = loud && own_stats[m][h].x != POS_INF;
      }
#pragma unroll
      for (int j = 0; j < N / 8; j++) {
        float *const x = s[m] + 4 * j, *const y = d[m] + 4 * j;
#if STAGED
        const float4 value = own_values[32 * (m * N / 8 + j)];
        x[0] = fmaf(x[0], times, value.x);
        x[1] = fmaf(x[1], times, value.y);
        x[2] = fmaf(x[2], times, value.z);
        x[3] = fmaf(x[3], times, value.w);
#endif
#if DROPOUT
        Side two[2];
        columns[own].get(8 * j + 2 * c, two);
#endif
#pragma unroll
        for (int i = 0; i < 4; i++) {
          bool dropped = false;
#if DROPOUT
          dropped = is_dropped(options, sides[m][i / 2], two[i % 2]);
#endif
          weigh(x[i], own_stats[m][i / 2].x, LOG_UNIT);
          pair_gradient(x[i], y[i], own_stats[m][i / 2].y, dropped, kept);
        }
      }
    }
    if (!__all_sync(~0u, whole && loud))
#pragma unroll
      for (int m = 0; m < M; m++) {
        Words<WORDS> bits[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int r = row + 16 * m + 8 * h + lane / 4;
          bits[h] = attended[own][r];
          if (own_stats[m][h].x == POS_INF)
#pragma unroll
            for (int w = 0; w < WORDS; w++) bits[h].w[w] = 0u;
        }
        apply_mask<N>(d[m], bits[0], bits[1], lane, 0.f);
      }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < N / 2; i++) sums[m][i] += d[m][i];
  }
  code_t codes[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) codes[m][h] = row_codes[row + 16 * m + 8 * h + lane / 4];
  add_sums(sums, codes, columns[own], dvalues + shaping.sums, grain[0], lane);
}
