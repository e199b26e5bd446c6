// What happens to the scores of a tile, behind tiles.cuh in every .cu file: masks, the shaping of scores, online softmax,
// the writing of rows.

// ---- masks ----------------------------------------------------------------------------------------
// Scores of pairs without a bit become `nothing`; x, y: the words of the thread's rows r and r + 8.
template <int N> __device__ __forceinline__ void apply_mask(float (&s)[N / 2], const Words<N / 32>& x, const Words<N / 32>& y, int lane, float nothing = NEG_INF) {
  const int shift = 2 * (lane & 3);
#pragma unroll
  for (int w = 0; w < N / 32; w++) {
    const u32 a = x.w[w] >> shift, b = y.w[w] >> shift;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float* t = s + 16 * w + 4 * j;
      t[0] = a >> (8 * j) & 1 ? t[0] : nothing;
      t[1] = a >> (8 * j + 1) & 1 ? t[1] : nothing;
      t[2] = b >> (8 * j) & 1 ? t[2] : nothing;
      t[3] = b >> (8 * j + 1) & 1 ? t[3] : nothing;
    }
  }
}

// ---- softcap --------------------------------------------------------------------------------------
// tanh to a few units in the last place: a polynomial (relative error 4e-8) where the exponential would cancel
__device__ __forceinline__ float tanh_of(float x) {
  const float t = fabsf(x), q = x * x;
  const float near = fmaf(x * q, fmaf(q, fmaf(q, fmaf(q, 0.016437576f, -0.052671811f), 0.13320725f), -0.33332947f), x);
  const float far = 1.f - __fdividef(2.f, ex2(2.f * LOG2E * fminf(t, 20.f)) + 1.f);
  return t < 0.55f ? near : copysignf(far, x);
}
// softcap * tanh(s * scale / softcap) of products s. Where s^2 <= most it is s (c0 + c1 s^2 + c2 s^4 + c3 s^6) with a
// relative error of 4e-8: most scores are small beside their cap.
struct Cap {
  float softcap, factor, most, c0, c1, c2, c3;
  __device__ __forceinline__ Cap(float scale, float softcap) : softcap(softcap), factor(scale / softcap) {
    const float f2 = factor * factor;
    most = f2 > 1e-10f && f2 < 1e10f ? 0.35f * 0.35f / f2 : -1.f;
    c0 = scale; c1 = -0.3333267f * scale * f2; c2 = 0.1330001f * scale * f2 * f2; c3 = -0.0491593f * scale * f2 * f2 * f2;
  }
  // All of a thread's products; a warp goes one way.
  template <int N> __device__ __forceinline__ void operator()(float (&s)[N]) const {
    constexpr int G = N % 16 ? N : 16;
#pragma unroll
    for (int g = 0; g < N; g += G) {
      float square[G], top = 0.f;
#pragma unroll
      for (int i = 0; i < G; i++) { square[i] = s[g + i] * s[g + i]; top = fmaxf(top, square[i]); }
      if (__all_sync(~0u, top <= most)) {
#pragma unroll
        for (int i = 0; i < G; i++) s[g + i] *= fmaf(square[i], fmaf(square[i], fmaf(square[i], c3, c2), c1), c0);
      } else {
#pragma unroll
        for (int i = 0; i < G; i++) s[g + i] = softcap * tanh_of(s[g + i] * factor);
      }
    }
  }
};

