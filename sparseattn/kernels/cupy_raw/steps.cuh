// What every kernel is made of, in front of each .cu file: reading tiles, products of tiles, masks, the shaping of
// scores, online softmax. Instructions of sm_80 and newer; no header is needed.
//
// A tile in shared memory has rows of D numbers and 16 bytes more: so the rows that a warp reads together meet
// different banks, whatever D is. Products are mma.sync: 16 bits m16n8k16; float32 by three products of tf32 numbers
// m16n8k8, high x high + high x low + low x high, in chains of at most 32 or COLS numbers, because the unit cuts its
// sums instead of rounding them.
//
// A thread's accumulators for 16 rows of a warp and N columns: N / 2 numbers, groups of four for 8 columns j:
// {row r, column 8j + 2c}, {r, 8j + 2c + 1}, {r + 8, 8j + 2c}, {r + 8, 8j + 2c + 1} with r = lane / 4, c = lane % 4.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef long long i64;

#ifndef FP16
#define FP16 0
#endif
#ifndef SHAPED
#define SHAPED 0
#endif
#ifndef BIAS
#define BIAS 0
#endif
#ifndef CODE64
#define CODE64 0
#endif
#ifndef DROPOUT
#define DROPOUT 0
#endif

#if BITS == 16
typedef u16 element;
#else
typedef float element;
#endif
#if CODE64
typedef i64 code_t;
#else
typedef int code_t;
#endif

constexpr int D = HEAD_DIM;
constexpr int CHUNK = 128 / BITS;          // numbers of 16 bytes
constexpr int CHUNKS = D / CHUNK;          // 16-byte chunks of a row
constexpr int ROW_BYTES = D * BITS / 8 + 16;
constexpr int TOKENS = BIAS || DROPOUT;    // whether a kernel needs to know the tokens of moving rows
#define NEG_INF (__int_as_float(0xff800000))
#define POS_INF (__int_as_float(0x7f800000))
#define LOG2E 1.4426950408889634f
#define LN2 0.69314718055994531f

// An array (batch, heads, tokens, columns) with unit stride along columns; strides in numbers.
template <class T> struct Rows {
  T* data;
  i64 batch, head, token;
  __device__ __forceinline__ T* at(int b, int h) const { return data + b * batch + h * head; }
};

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float lg2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// ---- 16-bit numbers -------------------------------------------------------------------------------
__device__ __forceinline__ u32 pack2(float lo, float hi) {
  u32 r;
#if FP16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}
__device__ __forceinline__ float2 unpack2(u32 w) {
#if FP16
  float2 r;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}" : "=f"(r.x), "=f"(r.y) : "r"(w));
  return r;
#else
  return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
#endif
}
__device__ __forceinline__ float widened(element x) {
#if BITS == 16
  return unpack2(x).x;
#else
  return x;
#endif
}
__device__ __forceinline__ element narrowed(float x) {
#if BITS == 16
  return (u16)pack2(x, 0.f);
#else
  return x;
#endif
}

// ---- tokens ---------------------------------------------------------------------------------------
// The token at a slot, -1 for nobody; a list is padded to whole tiles, no list: slot = token.
__device__ __forceinline__ int token_at(const int* order, i64 at, int slot, int n) { return order ? order[at + slot] : slot < n ? slot : -1; }

// Whether bit `i` of the words of a step is set.
template <int N> struct Words {
  u32 w[N];
  __device__ __forceinline__ bool has(int i) const { return (i < 32 ? w[0] : w[N - 1]) >> (i % 32) & 1; }
  __device__ __forceinline__ bool all() const { return N == 1 ? w[0] == ~0u : (w[0] & w[N - 1]) == ~0u; }
};

