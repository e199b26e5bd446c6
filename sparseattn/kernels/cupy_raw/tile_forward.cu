// Block-sparse attention, forward: online softmax (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., FlashAttention,
// arXiv:2205.14135) over the blocks of one structure.
//
// Grid: (most items of a place, places). Threads: 32 for each 16 * M of the ROWS stationary rows (queries). A step is
// COLS keys: K of the next step is fetched during P V, V during Q K^T. Which tokens a step is about is looked up during
// the step before, once for all threads.
// shared: (ROWS + 2 * COLS) * row_bytes, row_bytes = HEAD_DIM * BITS / 8 + 16; and 8 * (COLS + 2) of a fixed size
constexpr int M = BITS == 16 && D <= 128 ? 2 : 1;    // 16-row tiles of a warp
constexpr int THREADS = ROWS / (16 * M) * 32;
constexpr int STEPS = BLOCK_Y / COLS;
constexpr int WORDS = COLS / 32;
#ifndef CTAS
#define CTAS 1
#endif

#if BIAS || DROPOUT
#define SHAPING shaping
#else
#define SHAPING Shaping()
#endif
#if SHAPED
// Scores become what is exponentiated, in units of log 2: scaled, capped, with the bias added.
__device__ __forceinline__ void shape(float (&s)[M][COLS / 2], const Options& options, const Shaping& shaping, const int* x_order, i64 x_at, int first,
                                      int n_x, const int* tokens, float scale, int lane) {
  const float inverse = 1.f / options.softcap;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
#if BIAS
      const int x_token = token_at(x_order, x_at, first + 16 * m + 8 * h + lane / 4, n_x);
      const code_t x_code = x_token < 0 ? 0 : options.x_codes[x_token];
#endif
#pragma unroll
      for (int j = 0; j < COLS / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float& x = s[m][4 * j + 2 * h + i];
          x *= scale;
          if (options.softcap != 0.f) x = options.softcap * tanh_of(x * inverse);
#if BIAS
          const int y_token = tokens[8 * j + 2 * (lane & 3) + i];
          if (x_token >= 0 && y_token >= 0) x += shaping.values[place_of(options, shaping, x_code, options.y_codes[y_token], x_token, y_token)];
#endif
          x *= LOG2E;
        }
    }
}
#endif
#if DROPOUT
// Weights of dropped pairs become 0, the others are multiplied by `kept`.
__device__ __forceinline__ void drop(float (&p)[M][COLS / 2], const Options& options, const Shaping& shaping, const int* x_order, i64 x_at, int first,
                                     int n_x, const int* tokens, int lane) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const u32 r = draw(shaping.draw, token_at(x_order, x_at, first + 16 * m + 8 * h + lane / 4, n_x));
#pragma unroll
      for (int j = 0; j < COLS / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float& x = p[m][4 * j + 2 * h + i];
          x = draw(r, tokens[8 * j + 2 * (lane & 3) + i]) <= options.limit ? 0.f : x * options.kept;
        }
    }
}
#endif

