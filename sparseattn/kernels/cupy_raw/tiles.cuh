// Tiles and their products, in front of every .cu file: what a kernel reads, and how it multiplies. Instructions of
// sm_80 and newer; no header is needed. steps.cuh, which follows, has the rest.
//
// A tile in shared memory has rows of D numbers in chunks of 16 bytes. So that the rows that a warp reads together meet
// different banks, a row is 16 bytes longer, or, where it has whole groups of 8 chunks, its chunks change places within
// the groups: then no row begins in the middle of 128 bytes, which writing takes longer for. Products are mma.sync: 16 bits m16n8k16; float32 by three products of tf32 numbers
// m16n8k8, high x high + high x low + low x high, in sums of at most 32 numbers, because the unit cuts its sums instead of
// rounding them.
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
#ifndef SOFTCAP
#define SOFTCAP 0
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
constexpr bool SWIZZLED = BITS == 16 && (D == 64 || D == 128 || D == 256);
constexpr int ROW_BYTES = D * BITS / 8 + (SWIZZLED ? 0 : 16);
#define NEG_INF (__int_as_float(0xff800000))
#define POS_INF (__int_as_float(0x7f800000))
#define LOG2E 1.4426950408889634f

// An array (batch, heads, tokens, columns) with unit stride along columns; strides in numbers.
template <class T> struct Rows {
  T* data;
  i64 batch, head, token;
  __device__ __forceinline__ T* at(int b, int h) const { return data + b * batch + h * head; }
};