// ---- reading tiles --------------------------------------------------------------------------------
__device__ __forceinline__ void copy_chunk(u32 to, const element* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// Chunk c of a row of `width` numbers that may lie anywhere, by single numbers.
__device__ __forceinline__ void read_chunk(u32 to, const element* row, int c, int width, bool there) {
  u32 w[4] = {0, 0, 0, 0};
  if (there) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      const int col = c * CHUNK + i;
      if (col < width) {
#if BITS == 16
        w[i / 2] |= (u32)row[col] << (16 * (i % 2));
#else
        w[i] = __float_as_uint(row[col]);
#endif
      }
    }
  }
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}
// N rows of `width` numbers into a tile at `to`; token(row) is each row's token, -1: zeros. Asynchronous where WIDE.
template <int N, int THREADS, class Token> __device__ __forceinline__ void load_tile(u32 to, const element* src, i64 stride, int width, Token token) {
#pragma unroll
  for (int i = 0; i < (N * CHUNKS + THREADS - 1) / THREADS; i++) {
    const int at = i * THREADS + threadIdx.x, row = at / CHUNKS, c = at % CHUNKS;
    if ((N * CHUNKS) % THREADS && at >= N * CHUNKS) break;
    const int t = token(row);
    const bool there = t >= 0 && c * CHUNK < width;
    const element* from = src + (t < 0 ? 0 : t) * stride;
#if WIDE
    copy_chunk(to + row * ROW_BYTES + c * 16, from + (there ? c * CHUNK : 0), there);
#else
    read_chunk(to + row * ROW_BYTES + c * 16, from, c, width, there);
#endif
  }
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_for() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// ---- products of tiles ----------------------------------------------------------------------------
#if BITS == 16
__device__ __forceinline__ void ldsm(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldsm_t(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
#if FP16
#define MMA_TYPES "f32.f16.f16.f32"
#else
#define MMA_TYPES "f32.bf16.bf16.f32"
#endif
  asm volatile("mma.sync.aligned.m16n8k16.row.col." MMA_TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// s = x y^T for 16 * M rows of the tile x from `row` on and N rows of the tile y.
template <int M, int N> __device__ __forceinline__ void scores(float (&s)[M][N / 2], u32 x, int row, u32 y, int lane) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < N / 2; i++) s[m][i] = 0.f;
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    u32 a[M][4], b[4];
#pragma unroll
    for (int m = 0; m < M; m++) ldsm(a[m], x + (row + 16 * m + lane % 16) * ROW_BYTES + (2 * kk + lane / 16) * 16);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      ldsm(b, y + (16 * n + lane % 8 + lane / 16 * 8) * ROW_BYTES + (2 * kk + lane / 8 % 2) * 16);
#pragma unroll
      for (int m = 0; m < M; m++) { mma(s[m] + 8 * n, a[m], b[0], b[1]); mma(s[m] + 8 * n + 4, a[m], b[2], b[3]); }
    }
  }
}
// o += p y for the W columns of the tile y (N rows) that begin `column` numbers in; p as `scores` leaves it.
template <int M, int N, int W> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], u32 y, int column, int lane) {
  u32 a[M][N / 4];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < N / 4; i++) a[m][i] = pack2(p[m][2 * i], p[m][2 * i + 1]);
#pragma unroll
  for (int kk = 0; kk < N / 16; kk++)
#pragma unroll
    for (int n = 0; n < W / 16; n++) {
      u32 b[4];
      ldsm_t(b, y + (16 * kk + lane % 16) * ROW_BYTES + column * 2 + (2 * n + lane / 16) * 16);
#pragma unroll
      for (int m = 0; m < M; m++) { mma(o[m] + 8 * n, a[m] + 4 * kk, b[0], b[1]); mma(o[m] + 8 * n + 4, a[m] + 4 * kk, b[2], b[3]); }
    }
}
#else
__device__ __forceinline__ float word(u32 a) { float x; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(a) : "memory"); return x; }
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// high: the 11 leading bits, rounded; low: what is left, rounded too, since the unit cuts off all further bits
__device__ __forceinline__ void split(float x, u32& high, u32& low) {
  high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  low = __float_as_uint(x - __uint_as_float(high)) + 0x1000u;
}

// s = x y^T for 16 * M rows of the tile x from `row` on and N rows of the tile y.
template <int M, int N> __device__ __forceinline__ void scores(float (&s)[M][N / 2], u32 x, int row, u32 y, int lane) {
  const int t = lane & 3, r = lane >> 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < N / 2; i++) s[m][i] = 0.f;
