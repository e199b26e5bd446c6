// Block-sparse attention, forward: online softmax (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., FlashAttention,
// arXiv:2205.14135) over the blocks of one structure.
//
// Grid: (most items of a place, places). Threads: 32 for each 16 * M of the ROWS stationary rows (queries). A step is
// COLS keys: K of the next step is fetched during P V, V during Q K^T. Which tokens a step is about is looked up during
// the step before, once for all threads, and which block one step earlier. Weights of 16 keys are made while those of the 16
// before are multiplied: a warp's products alone do not keep the unit busy.
// STAGED = 1, for a bias of one value a pair: values of a step whose keys and queries lie side by side are fetched like keys.
// shared: (ROWS + 2 * COLS) * (HEAD_DIM * BITS / 8 + 16), in float32 of 32 columns 64 more a row, with STAGED
//   ROWS * (COLS + 8) * 4 more; and 2 Steps and the words of a mask of a fixed size
#ifndef STAGED
#define STAGED 0
#endif
constexpr int M = BITS == 16 && D <= 128 ? 2 : 1;    // 16-row tiles of a warp
constexpr int THREADS = ROWS / (16 * M) * 32;
constexpr int STEPS = BLOCK_Y / COLS;
constexpr int WORDS = COLS / 32;
#ifndef CTAS
#define CTAS 1
#endif

#if DROPOUT
// Weights of dropped pairs become 0, those of the i-th 16 columns.
__device__ __forceinline__ void drop(float (&p)[M][COLS / 2], int i, const Options& options, const Side (&rows)[M][2], const Sides<COLS>& columns, int lane) {
#pragma unroll
  for (int j = 2 * i; j < 2 * i + 2; j++) {
    Side two[2];
    columns.get(8 * j + 2 * (lane & 3), two);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < 4; n++)
        if (is_dropped(options, rows[m][n / 2], two[n % 2])) p[m][4 * j + n] = 0.f;
  }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