// Where chunk c of a row stands in a tile, which begins at a multiple of 128 bytes.
__device__ __forceinline__ u32 chunk_at(u32 tile, int row, int c) { return tile + row * ROW_BYTES + (SWIZZLED ? c ^ (row & 7) : c) * 16; }
// The same for a chunk an even number of chunks behind that at `first`, which is number 0 or 1 of a group of 8.
__device__ __forceinline__ u32 chunk_behind(u32 first, int n) { return SWIZZLED ? (first ^ n % 8 * 16) + n / 8 * 128 : first + n * 16; }
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

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
// 16 bytes from an address, or zeros where `token` is negative; nothing is read then.
__device__ __forceinline__ void copy_chunk(u32 to, const void* from, int token) {
  asm volatile("{\n.reg .pred nobody;\nsetp.lt.s32 nobody, %2, 0;\ncp.async.cg.shared.global [%0], [%1], 16, nobody;\n}" ::"r"(to), "l"(from), "r"(token) : "memory");
}
template <int BYTES> __device__ __forceinline__ void copy_small(u32 to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}
// base + token * step, one instruction.
__device__ __forceinline__ const void* row_address(const void* base, int token, int step) {
  const void* address;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(address) : "r"(token), "r"(step), "l"(base));
  return address;
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
// N rows of `width` numbers into a tile at `to`; token(row) is each row's token, -1: zeros. A row's bytes and the distance
// between rows are numbers of 32 bits. Asynchronous where WIDE. A thread has rows one below the other where it can, so
// that it reads their tokens together.
template <int N, int THREADS, class Token> __device__ __forceinline__ void load_tile(u32 to, const element* src, i64 stride, int width, Token token) {
  constexpr int EACH = (N * CHUNKS + THREADS - 1) / THREADS;
  constexpr bool EVEN = THREADS % CHUNKS == 0 && N % (THREADS / CHUNKS) == 0;
  const int c0 = threadIdx.x % CHUNKS, row0 = threadIdx.x / CHUNKS * EACH;
  int tokens[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = i * THREADS + threadIdx.x;
    tokens[i] = EVEN || at < N * CHUNKS ? token(EVEN ? row0 + i : at / CHUNKS) : -1;
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = i * THREADS + threadIdx.x, row = EVEN ? row0 + i : at / CHUNKS, c = EVEN ? c0 : at % CHUNKS, t = tokens[i];
    if (!EVEN && at >= N * CHUNKS) break;
#if WIDE
    const int outside = c * CHUNK < width ? 0 : -1;
    copy_chunk(chunk_at(to, row, c), row_address(src + c * CHUNK, t, (int)stride * (int)sizeof(element)), t | outside);
#else
    read_chunk(chunk_at(to, row, c), src + (i64)max(t, 0) * stride, c, width, t >= 0);
#endif
  }
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_for() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// ---- products of tiles ----------------------------------------------------------------------------
#if BITS == 32
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#elif FP16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same on a sum of 0, which takes no instruction to make.
__device__ __forceinline__ void first_mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

#if BITS == 16
__device__ __forceinline__ void ldsm(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldsm_t(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
// s = x y^T for 16 * M rows of the tile x from `row` on and N rows of the tile y.
template <int M, int N, bool = false> __device__ __forceinline__ void scores(float (&s)[M][N / 2], u32 x, int row, u32 y, int lane) {
  const u32 first_x = chunk_at(x, row + lane % 16, lane / 16), first_y = chunk_at(y, lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    u32 a[M][4], b[4];
#pragma unroll
    for (int m = 0; m < M; m++) ldsm(a[m], chunk_behind(first_x, 2 * kk) + 16 * m * ROW_BYTES);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      ldsm(b, chunk_behind(first_y, 2 * kk) + 16 * n * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < M; m++) {
        if (kk == 0) { first_mma(s[m] + 8 * n, a[m], b[0], b[1]); first_mma(s[m] + 8 * n + 4, a[m], b[2], b[3]); }
        else { mma(s[m] + 8 * n, a[m], b[0], b[1]); mma(s[m] + 8 * n + 4, a[m], b[2], b[3]); }
      }
    }
  }
}
// o += p y for the W columns of the tile y (N rows) that begin `column` numbers in; p as `scores` leaves it.
template <int M, int N, int W, bool = false> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], u32 y, int column, int lane) {
  const u32 first = chunk_at(y + column * 2, lane % 16, lane / 16);
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
      ldsm_t(b, chunk_behind(first, 2 * n) + 16 * kk * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < M; m++) { mma(o[m] + 8 * n, a[m] + 4 * kk, b[0], b[1]); mma(o[m] + 8 * n + 4, a[m] + 4 * kk, b[2], b[3]); }
    }
}
#else
__device__ __forceinline__ float word(u32 a) { float x; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(a) : "memory"); return x; }
// high: the 11 leading bits, rounded; low: what is left, rounded too, since the unit cuts off all further bits
__device__ __forceinline__ void split(float x, u32& high, u32& low) {
  high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  low = __float_as_uint(x - __uint_as_float(high)) + 0x1000u;
}

// 16 rows and 8 columns of a left factor.
struct Split {
  u32 high[4], low[4];
  __device__ __forceinline__ void set(float a, float b, float c, float d) { split(a, high[0], low[0]); split(b, high[1], low[1]); split(c, high[2], low[2]); split(d, high[3], low[3]); }
};
// sum += the left factor x, 8 * K columns wide, times GROUPS groups of 8 columns; read(k, g, high, low) gives the thread's
// two numbers of group g and the k-th 8 rows. The small products have sums of their own, so that the large ones are cut K
// times only; several groups at once, since a product waits for the one before it in its sum.
template <int K, int GROUPS, class Read> __device__ __forceinline__ void add_products(float* sum, const Split (&x)[K], Read read) {
  float high[GROUPS][4], low[GROUPS][4];
#pragma unroll
  for (int k = 0; k < K; k++) {
    u32 h[GROUPS][2], l[GROUPS][2];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) read(k, g, h[g], l[g]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) k ? mma(low[g], x[k].low, h[g][0], h[g][1]) : first_mma(low[g], x[k].low, h[g][0], h[g][1]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) k ? mma(high[g], x[k].high, h[g][0], h[g][1]) : first_mma(high[g], x[k].high, h[g][0], h[g][1]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) mma(low[g], x[k].high, l[g][0], l[g][1]);
  }