#pragma unroll 1
  for (int part = 0; part < D; part += 32) {
    float sum[M][N / 2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < N / 2; i++) sum[m][i] = 0.f;
#pragma unroll
    for (int k = 0; k < 32; k += 8) {
      u32 high[M][4], low[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) {
        const u32 a = x + (row + 16 * m + r) * ROW_BYTES + (part + k + t) * 4;
        split(word(a), high[m][0], low[m][0]); split(word(a + 8 * ROW_BYTES), high[m][1], low[m][1]);
        split(word(a + 16), high[m][2], low[m][2]); split(word(a + 8 * ROW_BYTES + 16), high[m][3], low[m][3]);
      }
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
        const u32 b = y + (8 * n + r) * ROW_BYTES + (part + k + t) * 4;
        u32 h0, h1, l0, l1;
        split(word(b), h0, l0); split(word(b + 16), h1, l1);
#pragma unroll
        for (int m = 0; m < M; m++) { mma(sum[m] + 4 * n, low[m], h0, h1); mma(sum[m] + 4 * n, high[m], l0, l1); mma(sum[m] + 4 * n, high[m], h0, h1); }
      }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < N / 2; i++) s[m][i] += sum[m][i];
  }
}
// o += p y for the W columns of the tile y (N rows) that begin `column` numbers in; p as `scores` leaves it. The sum
// over rows of y takes them in the order in which accumulators hold them.
template <int M, int N, int W> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], u32 y, int column, int lane) {
  const int t = lane & 3, r = lane >> 2;
  u32 high[M][N / 8][4], low[M][N / 8][4];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      split(p[m][4 * j], high[m][j][0], low[m][j][0]); split(p[m][4 * j + 2], high[m][j][1], low[m][j][1]);
      split(p[m][4 * j + 1], high[m][j][2], low[m][j][2]); split(p[m][4 * j + 3], high[m][j][3], low[m][j][3]);
    }
#pragma unroll
  for (int n = 0; n < W / 8; n++) {
    float sum[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = sum[m][2] = sum[m][3] = 0.f;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      const u32 b = y + (8 * j + 2 * t) * ROW_BYTES + (column + 8 * n + r) * 4;
      u32 h0, h1, l0, l1;
      split(word(b), h0, l0); split(word(b + ROW_BYTES), h1, l1);
#pragma unroll
      for (int m = 0; m < M; m++) { mma(sum[m], low[m][j], h0, h1); mma(sum[m], high[m][j], l0, l1); mma(sum[m], high[m][j], h0, h1); }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[m][4 * n + i] += sum[m][i];
  }
}
#endif

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
  if (__any_sync(~0u, fmaxf(fabsf(b0), fabsf(b1)) > TOO_LARGE)) {
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

// ---- walks row by row -----------------------------------------------------------------------------
// N rows of `width` numbers into a tile at `to`; begin(row) is where each begins, null: zeros. `base`: any address of
// the array. Asynchronous where WIDE.
template <int N, int THREADS, class Begin> __device__ __forceinline__ void load_rows(u32 to, const element* base, int width, Begin begin) {
#pragma unroll
  for (int i = 0; i < (N * CHUNKS + THREADS - 1) / THREADS; i++) {
    const int at = i * THREADS + threadIdx.x, row = at / CHUNKS, c = at % CHUNKS;
    if ((N * CHUNKS) % THREADS && at >= N * CHUNKS) break;
    const element* from = begin(row);
    const bool there = from && c * CHUNK < width;
#if WIDE
    copy_chunk(to + row * ROW_BYTES + c * 16, there ? from + c * CHUNK : base, there);
#else
    read_chunk(to + row * ROW_BYTES + c * 16, from, c, width, there);
#endif
  }
}

// A moving row that is looked up: its entry's block (-1: past the last one) and mask, and which row of the entry.
struct Moving { int block, mask, part; };
__device__ __forceinline__ Moving look_up(const int* indices, const int* mask_ids, int first, int number, int total, int parts) {
  if (number >= total) return {-1, 0, 0};
  const int entry = first + number / parts;
  return {indices[entry], mask_ids[entry], number % parts};
}
// A moving key: token, and the mask word whose bit says whether it is attended. Read in one go, judged later.
struct Key {
  int token, bit;
  u32 word;
  __device__ __forceinline__ int attended() const { return word >> bit & 1 ? token : -1; }
};
__device__ __forceinline__ Key find_key(const Moving& m, int block_y, const u32* masks, const int* order, i64 at, int n_slots, int n) {
  const int slot = m.block * block_y + m.part;
  if (m.block < 0 || slot >= n_slots) return {-1, 0, 0};
  return {token_at(order, at, slot, n), m.part % 32, masks[(i64)m.mask * ((block_y + 31) / 32) + m.part / 32]};
}

// The natural logarithm of a row's sum of weights 2^(s c - m c).
__device__ __forceinline__ float log_sum(float m, float l, float c) { return l == 0.f ? NEG_INF : fmaf(m * c, LN2, logf(l)); }

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