tile_forward(Rows<const element> q, Rows<const element> k, Rows<const element> v, const int* x_order, const int* y_order, const int* places,
             const int4* items, const int* indices, const int* mask_ids, const u32* masks, const u32* live,
             int head_dim, int v_dim, int n_heads, int n_x, int n_y, float scale,
             float softcap, const float* values, const i64* value_at, const int* labels, const code_t* x_codes, const code_t* y_codes,
             i64 low, i64 high, i64 x_step, i64 y_step, u32 limit, float kept, u32 word,
             int resumes, int keeps, int n_slots, Rows<element> out, Rows<float> carry, float* lse, float* part_out, float* part_lse, int together, int apart, int first_place) {
  const Turn turn = turn_of(first_place, BIAS == BY_CODE || BIAS == BY_LABEL ? together : 1, apart);
  const int4 *place = (const int4*)places + 2 * turn.place, who = place[0], where = place[1];
  int4 item = items[turn.item];   // row, first, count, slot; right where the place's begin the list, read meanwhile
  if (turn.item >= where.y) return;
  if (where.x) item = items[where.x + turn.item];
  const int batch = who.x, head = who.y, y_head = who.z, x_at = where.z, y_at = where.w;
  const int steps = item.z * STEPS;
  const Options options = {values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step, limit, word};

  extern __shared__ __align__(128) unsigned char tiles[];
  const u32 shared = shared_address(tiles);
  const Tile sq = tile_at(shared, ROWS), sk = tile_at(shared + TILE_BYTES<ROWS>, COLS), sv = tile_at(sk.at + TILE_BYTES<COLS>, COLS);
  __shared__ Step<COLS> moving[2];
  __shared__ __align__(8) u32 mask_words[ROWS * WORDS];   // of the present step, where its block has a mask
  const int thread = threadIdx.x, lane = thread % 32, c = lane & 3, row = thread / 32 * 16 * M;
  k.data = k.at(batch, y_head);
  v.data = v.at(batch, y_head);

  auto find = [&](int step, int2 block) {
    return thread < COLS ? find_moving<BLOCK_Y>(y_order, y_at, n_y, live, block.x, block.y, step % STEPS * COLS + thread) : Found{-1, 0, 0u};
  };
  auto fetch = [&](const Tile& to, const Rows<const element>& from, int width, const Step<COLS>& step) {
    load_tile<COLS, THREADS>(to.at, from.data, from.token, width, [&](int r) { return step.tokens[r]; });
    commit();
  };
#if BIAS || DROPOUT
  __shared__ Sides<COLS> columns[2];   // of the present step and of the next
#endif
#if STAGED
  constexpr int STAGE_ROW = (COLS + 8) * 4, QUADS = COLS / 4;   // bytes of a row of staged values, neighbours in other banks
  const u32 stage = sv.at + TILE_BYTES<COLS>;
  __shared__ code_t row_codes[ROWS];
  __shared__ int side_by_side[2][COLS / 32];   // whether columns are, of the present step and of the next
  bool in_quads = false;                       // whether rows begin at multiples of 16 bytes
  const float* head_values = nullptr;
  auto is_staged = [&](int step) {
    bool all = in_quads;
#pragma unroll
    for (int i = 0; i < COLS / 32; i++) all = all && side_by_side[step % 2][i];
    return all;
  };
#endif
  auto fetch_values = [&](int step, const Step<COLS>& rows) {   // and the mask's words, and those of the bias
#if STAGED
    if (is_staged(step)) {
      const float* from = head_values + columns[step % 2].codes[thread % QUADS * 4];
      const u32 to = stage + thread % QUADS * 16;
#pragma unroll
      for (int i = 0; i < ROWS * QUADS / THREADS; i++) {
        const int r = thread / QUADS + i * (THREADS / QUADS);
        copy_chunk(to + r * STAGE_ROW, from + row_codes[r], 0);
      }
    }
#endif
    if (rows.mask && thread < ROWS)
      copy_small<WORDS * 4>(shared_address(mask_words + thread * WORDS), masks + ((i64)rows.mask * ROWS + thread) * (BLOCK_Y / 32) + step % STEPS * WORDS);
    fetch(sv, v, v_dim, rows);
  };

  auto block_of = [&](int step) {   // number and mask; behind the last one once more the last
    const int entry = item.y + min(step, steps - 1) / STEPS;
    return make_int2(indices[entry], mask_ids[entry]);
  };
  int2 block;   // of the step after the present one
  const int own = token_at(x_order, x_at, item.x * ROWS + row + lane % (16 * M), n_x);   // of row `lane` of the warp
  if (steps) {
    const int2 first = block_of(0);
    block = block_of(1);
    const Found found = find(0, first);
    load_tile<ROWS, THREADS>(sq.at, q.at(batch, head), q.token, head_dim, [&](int r) { return token_at(x_order, x_at, item.x * ROWS + r, n_x); });
    if (thread < COLS) tell(moving[0], found.attended(), first.y);
    __syncthreads();
    fetch(sk, k, head_dim, moving[0]);
  }
  float o[M][D / 2];
  Row rows[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[m][i] = 0.f;
#if BIAS || DROPOUT
  const Shaping shaping = shaping_of(options, batch, head, n_heads);
  Side sides[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++)
      sides[m][h] = query_side(shaping, x_codes, x_step, token_at(x_order, x_at, item.x * ROWS + row + 16 * m + 8 * h + lane / 4, n_x));
  auto set_columns = [&](int step, const Side& side) {   // by the first COLS threads, a moving row each
    columns[step % 2].set(thread, side);
#if STAGED
    const code_t first = __shfl_sync(~0u, side.code, lane & ~3);
    const bool fits = __all_sync(~0u, first % 4 == 0 && side.code == first + (lane & 3));
    if (lane == 0) side_by_side[step % 2][thread / 32] = fits;
#endif
  };
  if (steps && thread < COLS) set_columns(0, key_side(y_codes, y_step, moving[0].tokens[thread]));
#endif
#if STAGED
  if (thread < ROWS) row_codes[thread] = query_side(shaping, x_codes, x_step, token_at(x_order, x_at, item.x * ROWS + thread, n_x)).code;
  head_values = shaping.values;
  in_quads = __syncthreads_and((u64)head_values % 16 == 0 && (thread >= ROWS || row_codes[thread] % 4 == 0));
#endif
#if SOFTCAP
  const Cap cap(scale, softcap);
#endif
  const float unit = SHAPED ? 1.f : scale, factor = unit * LOG2E, slack = 8.f / factor;

  if (HALVES && steps) { wait_for<0>(); split_tile<ROWS, THREADS>(sq); }
  if (steps) fetch_values(0, moving[0]);

#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    const Step<COLS>& present = moving[step % 2];
    Step<COLS>& next = moving[(step + 1) % 2];
    if (step) wait_for<0>(); else wait_for<1>();
    split_tile<COLS, THREADS>(sk);
    __syncthreads();   // K is there; all are done with V and with `next`
    if (step) fetch_values(step, present);
    const Found found = find(step + 1, block);
    const int2 ahead = block_of(step + 2);
    float s[M][COLS / 2];
    scores<M, COLS>(s, sq, row, sk, lane);
    if (thread < COLS) tell(next, found.attended(), block.y);
    block = ahead;
    wait_for<0>();
    split_tile<COLS, THREADS>(sv);
    __syncthreads();   // V and `next` are there; all are done with K
    if (step + 1 < steps) fetch(sk, k, head_dim, next);
#if BIAS || DROPOUT
    const Sides<COLS>& present_columns = columns[step % 2];
    Side next_side;
    if (thread < COLS) next_side = key_side(y_codes, y_step, next.tokens[thread]);
#endif
#if SOFTCAP
#pragma unroll
    for (int m = 0; m < M; m++) cap(s[m]);
#endif
#if STAGED
    if (is_staged(step)) {
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int j = 0; j < COLS / 8; j++) {
            float2 value;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(stage + (row + 16 * m + 8 * h + lane / 4) * STAGE_ROW + 32 * j + 8 * c) : "memory");
            float* x = s[m] + 4 * j + 2 * h;
            x[0] = fmaf(x[0], SOFTCAP ? 1.f : scale, value.x);
            x[1] = fmaf(x[1], SOFTCAP ? 1.f : scale, value.y);
          }
    } else