#pragma unroll
  for (int g = 0; g < GROUPS; g++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[4 * g + i] += high[g][i] + low[g][i];
}
// Groups of columns whose products are made at once.
template <int COLUMNS> constexpr int GROUPS_OF = COLUMNS % 32 == 0 ? 4 : COLUMNS % 24 == 0 ? 3 : 2;

// Tiles of split numbers, made once where several warps read them: units of 16 bytes, {high, high, low, low} of the two
// numbers that a thread takes to a product. For scores those are neighbours in a row, for accumulate neighbours in a column.
// Units change places so that what a warp reads together lies in different banks.
__device__ __forceinline__ u32 unit_of_row(u32 tile, int row, int col) { return tile + row * D * 8 + (col / 2 ^ (row & 1) << 2) * 16; }
__device__ __forceinline__ u32 unit_of_column(u32 tile, int row, int col) { return tile + row / 2 * D * 16 + (col ^ (row / 2 & 3 ^ col >> 3 & 3) << 1) * 16; }
__device__ __forceinline__ void read_unit(u32 a, u32 (&h)[2], u32 (&l)[2]) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(h[0]), "=r"(h[1]), "=r"(l[0]), "=r"(l[1]) : "r"(a) : "memory");
}
__device__ __forceinline__ void write_unit(u32 a, float x, float y) {
  u32 h[2], l[2];
  split(x, h[0], l[0]); split(y, h[1], l[1]);
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(h[0]), "r"(h[1]), "r"(l[0]), "r"(l[1]) : "memory");
}
// The tile of split numbers of N rows at `from`, for accumulate if IN_COLUMNS, else for scores. Each thread splits what it
// loaded itself with load_tile<N, THREADS>, so nobody waits for another.
template <int N, int THREADS, bool IN_COLUMNS> __device__ __forceinline__ void split_tile(u32 to, u32 from) {
  constexpr int EACH = N * CHUNKS / THREADS;
  static_assert(THREADS % CHUNKS == 0 && N % (THREADS / CHUNKS) == 0 && EACH % 2 == 0, "rows of a thread");
  const int row = threadIdx.x / CHUNKS * EACH, c = threadIdx.x % CHUNKS;
#pragma unroll
  for (int i = 0; i < EACH; i += 2) {
    float x[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++)
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x[h][0]), "=f"(x[h][1]), "=f"(x[h][2]), "=f"(x[h][3]) : "r"(chunk_at(from, row + i + h, c)) : "memory");
    if (IN_COLUMNS)
#pragma unroll
      for (int j = 0; j < 4; j++) write_unit(unit_of_column(to, row + i, 4 * c + j), x[0][j], x[1][j]);
    else
#pragma unroll
      for (int j = 0; j < 4; j++) write_unit(unit_of_row(to, row + i + j / 2, 4 * c + j % 2 * 2), x[j / 2][j % 2 * 2], x[j / 2][j % 2 * 2 + 1]);
  }
}

