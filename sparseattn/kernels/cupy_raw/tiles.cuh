// Tiles, in front of every .cu file: what a kernel reads. Instructions of sm_80 and newer; no header is needed.
// products.cuh and steps.cuh follow.
//
// A tile in shared memory has rows of D numbers in chunks of 16 bytes. So that the rows that a warp reads together meet
// different banks, a row is 16 bytes longer, or, where it has whole groups of 8 chunks, its chunks change places within
// the groups: then no row begins in the middle of 128 bytes, which writing takes longer for.
// HALVES = 1, for float32: rows become numbers of 16 bits in place (products.cuh). Behind the rows of such a tile lie their
// units, and where they are short, what is left of their numbers.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef long long i64;

#ifndef FP16
#define FP16 0
#endif
#ifndef HALVES
#define HALVES 0
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
constexpr int LANES = CHUNKS % 32 ? CHUNKS & -CHUNKS : 32;   // neighbouring threads that load a row, CHUNKS / LANES chunks each
constexpr bool SWIZZLED = BITS == 16 ? D == 64 || D == 128 || D == 256 : HALVES;
constexpr int ROW_BYTES = D * BITS / 8 + (SWIZZLED ? 0 : 16);
constexpr int UNIT_BYTES = HALVES ? 4 : 0;
constexpr bool FEW = BITS == 32 && D == 32;
constexpr int REST_BYTES = HALVES && FEW ? 2 * D : 0;
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
// The same for a chunk n chunks behind that at `first`, whose number in its group of 8 has no bit that n has.
__device__ __forceinline__ u32 chunk_behind(u32 first, int n) { return SWIZZLED ? (first ^ n % 8 * 16) + n / 8 * 128 : first + n * 16; }
// The same for a chunk n rows below that at `first`, whose row has no bit that n has.
__device__ __forceinline__ u32 chunk_below(u32 first, int n) { return (SWIZZLED ? first ^ n % 8 * 16 : first) + n * ROW_BYTES; }
// Where a tile begins in shared memory, and the units and rests of its rows.
struct Tile {
  u32 at, units, rests;
  __device__ __forceinline__ Tile from(int row) const { return {at + row * ROW_BYTES, units + row * UNIT_BYTES, rests + row * REST_BYTES}; }
};
// Bytes of a tile of N rows; where it begins at a multiple of 128 bytes, so does what follows.
template <int N> constexpr int TILE_BYTES = N * ROW_BYTES + (N * (UNIT_BYTES + REST_BYTES) + 127) / 128 * 128;
__device__ __forceinline__ Tile tile_at(u32 at, int n) { return {at, at + n * ROW_BYTES, at + n * (ROW_BYTES + UNIT_BYTES)}; }
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// ---- 16-bit numbers -------------------------------------------------------------------------------
__device__ __forceinline__ u32 pack2(float lo, float hi) {
  u32 r;
#if FP16 || HALVES
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}
__device__ __forceinline__ float2 unpack2(u32 w) {
#if FP16 || HALVES
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
  __device__ __forceinline__ bool any() const { return (w[0] | w[N - 1]) != 0; }
};