// The moving rows of a step: their tokens, -1 where no query of the tile attends one, and bits of those that are there.
struct Step { int tokens[COLS]; u32 there[2]; };

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
tile_forward(Rows<const element> q, Rows<const element> k, Rows<const element> v, const int* x_order, const int* y_order, const int* places,
             const int4* items, const int* indices, const int* mask_ids, const u32* masks, const u32* live, const u32* exists,
             int head_dim, int v_dim, int n_heads, int n_x, int n_y, float scale,
             float softcap, const float* values, const i64* value_at, const int* labels, const code_t* x_codes, const code_t* y_codes,
             i64 low, i64 high, i64 x_step, i64 y_step, u32 limit, float kept, u32 word,
             int resumes, int keeps, int n_slots, Rows<element> out, Rows<float> carry, float* lse, float* part_out, float* part_lse) {
  const int* place = places + 8 * blockIdx.y;
  if ((int)blockIdx.x >= place[5]) return;
  const int batch = place[0], head = place[1], y_head = place[2], x_at = place[6], y_at = place[7];
  const int4 item = items[place[4] + blockIdx.x];   // row, first, count, slot
  const int steps = item.z * STEPS;
  const Options options = {softcap, values, value_at, labels, x_codes, y_codes, low, high, x_step, y_step, limit, kept, word};

  extern __shared__ __align__(16) unsigned char tiles[];
  const u32 sq = shared_address(tiles), sk = sq + ROWS * ROW_BYTES, sv = sk + COLS * ROW_BYTES;
  __shared__ Step moving[2];
  const int thread = threadIdx.x, lane = thread % 32, c = lane & 3, row = thread / 32 * 16 * M;
  k.data = k.at(batch, y_head);
  v.data = v.at(batch, y_head);

  // what a thread finds out of row `thread` of a step in block `col` with mask `id`
  auto look_up = [&](int step, int col, int id) {
    const int at = step % STEPS * COLS + thread, slot = col * BLOCK_Y + at;
    const u32 there = exists[((i64)y_at + slot) / 32] & live[(i64)id * (BLOCK_Y / 32) + at / 32];
    const int token = y_order ? y_order[(i64)y_at + slot] : slot;
    return there >> (at % 32) & 1 ? token : -1;
  };
  auto tell = [&](Step& to, int token) {
    const u32 there = __ballot_sync(~0u, token >= 0);
    to.tokens[thread] = token;
    if (lane == 0) to.there[thread / 32] = there;
  };
  auto fetch = [&](u32 to, const Rows<const element>& from, int width, const Step& step) {
    load_tile<COLS, THREADS>(to, from.data, from.token, width, [&](int r) { return step.tokens[r]; });
    commit();
  };

  int col = 0, id = 0;   // block and mask of the step after the present one
  auto turn_to = [&](int step) {
    if (step < steps) { col = indices[item.y + step / STEPS]; id = mask_ids[item.y + step / STEPS]; }
  };
  if (steps) {
    turn_to(0);
    if (thread < COLS) tell(moving[0], look_up(0, col, id));
    load_tile<ROWS, THREADS>(sq, q.at(batch, head), q.token, head_dim, [&](int r) { return token_at(x_order, x_at, item.x * ROWS + r, n_x); });
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
#endif
  const float factor = SHAPED ? 1.f : scale * LOG2E, slack = 8.f / factor;

#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    const Step &present = moving[step % 2];
    Step &next = moving[(step + 1) % 2];
    const int mask = id;
    turn_to(step + 1);
    wait_for<0>();
    __syncthreads();   // K is there; all are done with V and with `next`
    fetch(sv, v, v_dim, present);
    const int found = thread < COLS && step + 1 < steps ? look_up(step + 1, col, id) : -1;
    float s[M][COLS / 2];
    scores<M, COLS>(s, sq, row, sk, lane);
    if (thread < COLS) tell(next, found);
    wait_for<0>();
    __syncthreads();   // V and `next` are there; all are done with K
    if (step + 1 < steps) fetch(sk, k, head_dim, next);
#if SHAPED
    shape(s, options, SHAPING, x_order, x_at, item.x * ROWS + row, n_x, present.tokens, scale, lane);
#endif
    Words<WORDS> there;
#pragma unroll
    for (int i = 0; i < WORDS; i++) there.w[i] = present.there[i];
    if (mask || !there.all()) {
#pragma unroll
      for (int m = 0; m < M; m++) {
        Words<WORDS> bits[2];
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int i = 0; i < WORDS; i++)
            bits[h].w[i] = there.w[i] & (mask ? masks[((i64)mask * ROWS + row + 16 * m + 8 * h + lane / 4) * (BLOCK_Y / 32) + step % STEPS * WORDS + i] : ~0u);
        apply_mask<COLS>(s[m], bits[0], bits[1], lane);
      }
    }
#pragma unroll
    for (int m = 0; m < M; m++) rescale(o[m], online_softmax(s[m], rows[m][0], rows[m][1], factor, slack));
#if DROPOUT
    drop(s, options, shaping, x_order, x_at, item.x * ROWS + row, n_x, present.tokens, lane);
#endif
    accumulate<M, COLS, D>(o, s, sv, 0, lane);
  }

#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Row state = rows[m][h];
      float l = state.l;
      l += __shfl_xor_sync(~0u, l, 1);
      l += __shfl_xor_sync(~0u, l, 2);
      const int r = row + 16 * m + 8 * h + lane / 4, token = token_at(x_order, x_at, item.x * ROWS + r, n_x);
      float f = l == 0.f ? 0.f : 1.f / l, found = log_sum(state.m, l, factor), old = 0.f;
      // a row of no weight is 0, whatever the values that others of the tile attend
      auto pair = [&](int j) { return f == 0.f ? make_float2(0.f, 0.f) : make_float2(o[m][4 * j + 2 * h] * f, o[m][4 * j + 2 * h + 1] * f); };
      if (item.w >= 0) {
        const i64 at = ((i64)blockIdx.y * n_slots + item.w) * ROWS + r;
        if (c == 0) part_lse[at] = found;
#pragma unroll
        for (int j = 0; j < D / 8; j++) { const float2 x = pair(j); write_pair_f32(part_out + at * v_dim, 8 * j + 2 * c, v_dim, x.x, x.y); }
        continue;
      }
      const i64 at = ((i64)batch * n_heads + head) * n_x + token;
      const float before = token >= 0 && resumes ? lse[at] : NEG_INF;
      __syncwarp();   // the quad has read it before one of them writes
      join(before, found, f, old);
      if (token < 0) continue;
      if (c == 0) lse[at] = found;
      element* to = out.at(batch, head) + token * out.token;
      float* kept_row = carry.at(batch, head) + token * carry.token;
      const bool adds = resumes == 1 && old != 0.f;
#pragma unroll
      for (int j = 0; j < D / 8; j++) {
        const int col = 8 * j + 2 * c;
        float2 x = pair(j);
        if (adds) { const float2 y = read_pair_f32(kept_row, col, v_dim); x.x = fmaf(old, y.x, x.x); x.y = fmaf(old, y.y, x.y); }
        write_pair(to, col, v_dim, x.x, x.y);
        if (keeps) write_pair_f32(kept_row, col, v_dim, x.x, x.y);
      }
    }
}
