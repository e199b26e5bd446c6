// The gradient of a pair, behind steps.cuh in the files of the backward.
#ifndef SLICES
#define SLICES 1
#endif
#ifndef BIAS_GRAD
#define BIAS_GRAD 0
#endif
#ifndef KV
#define KV 0
#endif
#ifndef OUT32
#define OUT32 0
#endif
#ifndef ROW_SUMS
#define ROW_SUMS 0
#endif
// BIAS_GRAD: how gradients of values are summed, the last one in the walk over queries, the others in that over keys; in tiles
// BY_VALUE of an array in tile_values.cu
#define OWN_VALUE 1   // a pair has a value of its own
#define BY_VALUE 2    // whole numbers at the place of the value
#define BY_SUM 3      // whole numbers at the sum of codes

#if OUT32
typedef float result;
#else
typedef element result;
#endif

__device__ __forceinline__ Side stationary_side(const Shaping& s, const code_t* codes, i64 step, int token) {
  return KV ? key_side(codes, step, token) : query_side(s, codes, step, token);
}
__device__ __forceinline__ Side moving_side(const Shaping& s, const code_t* codes, i64 step, int token) {
  return KV ? query_side(s, codes, step, token) : key_side(codes, step, token);
}

// The weight of an exponent, which is at most 0. In float32 it is off by at most one unit in the last place, the instruction by
// two: 2^n times a polynomial on [-log(2) / 2, log(2) / 2]. What is below 2^-126 is subnormal and counts as 0 later on.
__device__ __forceinline__ float weight(float x) {
#if BITS == 32
  const float near = fmaxf(x, -87.5f), shifted = fmaf(near, LOG2E, 12582912.f), n = shifted - 12582912.f;
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, near));
  const float y = fmaf(fmaf(fmaf(fmaf(0.0013946594f, r, 0.0083691515f), r, 0.0416662619f), r, 0.166665167f), r, 0.5f);
  return __uint_as_float(__float_as_uint(fmaf(y * r, r, r) + 1.f) + (__float_as_uint(shifted) << 23));
#else
  return ex2(x);
#endif
}
// What is exponentiated (over `factor`) becomes the weight of a pair. None is above 1, whatever rounding says.
__device__ __forceinline__ void weigh(float& s, float lse, float factor) { s = weight(fminf(fmaf(s, factor, -lse), 0.f)); }
// The weight in s becomes what multiplies y2 (1 / kept of it), dP in d becomes dS.
__device__ __forceinline__ void pair_gradient(float& s, float& d, float delta, bool dropped, float kept) {
#if DROPOUT
  d = s * fmaf(dropped ? 0.f : d, kept, -delta);
  s = dropped ? 0.f : s;
#else
  d = s * (d - delta);
#endif
}