// ---- bias and dropout -----------------------------------------------------------------------------
// A pair is told by sums over its two tokens: of codes, which is the place of its value or of its label; of bases, what is
// added to its label; of words, which are mixed to its draw.
#define BY_CODE 1      // BIAS: the sum of codes is the place
#define BY_LABEL 2     // the label at the sum of codes, which is held to [low, high], and the bases
#define BY_TABLE 3     // the sum of codes, held to [0, high]; gradients of sums up to low and from high on are nobody's
#define BY_CLIPPED 4   // the sum of codes, held to [0, high]
struct Options {
  const float* values;
  const i64* value_at;
  const int* labels;
  const code_t *x_codes, *y_codes;
  i64 low, high, x_step, y_step;
  u32 limit, word;
};
// Which item of which place a thread block has. Blocks go through the items of a place, and so from place to place; but `together`
// places that read the same values or labels, `apart` places from one to the next, take turns item by item, so the cache has them.
struct Turn { int place, item; };
__device__ __forceinline__ Turn turn_of(int first_place, int together, int apart) {
  if (together == 1) return {first_place + (int)blockIdx.y, (int)blockIdx.x};
  const u32 at = blockIdx.y * gridDim.x + blockIdx.x, all = together * gridDim.x, group = at / all, rest = at % all;
  const u32 members = min((u32)together, gridDim.y - group * together);
  return {first_place + (int)(group / apart * apart * together + group % apart + rest % members * apart), (int)(rest / members)};
}
// The options of one query head: what of them does not depend on tokens.
struct Shaping {
  const float* values;   // where the head's values begin
  const int* labels;
  i64 sums;              // where those of their gradients begin
  code_t moved;
  u32 draw;              // mixed up to the head
};
// The i-th word of constant memory at p: the compiler would add i to what p is made of, in 64 bits.
template <class T> __device__ __forceinline__ T read_word(const T* p, int i) {
  u32 word;
  asm("{\n.reg .u64 at;\nmad.wide.s32 at, %1, 4, %2;\nld.global.nc.b32 %0, [at];\n}" : "=r"(word) : "r"(i), "l"(p));
  return *(T*)&word;
}
template <class T> __device__ __forceinline__ T read_word(const T* p, i64 i) { return p[i]; }
// What a token gives to its pairs; nobody gives zeros, which name a place that there is.
struct Side { code_t code, base; u32 word; };

__device__ __forceinline__ u32 mix(u32 h) {
  h ^= h >> 16; h *= 0x85EBCA6Bu;
  h ^= h >> 13; h *= 0xC2B2AE35u;
  return h ^ h >> 16;
}
__device__ __forceinline__ u32 draw(u32 r, u32 number) { return mix(r + 0x9E3779B9u * number); }
__device__ __forceinline__ Shaping shaping_of(const Options& o, int batch, int head, int n_heads) {
  Shaping s;
#if BIAS
  const i64* at = o.value_at + 4 * ((i64)batch * n_heads + head);
  s.values = o.values + at[0]; s.moved = (code_t)at[1]; s.labels = o.labels + at[2]; s.sums = at[3];
#endif
#if DROPOUT
  s.draw = draw(draw(o.word, batch), head);
#endif
  return s;
}
__device__ __forceinline__ Side side_of(const code_t* codes, i64 step, int token) {
  Side side = {0, 0, 0u};
#if BIAS
  if (token >= 0) {
    side.code = codes[token];
    if (BIAS == BY_LABEL) side.base = (code_t)(token * step);
  }
#endif
  return side;
}
__device__ __forceinline__ Side query_side(const Shaping& s, const code_t* codes, i64 step, int token) {
  Side side = side_of(codes, step, token);
#if BIAS
  side.code += s.moved;
#endif
#if DROPOUT
  side.word = draw(s.draw, token);
#endif
  return side;
}
__device__ __forceinline__ Side key_side(const code_t* codes, i64 step, int token) {
  Side side = side_of(codes, step, token);
  side.word = 0x9E3779B9u * (u32)token;
  return side;
}
// The sides of the N moving rows of a step.
template <int N> struct __align__(16) Sides {
#if BIAS
  code_t codes[N];
#if BIAS == BY_LABEL
  code_t bases[N];
#endif
#endif
#if DROPOUT
  u32 words[N];
#endif
  __device__ __forceinline__ void set(int i, const Side& side) {
#if BIAS
    codes[i] = side.code;
#if BIAS == BY_LABEL
    bases[i] = side.base;
#endif
#endif
#if DROPOUT
    words[i] = side.word;
#endif
  }
  // of row i and the one behind it; i is even
  __device__ __forceinline__ void get(int i, Side (&two)[2]) const {
#pragma unroll
    for (int n = 0; n < 2; n++) {
#if BIAS
      two[n].code = codes[i + n];
#if BIAS == BY_LABEL
      two[n].base = bases[i + n];
#endif
#endif
#if DROPOUT
      two[n].word = words[i + n];
#endif
    }
  }
};
#if BIAS
// A sum of codes, held to the limits.
__device__ __forceinline__ code_t held(const Options& o, code_t code) { return BIAS == BY_CODE ? code : max(min(code, (code_t)o.high), (code_t)o.low); }
// The place of the value of a pair, counted from the head's values.
__device__ __forceinline__ code_t place_of(const Options& o, const Shaping& s, const Side& x, const Side& y) {
  const code_t sum = x.code + y.code;
  if (BIAS == BY_TABLE) return (code_t)min((u32)sum, (u32)o.high);   // either end is as good
  return BIAS == BY_LABEL ? read_word(s.labels, held(o, sum)) + x.base + y.base : held(o, sum);
}
__device__ __forceinline__ float value_of(const Options& o, const Shaping& s, const Side& x, const Side& y) { return read_word(s.values, place_of(o, s, x, y)); }
#endif
#if DROPOUT
__device__ __forceinline__ bool is_dropped(const Options& o, const Side& x, const Side& y) { return mix(x.word + y.word) <= o.limit; }
#endif

