// What happens to the scores of a tile, behind tiles.cuh in every .cu file: masks, the shaping of scores, online softmax,
// the writing of rows.

// ---- masks ----------------------------------------------------------------------------------------
// Scores of pairs without a bit become -inf; x, y: the words of the thread's rows r and r + 8.
template <int N> __device__ __forceinline__ void apply_mask(float (&s)[N / 2], const Words<N / 32>& x, const Words<N / 32>& y, int lane) {
  const int shift = 2 * (lane & 3);
#pragma unroll
  for (int w = 0; w < N / 32; w++) {
    const u32 a = x.w[w] >> shift, b = y.w[w] >> shift;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float* t = s + 16 * w + 4 * j;
      t[0] = a >> (8 * j) & 1 ? t[0] : NEG_INF;
      t[1] = a >> (8 * j + 1) & 1 ? t[1] : NEG_INF;
      t[2] = b >> (8 * j) & 1 ? t[2] : NEG_INF;
      t[3] = b >> (8 * j + 1) & 1 ? t[3] : NEG_INF;
    }
  }
}

// ---- softcap, bias, dropout -----------------------------------------------------------------------
struct Options {
  float softcap;
  const float* values;
  const i64* value_at;
  const int* labels;
  const code_t *x_codes, *y_codes;
  i64 low, high, x_step, y_step;
  u32 limit;
  float kept;
  u32 word;
};
// The options of one query head: what of them does not depend on tokens.
struct Shaping {
  const float* values;   // where the head's values begin
  const int* labels;
  code_t moved;
  u32 draw;              // mixed up to the head
};
__device__ __forceinline__ u32 mix(u32 h) {
  h ^= h >> 16; h *= 0x85EBCA6Bu;
  h ^= h >> 13; h *= 0xC2B2AE35u;
  return h ^ h >> 16;
}
__device__ __forceinline__ u32 draw(u32 r, u32 number) { return mix(r + 0x9E3779B9u * number); }
__device__ __forceinline__ Shaping shaping_of(const Options& o, int batch, int head, int n_heads) {
  Shaping s;
#if BIAS
  const i64* at = o.value_at + 3 * ((i64)batch * n_heads + head);
  s.values = o.values + at[0]; s.moved = (code_t)at[1]; s.labels = o.labels + at[2];
#endif
#if DROPOUT
  s.draw = draw(draw(o.word, batch), head);
#endif
  return s;
}
#if BIAS
// A limit of places as a code: those that no code can reach become the outermost codes.
__device__ __forceinline__ code_t limit_of(i64 x) {
  const i64 most = CODE64 ? 0x7fffffffffffffffll : 0x7fffffffll;
  return (code_t)(x > most ? most : x < -most ? -most : x);
}
// Where the value of a pair stands, counted from the head's values.
__device__ __forceinline__ i64 place_of(const Options& o, const Shaping& s, code_t x_code, code_t y_code, int x_token, int y_token) {
  const code_t low = limit_of(o.low), high = limit_of(o.high);
  code_t place = x_code + y_code + s.moved;
  place = place < low ? low : place > high ? high : place;
#if BIAS == 2
  return s.labels[place] + x_token * o.x_step + y_token * o.y_step;
#else
  return place;
#endif
}
#endif
// tanh to a few units in the last place: a polynomial (relative error 4e-8) where the exponential would cancel
__device__ __forceinline__ float tanh_of(float x) {
  const float t = fabsf(x), q = x * x;
  const float near = fmaf(x * q, fmaf(q, fmaf(q, fmaf(q, 0.016437576f, -0.052671811f), 0.13320725f), -0.33332947f), x);
  const float far = 1.f - __fdividef(2.f, ex2(2.f * LOG2E * fminf(t, 20.f)) + 1.f);
  return t < 0.55f ? near : copysignf(far, x);
}

// ---- online softmax -------------------------------------------------------------------------------
struct Row { float m = NEG_INF, l = 0.f; };
// Exponents from here on: a rounded one would be off by whole numbers, so the maximum is taken off before scaling.
#define TOO_LARGE 1.6e7f