// s = x y^T for 16 rows of the tile x from `row` on and N rows of the tile y, which holds split numbers where SPLIT. The sum
// takes neighbouring columns as the numbers of a thread.
template <int M, int N, bool SPLIT = false> __device__ __forceinline__ void scores(float (&s)[M][N / 2], u32 x, int row, u32 y, int lane) {
  static_assert(M == 1, "16 rows a warp");
  const int t = lane & 3, r = lane >> 2;
#pragma unroll
  for (int i = 0; i < N / 2; i++) s[0][i] = 0.f;
#pragma unroll 1
  for (int part = 0; part < D; part += 32) {
    Split left[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const u32 a = x + (row + r) * ROW_BYTES + (part + 8 * k + (SPLIT ? 2 * t : t)) * 4, b = a + 8 * ROW_BYTES;
      left[k].set(word(a), word(b), word(a + (SPLIT ? 4 : 16)), word(b + (SPLIT ? 4 : 16)));
    }
    constexpr int GROUPS = GROUPS_OF<N>;
    const u32 even = unit_of_row(y, r, part + 2 * t), odd = unit_of_row(y, r, part + 8 + 2 * t);   // of the thread's first units
#pragma unroll
    for (int n = 0; n < N / 8; n += GROUPS)
      add_products<4, GROUPS>(s[0] + 4 * n, left, [&](int k, int g, u32 (&h)[2], u32 (&l)[2]) {
        if (SPLIT) { read_unit((k % 2 ? odd : even) + k / 2 * 128 + 8 * (n + g) * D * 8, h, l); return; }
        const u32 at = y + (8 * (n + g) + r) * ROW_BYTES + (part + 8 * k + t) * 4;
        split(word(at), h[0], l[0]); split(word(at + 16), h[1], l[1]);
      });
  }
}
// o += p y for the W columns of the tile y (N rows) that begin `column` numbers in; p as `scores` leaves it. The sum
// over rows of y takes them in the order in which accumulators hold them.
template <int M, int N, int W, bool SPLIT = false>
__device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], u32 y, int column, int lane) {
  constexpr int K = N >= 32 ? 4 : N / 8, GROUPS = GROUPS_OF<W>;
  const int t = lane & 3, r = lane >> 2;
  u32 firsts[4];   // of the thread's units in columns 8 n + r, n = 0 to 3
#pragma unroll
  for (int n = 0; n < 4; n++) firsts[n] = unit_of_column(y, 2 * t, column + 8 * n + r);
#pragma unroll
  for (int j = 0; j < N / 8; j += K) {
    Split left[K];
#pragma unroll
    for (int k = 0; k < K; k++) left[k].set(p[0][4 * (j + k)], p[0][4 * (j + k) + 2], p[0][4 * (j + k) + 1], p[0][4 * (j + k) + 3]);
#pragma unroll
    for (int n = 0; n < W / 8; n += GROUPS)
      add_products<K, GROUPS>(o[0] + 4 * n, left, [&](int k, int g, u32 (&h)[2], u32 (&l)[2]) {
        if (SPLIT) { read_unit(firsts[(n + g) % 4] + (n + g) / 4 * 512 + 4 * (j + k) * D * 16, h, l); return; }
        const u32 at = y + (8 * (j + k) + 2 * t) * ROW_BYTES + (column + 8 * (n + g) + r) * 4;
        split(word(at), h[0], l[0]); split(word(at + ROW_BYTES), h[1], l[1]);
      });
  }
}
#endif

// ---- walks tile by tile ----------------------------------------------------------------------------
// The N moving rows of a step: their tokens, -1 where no row of the tile meets one, bits of those that are there, and the
// mask of their block.
template <int N> struct __align__(16) Step { int tokens[N]; u32 there[2]; int mask; };

// The token of moving row `at` of block `col` with mask `mask`, -1 where no row of the tile meets it. BLOCK: rows of a
// block.
template <int BLOCK> __device__ __forceinline__ int moving_token(const int* order, i64 y_at, int n, const u32* live, int col, int mask, int at) {
  const int token = token_at(order, y_at, col * BLOCK + at, n);
  return mask && !(live[(i64)mask * (BLOCK / 32) + at / 32] >> (at % 32) & 1) ? -1 : token;
}
// Called by the first N threads, each with the token of its row.
template <int N> __device__ __forceinline__ void tell(Step<N>& to, int token, int mask) {
  const u32 there = __ballot_sync(~0u, token >= 0);
  to.tokens[threadIdx.x] = token;
  if (threadIdx.x % 32 == 0) { to.there[threadIdx.x / 32] = there; to.mask = mask; }
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
    copy_chunk(chunk_at(to, row, c), there ? from + c * CHUNK : base, there ? 0 : -1);
#else
    read_chunk(chunk_at(to, row, c), from, c, width, there);
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