// ---- reading tiles --------------------------------------------------------------------------------
// 16 bytes from an address, or zeros where `token` is negative or `outside` is; nothing is read then.
__device__ __forceinline__ void copy_chunk(u32 to, const void* from, int token, bool outside = false) {
  asm volatile("{\n.reg .pred outside, nobody;\nsetp.ne.s32 outside, %3, 0;\nsetp.lt.or.s32 nobody, %2, 0, outside;\ncp.async.cg.shared.global [%0], [%1], 16, nobody;\n}" ::"r"(to), "l"(from), "r"(token), "r"((int)outside) : "memory");
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
// 16 bytes to an address, where `token` is not negative. One instruction: as a branch it became four, of 4 bytes each.
__device__ __forceinline__ void store_chunk(const void* to, const uint4& w, int token) {
  asm volatile("{\n.reg .pred nobody;\nsetp.lt.s32 nobody, %5, 0;\n@!nobody st.global.v4.b32 [%0], {%1, %2, %3, %4};\n}" ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(token) : "memory");
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
// N rows of `width` numbers into a tile; token(row) is each row's token, -1: zeros. A row's bytes and the distance between
// rows are numbers of 32 bits. Asynchronous where WIDE. A thread has rows one below the other, so that it reads their
// tokens together.
template <int N, int THREADS, class Token> __device__ __forceinline__ void load_tile(u32 to, const element* src, i64 stride, int width, Token token) {
  constexpr int AT_ONCE = THREADS / LANES, EACH = (N + AT_ONCE - 1) / AT_ONCE;
  const int c0 = threadIdx.x % LANES, row0 = threadIdx.x / LANES * EACH;
  if (N % AT_ONCE && row0 >= N) return;
  int tokens[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) tokens[i] = token(row0 + i);
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int more = 0; more < CHUNKS; more += LANES) {
      const int c = c0 + more, t = tokens[i];
      const u32 at = EACH & (EACH - 1) ? chunk_at(to, row0 + i, c) : chunk_below(chunk_at(to, row0, c), i);
#if WIDE
      copy_chunk(at, row_address(row_address(src, c, 16), t, (int)stride * (int)sizeof(element)), t, c * CHUNK >= width);
#else
      read_chunk(at, src + (i64)max(t, 0) * stride, c, width, t >= 0);
#endif
    }
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_for() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// ---- walks tile by tile ----------------------------------------------------------------------------
// The N moving rows of a step: their tokens, -1 where no row of the tile meets one, bits of those that are there, and the
// mask of their block.
template <int N> struct __align__(16) Step { int tokens[N]; Words<N / 32> there; int mask; };

// The pairs of a warp's 16 * M rows in a step; `words`: those of a mask, if there is one, for the warp's first row.
template <int M, int N> struct Pairs {
  const Step<N>& step;
  const u32* words;
  int lane;
  // Whether all pairs of the tile are attended, as far as is known without its mask.
  __device__ __forceinline__ bool are_whole() const { return !step.mask && step.there.all(); }
  // Whether all of the warp's are, and any.
  __device__ __forceinline__ void judge(bool& all, bool& some) const {
    all = some = true;
    if (are_whole()) return;
    bool every = true, any = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) { const Words<N / 32> bits = of(m, h); every = every && bits.all(); any = any || bits.any(); }
    all = __all_sync(~0u, every);
    some = __any_sync(~0u, any);
  }
  // Bits of row 16 m + 8 h + lane / 4.
  __device__ __forceinline__ Words<N / 32> of(int m, int h) const {
    Words<N / 32> bits = step.there;
    if (step.mask)
#pragma unroll
      for (int i = 0; i < N / 32; i++) bits.w[i] &= words[(16 * m + 8 * h + lane / 4) * (N / 32) + i];
    return bits;
  }
};

// A moving row that is read in one go and judged later: its token, and the word whose bit says whether any row meets it.
struct Found {
  int token, bit;
  u32 word;
  __device__ __forceinline__ int attended() const { return word >> bit & 1 ? token : -1; }
};
// Moving row `at` of block `col` with mask `mask`. BLOCK: rows of a block.
template <int BLOCK> __device__ __forceinline__ Found find_moving(const int* order, i64 y_at, int n, const u32* live, int col, int mask, int at) {
  return {token_at(order, y_at, col * BLOCK + at, n), at % 32, mask ? live[(i64)mask * (BLOCK / 32) + at / 32] : ~0u};
}
// Called by the first N threads, each with the token of its row.
template <int N> __device__ __forceinline__ void tell(Step<N>& to, int token, int mask) {
  const u32 there = __ballot_sync(~0u, token >= 0);
  to.tokens[threadIdx.x] = token;
  if (threadIdx.x % 32 == 0) { to.there.w[threadIdx.x / 32] = there; to.mask = mask; }
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
__device__ __forceinline__ Found find_key(const Moving& m, int block_y, const u32* masks, const int* order, i64 at, int n_slots, int n) {
  const int slot = m.block * block_y + m.part;
  if (m.block < 0 || slot >= n_slots) return {-1, 0, 0};
  return {token_at(order, at, slot, n), m.part % 32, masks[(i64)m.mask * ((block_y + 31) / 32) + m.part / 32]};
}