// Scores to exponentials in place, 2^(s * c). Returns the factors for the old output rows: 1 while the running maximum
// has grown by under 2^8, so most steps rescale nothing.
template <int N> __device__ __forceinline__ float2 online_softmax(float (&s)[N], Row& r0, Row& r1, float c, float slack) {
  float x0 = fmaxf(s[0], s[1]), x1 = fmaxf(s[2], s[3]);
#pragma unroll
  for (int i = 4; i < N; i += 4) {
    x0 = fmaxf(x0, fmaxf(s[i], s[i + 1]));
    x1 = fmaxf(x1, fmaxf(s[i + 2], s[i + 3]));
  }
#pragma unroll
  for (int d = 1; d < 4; d *= 2) {
    x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, d));
    x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, d));
  }
  float2 f = make_float2(1.f, 1.f);
  if (x0 > r0.m + slack) { f.x = ex2((r0.m - x0) * c); r0.m = x0; }
  if (x1 > r1.m + slack) { f.y = ex2((r1.m - x1) * c); r1.m = x1; }
  float b0 = r0.m == NEG_INF ? 0.f : r0.m * c, b1 = r1.m == NEG_INF ? 0.f : r1.m * c;
  if (fmaxf(fabsf(b0), fabsf(b1)) > TOO_LARGE) {
    const float m0 = fabsf(b0) > TOO_LARGE ? r0.m : 0.f, m1 = fabsf(b1) > TOO_LARGE ? r1.m : 0.f;
#pragma unroll
    for (int i = 0; i < N; i += 4) { s[i] -= m0; s[i + 1] -= m0; s[i + 2] -= m1; s[i + 3] -= m1; }
    b0 = m0 != 0.f ? 0.f : b0;
    b1 = m1 != 0.f ? 0.f : b1;
  }
  float s0 = 0.f, s1 = 0.f, t0 = 0.f, t1 = 0.f;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    s[i] = ex2(fmaf(s[i], c, -b0));         s0 += s[i];
    s[i + 1] = ex2(fmaf(s[i + 1], c, -b0)); t0 += s[i + 1];
    s[i + 2] = ex2(fmaf(s[i + 2], c, -b1)); s1 += s[i + 2];
    s[i + 3] = ex2(fmaf(s[i + 3], c, -b1)); t1 += s[i + 3];
  }
  r0.l = r0.l * f.x + (s0 + t0);
  r1.l = r1.l * f.y + (s1 + t1);
  return f;
}
template <int N> __device__ __forceinline__ void rescale(float (&o)[N], float2 f) {
  if (__any_sync(~0u, f.x != 1.f || f.y != 1.f)) {
#pragma unroll
    for (int i = 0; i < N; i += 4) { o[i] *= f.x; o[i + 1] *= f.x; o[i + 2] *= f.y; o[i + 3] *= f.y; }
  }
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

#if BITS == 16 && WIDE
// Of a quad's words w[j], one of each thread and for each of 4 groups of 8 numbers, thread c gets those of group c.
__device__ __forceinline__ void transpose(u32 (&w)[4], int c) {
#pragma unroll
  for (int d = 1; d < 4; d *= 2)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & d) continue;
      const u32 other = __shfl_xor_sync(~0u, c & d ? w[i] : w[i + d], d);
      if (c & d) w[i] = other; else w[i + d] = other;
    }
}
#endif
template <int N, class Pair> __device__ __forceinline__ void write_row_f32(float* row, int first, int width, int c, Pair pair) {
#pragma unroll
  for (int j = 0; j < N / 8; j++) { const float2 x = pair(j); write_pair_f32(row, first + 8 * j + 2 * c, width, x.x, x.y); }
}
// N numbers of a result row from column `first` on, as far as they lie within `width`: pair(j) are the thread's two at
// first + 8 j + 2 c. Called by whole warps; the row is written where it is `there`.
template <int N, class Pair> __device__ __forceinline__ void write_row(element* row, bool there, int first, int width, int c, Pair pair) {
#if BITS == 16 && WIDE
#pragma unroll
  for (int i = 0; i < N / 32; i++) {
    u32 w[4];
#pragma unroll
    for (int j = 0; j < 4; j++) { const float2 x = pair(4 * i + j); w[j] = pack2(x.x, x.y); }
    transpose(w, c);
    const int col = first + 32 * i + 8 * c;
    if (there && col < width) *(uint4*)(row + col) = make_uint4(w[0], w[1], w[2], w[3]);
  }
#else
#pragma unroll
  for (int j = 0; j < N / 8; j++) { const float2 x = pair(j); if (there) write_pair(row, first + 8 * j + 2 * c, width, x.x, x.y); }
#endif
}

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