#if BIAS
// A thread's pairs with N columns, as far as they share places: where tokens follow each other, the pair 8 rows and 8 columns
// on has the same sum of codes. A slant is a group of 8 columns less one of 8 rows.
template <int M, int N> struct Slants {
  code_t codes[N / 8][2];   // of the thread's columns
  bool there;
  __device__ __forceinline__ Slants(const Side (&rows)[M][2], const Sides<N>& columns, int lane) {
    const code_t fall = rows[0][0].code - rows[0][1].code;
    bool all = true;
#pragma unroll
    for (int g = 2; g < 2 * M; g++) all = all && rows[g / 2][g % 2].code + fall == rows[(g - 1) / 2][(g - 1) % 2].code;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      Side two[2];
      columns.get(8 * j + 2 * (lane & 3), two);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        codes[j][i] = two[i].code;
        if (j) all = all && codes[j][i] == codes[j - 1][i] + fall;
      }
    }
    there = __all_sync(~0u, all);
  }
  // what(slant, first, i) for each place that pairs share: theirs are the groups of rows g from `first` on and of columns
  // g + slant, of these column i.
  template <class What> __device__ __forceinline__ void each(What what) const {
#pragma unroll
    for (int slant = 1 - 2 * M; slant < N / 8; slant++)
#pragma unroll
      for (int i = 0; i < 2; i++) what(slant, max(-slant, 0), i);
  }
};
// Scaled scores, or with scale = 1 capped ones, become what is exponentiated: the bias is added.
template <int M, int N> __device__ __forceinline__ void add_bias(float (&s)[M][N / 2], const Options& o, const Shaping& shaping, const Side (&rows)[M][2],
                                                                 const Sides<N>& columns, float scale, int lane) {
#if BIAS == BY_TABLE || BIAS == BY_CLIPPED
  const Slants<M, N> slants(rows, columns, lane);
  if (slants.there) {
    slants.each([&](int slant, int first, int i) {
      const float value = value_of(o, shaping, rows[first / 2][first % 2], {slants.codes[first + slant][i], 0, 0u});
#pragma unroll
      for (int g = first; g < 2 * M && g + slant < N / 8; g++) {
        float& x = s[g / 2][4 * (g + slant) + 2 * (g % 2) + i];
        x = fmaf(x, scale, value);
      }
    });
    return;
  }
#endif
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
    Side two[2];
    columns.get(8 * j + 2 * (lane & 3), two);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[m][4 * j + i] = fmaf(s[m][4 * j + i], scale, value_of(o, shaping, rows[m][i / 2], two[i % 2]));
  }
}
#endif