#if BIAS_GRAD
// d becomes part of the gradient of a pair's value, in memory that all thread blocks share.
__device__ __forceinline__ void add_to_values(float d, const Options& o, const Shaping& s, const Side& x, const Side& y, void* dvalues, const double* grain) {
  const code_t at = BIAS_GRAD == BY_SUM ? held(o, x.code + y.code) : place_of(o, s, x, y);
#if BIAS_GRAD == OWN_VALUE
  ((float*)dvalues)[s.sums + at] = d;
#else
  atomicAdd((u64*)dvalues + s.sums + at, (u64)__double2ll_rn(d * grain[0]));   // whole numbers: equal sums in any order
#endif
}
#endif
#if BIAS_GRAD == BY_SUM && defined(PLACES)
// The sums of codes of a tile lie close together. Where they are at most PLACES, gradients of a few steps are summed by place
// first: the sum of codes less the lowest.
__device__ __forceinline__ int2 range_of(int code, int token) { return token < 0 ? make_int2(0x7fffffff, -0x7fffffff) : make_int2(code, code); }
__device__ __forceinline__ int2 joined(int2 a, int2 b) { return make_int2(min(a.x, b.x), max(a.y, b.y)); }
__device__ __forceinline__ int2 joined_by_warp(int2 a) { return make_int2(__reduce_min_sync(~0u, a.x), __reduce_max_sync(~0u, a.y)); }
template <int N> __device__ __forceinline__ int2 joined_all(const int2 (&ranges)[N]) {
  int2 all = ranges[0];
#pragma unroll
  for (int i = 1; i < N; i++) all = joined(all, ranges[i]);
  return all;
}
// What the sums of two ranges of codes cover.
struct Span {
  int first, places, steps;
  __device__ __forceinline__ Span() : first(0), places(0), steps(1) {}
  __device__ __forceinline__ Span(int2 x, int2 y) : Span() {
    if (x.x <= x.y && y.x <= y.y) { first = x.x + y.x; places = x.y + y.y - first + 1; }
  }
  __device__ __forceinline__ bool fits() const { return places <= PLACES; }
  // Whether the next step's is added to it: what lies ahead, as far as there are places.
  __device__ __forceinline__ bool takes(const Span& next) {
    const int needed = next.first - first + next.places;
    if (!places || steps == 4 || next.first < first || needed > PLACES) return false;
    places = max(places, needed);
    steps++;
    return true;
  }
  // Whether all are held to an end that nobody asks for.
  __device__ __forceinline__ bool outside(const Options& o) const { return BIAS == BY_TABLE && (first >= o.high || first + places - 1 <= o.low); }
  // Where the word of a sum's place stands among PLACES words in shared memory from `words` on; some place for the codes of
  // absent rows.
  __device__ __forceinline__ u32 word_at(u32 words, int x_code, int y_code) const {
    return min(words + 4 * (x_code - first) + 4 * y_code, words + 4 * (PLACES - 1));
  }
};
// Sums by place in shared memory: a number of grains is a high part of 20 bits times 2^16 and a low one of 16. A row's high
// parts add up to no more than one may have, so neither sum over a tile and four steps passes 32 bits, nor the high part of four
// numbers 22.
struct Sums {
  int high[PLACES], low[PLACES];
  // `at`: the word of a place in `high`; coarse: grains of 2^16 to a unit of d
  static __device__ __forceinline__ void add(u32 at, float d, float coarse) {
    const float whole = 12582912.f, x = d * coarse, high_part = x + whole, low_part = fmaf(x - (high_part - whole), 65536.f, whole);
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(at), "r"(__float_as_int(high_part) - 0x4B400000) : "memory");
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(at + 4 * PLACES), "r"(__float_as_int(low_part) - 0x4B400000) : "memory");
  }
  // Adds a thread's gradients. Where tokens follow each other, the pair 8 rows and 8 columns on has the same sum of codes,
  // so those are added at once.
  template <int M, int N> __device__ __forceinline__ void add_tile(const float (&d)[M][N / 2], const Side (&rows)[M][2], const Sides<N>& columns, const Span& span, float coarse, int lane) {
    const u32 words = shared_address(high);
    const Slants<M, N> slants(rows, columns, lane);
    if (slants.there) {
      slants.each([&](int slant, int first, int i) {
        float sum = 0.f;
#pragma unroll
        for (int g = first; g < 2 * M && g + slant < N / 8; g++) sum += d[g / 2][4 * (g + slant) + 2 * (g % 2) + i];
        add(span.word_at(words, rows[first / 2][first % 2].code, slants.codes[first + slant][i]), sum, coarse);
      });
    } else {
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < N / 2; i++) add(span.word_at(words, rows[m][i / 2 % 2].code, slants.codes[i / 4][i % 2]), d[m][i], coarse);
    }
  }
  // Adds those of a span to the call's, and forgets them.
  template <int THREADS> __device__ __forceinline__ void flush(const Options& o, const Span& span, u64* to) {
    const int least = held(o, span.first);
    const bool at_one = least == held(o, span.first + span.places - 1);   // far pairs are all held to one end
    i64 total = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < span.places; i += THREADS) {
      const i64 sum = (i64)high[i] * 65536 + low[i];
      high[i] = low[i] = 0;
      if (at_one) total += sum;
      else if (sum) atomicAdd(to + held(o, span.first + i), (u64)sum);
    }
    if (!at_one || !span.places) return;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) total += __shfl_xor_sync(~0u, total, d);
    if (threadIdx.x % 32 == 0 && total) atomicAdd(to + least, (u64)total);
  }
};
#endif
#if ROW_SUMS
// The sum of a query's dS, which a sink's gradient needs, added to that of the call where the row is `there`; of it each
// thread of a quad has a part. Called by whole warps.
__device__ __forceinline__ void add_row_sum(float part, bool there, u64* to, double grain) {
  part += __shfl_xor_sync(~0u, part, 1);
  part += __shfl_xor_sync(~0u, part, 2);
  if (threadIdx.x % 4 == 0 && there) atomicAdd(to, (u64)__double2ll_rn(part * grain));
}
#endif