#endif
#if BIAS
    add_bias<M, COLS>(s, options, shaping, sides, present_columns, SOFTCAP ? 1.f : scale, lane);
#elif SHAPED && !SOFTCAP
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < COLS / 2; i++) s[m][i] *= scale;
#endif
    const Pairs<M, COLS> pairs = {present, mask_words + row * WORDS, lane};
    if (!pairs.are_whole())
#pragma unroll
      for (int m = 0; m < M; m++) apply_mask<COLS>(s[m], pairs.of(m, 0), pairs.of(m, 1), lane);
    float base[M][2], f[M][2];
    online_softmax(s, rows, factor, slack, base, f);
    rescale(o, f);
    accumulate<M, COLS, D>(o, s, sv, 0, lane, [&](int i) {
#pragma unroll
      for (int m = 0; m < M; m++) weigh<8>(s[m] + 8 * i, rows[m], factor, base[m]);
#if DROPOUT
      drop(s, i, options, sides, present_columns, lane);
#endif
    });
#if BIAS || DROPOUT
    if (thread < COLS) set_columns(step + 1, next_side);
#endif
  }

  // lane i settles row i of the warp
  Row state;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float l = rows[m][h].l;
      l += __shfl_xor_sync(~0u, l, 1);
      l += __shfl_xor_sync(~0u, l, 2);
      const Row other = {__shfl_sync(~0u, rows[m][h].m, lane % 8 * 4), __shfl_sync(~0u, l, lane % 8 * 4)};
      if (lane / 8 == 2 * m + h) state = other;
    }
  const bool whole = item.w < 0, there = whole && own >= 0;
  const i64 at = ((i64)batch * n_heads + head) * n_x + own, part_row = ((i64)turn.place * n_slots + item.w) * ROWS + row;
  float f = state.l == 0.f ? 0.f : (DROPOUT ? kept : 1.f) / state.l, found = log_sum(state.m, state.l, unit), old = 0.f;
  if (lane < 16 * M) {
    join(there && resumes ? lse[at] : NEG_INF, found, f, old);
    if (!whole) part_lse[part_row + lane] = found;
    if (there) lse[at] = found;
  }
  const bool some_silent = __any_sync(~0u, lane < 16 * M && f == 0.f);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = 16 * m + 8 * h + lane / 4;
      const float own_f = __shfl_sync(~0u, f, r);
      if (some_silent && own_f == 0.f)   // whatever the values that others of the tile attend
#pragma unroll
        for (int i = 2 * h; i < D / 2; i += 4) o[m][i] = o[m][i + 1] = 0.f;
#pragma unroll
      for (int i = 2 * h; i < D / 2; i += 4) { o[m][i] *= own_f; o[m][i + 1] *= own_f; }
      if (whole && !resumes && !keeps) continue;
      const int token = __shfl_sync(~0u, own, r);
      const float own_old = __shfl_sync(~0u, old, r);
      float* kept_row = carry.at(batch, head) + token * carry.token;
      if (resumes == 1) {   // all are read before any is waited for; nobody reads some row
        const float* before = carry.at(batch, head) + max(token, 0) * carry.token;
        float2 z[D / 8];
#pragma unroll
        for (int j = 0; j < D / 8; j++) z[j] = read_pair_f32(before, 8 * j + 2 * c, v_dim);
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
          float &x = o[m][4 * j + 2 * h], &y = o[m][4 * j + 2 * h + 1];
          x = own_old == 0.f ? x : fmaf(own_old, z[j].x, x);
          y = own_old == 0.f ? y : fmaf(own_old, z[j].y, y);
        }
      }
      if (!whole || token >= 0 && keeps)
        write_row_f32<D>(whole ? kept_row : part_out + (part_row + r) * v_dim, 0, v_dim, c, [&](int j) { return make_float2(o[m][4 * j + 2 * h], o[m][4 * j + 2 * h + 1]); });
    }
  if (whole && keeps != ONLY_KEPT) write_rows<M, D>(out, batch, head, own, 0, v_dim, sq.from(row).at, o, lane);
}