// ---- online softmax -------------------------------------------------------------------------------
struct Row { float m = NEG_INF, l = 0.f; };
// Exponents from here on: a rounded one would be off by whole numbers, so the maximum is taken off before scaling. In float32
// it always is: the largest weight is 1 then, which a row of few keys has its logarithm from.
#define TOO_LARGE (BITS == 32 ? 0.f : 1.6e7f)

// Scores s of 16 * M rows as the next in line: maxima and sums are brought up to them, and old output rows are to be
// multiplied by f, which is 1 while a maximum has grown by under 2^8, so most steps rescale nothing. Weights are
// 2^(s * c - base).
template <int M, int N> __device__ __forceinline__ void online_softmax(float (&s)[M][N], Row (&rows)[M][2], float c, float slack, float (&base)[M][2], float (&f)[M][2]) {
  float x[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      x[m][h] = fmaxf(s[m][2 * h], s[m][2 * h + 1]);
#pragma unroll
      for (int i = 4; i < N; i += 4) x[m][h] = fmaxf(x[m][h], fmaxf(s[m][i + 2 * h], s[m][i + 2 * h + 1]));
    }
#pragma unroll
  for (int d = 1; d < 4; d *= 2)
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) x[m][h] = fmaxf(x[m][h], __shfl_xor_sync(~0u, x[m][h], d));
  float most = 0.f;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Row& row = rows[m][h];
      f[m][h] = 1.f;
      if (x[m][h] > row.m + slack) { f[m][h] = ex2((row.m - x[m][h]) * c); row.m = x[m][h]; }
      row.l *= f[m][h];
      base[m][h] = row.m == NEG_INF ? 0.f : row.m * c;
      most = fmaxf(most, fabsf(base[m][h]));
    }
  if (most > TOO_LARGE)
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float off = fabsf(base[m][h]) > TOO_LARGE ? rows[m][h].m : 0.f;
#pragma unroll
        for (int i = 0; i < N; i += 4) { s[m][i + 2 * h] -= off; s[m][i + 2 * h + 1] -= off; }
        if (off != 0.f) base[m][h] = 0.f;
      }
}
// N scores of the thread's two rows become weights, which the sums take in.
template <int N> __device__ __forceinline__ void weigh(float* s, Row (&rows)[2], float c, const float (&base)[2]) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float even = 0.f, odd = 0.f;
#pragma unroll
    for (int i = 2 * h; i < N; i += 4) {
      s[i] = ex2(fmaf(s[i], c, -base[h]));         even += s[i];
      s[i + 1] = ex2(fmaf(s[i + 1], c, -base[h])); odd += s[i + 1];
    }
    rows[h].l += even + odd;
  }
}
template <int M, int N> __device__ __forceinline__ void rescale(float (&o)[M][N], const float (&f)[M][2]) {
  bool same = true;
#pragma unroll
  for (int m = 0; m < M; m++) same = same && f[m][0] == 1.f && f[m][1] == 1.f;
  if (__all_sync(~0u, same)) return;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < N; i++) o[m][i] *= f[m][i / 2 % 2];
}

// ---- writing rows ---------------------------------------------------------------------------------
// A value of `keeps`: later parts write every row, so this one writes what they add to, and not the result.
constexpr int ONLY_KEPT = 2;
// Two neighbouring numbers of a result row, columns col and col + 1, as far as they lie within `width`.
__device__ __forceinline__ void write_pair(element* row, int col, int width, float x, float y) {
#if BITS == 16 && WIDE
  if (col < width) *(u32*)(row + col) = pack2(x, y);
#elif WIDE
  if (col < width) *(float2*)(row + col) = make_float2(x, y);
#else
  if (col < width) row[col] = narrowed(x);
  if (col + 1 < width) row[col + 1] = narrowed(y);
#endif
}
__device__ __forceinline__ void write_pair_f32(float* row, int col, int width, float x, float y) {
#if WIDE
  if (col < width) *(float2*)(row + col) = make_float2(x, y);
#else
  if (col < width) row[col] = x;
  if (col + 1 < width) row[col + 1] = y;
#endif
}
__device__ __forceinline__ float2 read_pair_f32(const float* row, int col, int width) {
#if WIDE
  return col < width ? *(const float2*)(row + col) : make_float2(0.f, 0.f);
#else
  return make_float2(col < width ? row[col] : 0.f, col + 1 < width ? row[col + 1] : 0.f);
#endif
}

