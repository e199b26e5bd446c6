// Tiles and their products, in front of every .cu file: what a kernel reads, and how it multiplies. Instructions of
// sm_80 and newer; no header is needed. steps.cuh, which follows, has the rest.
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