template <int N, class Pair> __device__ __forceinline__ void write_row_f32(float* row, int first, int width, int c, Pair pair) {
#pragma unroll
  for (int j = 0; j < N / 8; j++) { const float2 x = pair(j); write_pair_f32(row, first + 8 * j + 2 * c, width, x.x, x.y); }
}
// The results o of a warp's 16 * M rows, N columns from `first` on, as far as they lie within `width`; lane i knows the token
// of row i, -1: nobody. `tile`: those rows of a tile that no other warp reads or writes there, and that are done with.
template <int M, int N> __device__ __forceinline__ void write_rows(const Rows<element>& to, int batch, int head, int token, int first, int width, u32 tile, const float (&o)[M][N / 2], int lane) {
  element* const base = to.at(batch, head) + first;
#if BITS == 16 && WIDE
  constexpr int PIECES = N / 8;   // of 16 bytes
  const u32 own = chunk_at(tile, lane / 4, 0) + lane % 4 * 4;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int j = 0; j < PIECES; j++)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(chunk_behind(own, j) + (16 * m + 8 * h) * ROW_BYTES), "r"(pack2(o[m][4 * j + 2 * h], o[m][4 * j + 2 * h + 1])) : "memory");
  __syncwarp();
  constexpr bool EVEN = 32 % PIECES == 0;   // a lane writes the same piece of several rows
  constexpr int TURNS = M * PIECES / 2, AT_ONCE = TURNS % 4 ? TURNS % 3 ? 2 : 3 : 4;
  const u32 first_piece = chunk_at(tile, lane / PIECES, lane % PIECES);
#pragma unroll
  for (int first_turn = 0; first_turn < TURNS; first_turn += AT_ONCE) {
    uint4 w[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int turn = first_turn + i, at = 32 * turn + lane;
      const u32 from = EVEN ? chunk_below(first_piece, 32 / PIECES * turn) : chunk_at(tile, at / PIECES, at % PIECES);
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(w[i].x), "=r"(w[i].y), "=r"(w[i].z), "=r"(w[i].w) : "r"(from) : "memory");
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int at = 32 * (first_turn + i) + lane, c = EVEN ? lane % PIECES : at % PIECES, t = __shfl_sync(~0u, token, at / PIECES);
      store_chunk(row_address(base + 8 * c, t, (int)to.token * (int)sizeof(element)), w[i], t | (first + 8 * c < width ? 0 : -1));
    }
  }
#else
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int t = __shfl_sync(~0u, token, 16 * m + 8 * h + lane / 4);
      if (t >= 0)
#pragma unroll
        for (int j = 0; j < N / 8; j++) write_pair(base + t * to.token, 8 * j + 2 * (lane & 3), width - first, o[m][4 * j + 2 * h], o[m][4 * j + 2 * h + 1]);
    }
#endif
}

// What the backward counts exponents of weights in: in float32 they are as given, in 16 bits powers of 2.
constexpr float LOG_UNIT = BITS == 32 ? 1.f : LOG2E;
// The natural logarithm of a row's sum l of weights e^(unit (s - m)).
__device__ __forceinline__ float log_sum(float m, float l, float unit) { return l == 0.f ? NEG_INF : fmaf(m, unit, logf(l)); }

// ---- joining softmaxes ----------------------------------------------------------------------------
// A row that was attended before, with this logarithm of its sum: `found` becomes that of both, f the factor of the new
// output if it was that before, old the factor of the one before.
__device__ __forceinline__ void join(float before, float& found, float& f, float& old) {
  if (before == NEG_INF) return;
  const float top = fmaxf(before, found), a = ex2((found - top) * LOG2E), b = ex2((before - top) * LOG2E), share = 1.f / (a + b);
  f *= a * share;
  old = b * share;
  found = top + logf(a + b);
}
