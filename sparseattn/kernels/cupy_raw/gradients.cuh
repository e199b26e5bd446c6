// The gradient of a pair, behind steps.cuh in the files of the backward.
#ifndef SLICES
#define SLICES 1
#endif
#ifndef BIAS_GRAD
#define BIAS_GRAD 0
#endif
#ifndef ROW_SUMS
#define ROW_SUMS 0
#endif
// BIAS_GRAD: how gradients of values are summed
#define OWN_VALUE 1   // a pair has a value of its own
#define BY_VALUE 2    // whole numbers at the place of the value
#define BY_SUM 3      // whole numbers at the sum of codes, which labels are looked up by afterwards

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

// One pair: what is exponentiated (over `factor`), s, becomes the weight that multiplies y2 (1 / kept of it), dP in d becomes
// dS. No weight is above 1, whatever rounding says.
__device__ __forceinline__ void pair_gradient(float& s, float& d, float lse2, float delta, float factor, bool dropped, float kept) {
  const float p = ex2(fminf(fmaf(s, factor, -lse2), 0.f));
#if DROPOUT
  s = dropped ? 0.f : p;
  const float gap = fmaf(dropped ? 0.f : d, kept, -delta);
#else
  s = p;
  const float gap = d - delta;
#endif
  d = BIAS && p == 0.f ? 0.f : p * gap;   // a bias of -inf leaves a pair out, even where dP is NaN
}

#if BIAS_GRAD
// d becomes part of the gradient of a pair's value, in memory that all thread blocks share.
__device__ __forceinline__ void add_to_values(float d, const Options& o, const Shaping& s, const Side& x, const Side& y, void* dvalues, const double* grain) {
  const code_t at = BIAS_GRAD == BY_SUM ? code_of<true>(o, x, y) : place_of(o, s, x, y);
#if BIAS_GRAD == OWN_VALUE
  ((float*)dvalues)[s.sums + at] = d;
#else
  atomicAdd((u64*)dvalues + s.sums + at, (u64)__double2ll_rn(d * grain[0]));   // whole numbers: equal sums in any order
#endif
}
#endif
#if BIAS_GRAD == BY_SUM
// The sums of a tile by code, in shared memory: a number of grains is a high part of 22 bits times 2^16 and a low one, so
// neither part's sum over a tile passes 32 bits.
constexpr int PLACES = BITS == 16 ? 512 : 256;
struct TileSums {
  int high[PLACES], low[PLACES];
  __device__ __forceinline__ void add(int place, float d, float coarse) {   // coarse: grains of 2^16 to a unit of d
    const float whole = 12582912.f, x = d * coarse, high_part = x + whole, low_part = fmaf(x - (high_part - whole), 65536.f, whole);
    atomicAdd(high + place, __float_as_int(high_part) - 0x4B400000);
    atomicAdd(low + place, __float_as_int(low_part) - 0x4B400000);
  }
  // Adds those of the first `n` places to the call's, and forgets them.
  template <int THREADS> __device__ __forceinline__ void flush(int n, u64* to) {
    for (int i = threadIdx.x; i < n; i += THREADS) {
      const int h = high[i], l = low[i];
      if (h | l) { atomicAdd(to + i, (u64)((i64)h * 65536 + l)); high[i] = low[i] = 0; }
    }
  }
};
// The lowest and the highest code among a warp's sides with tokens.
__device__ __forceinline__ int2 codes_of_warp(int2 range) {
  return make_int2(__reduce_min_sync(~0u, range.x), __reduce_max_sync(~0u, range.y));
}
__device__ __forceinline__ int2 range_of(int code, int token) { return token < 0 ? make_int2(0x7fffffff, -0x7fffffff) : make_int2(code, code); }
#endif
#if ROW_SUMS
// The sum of a query's dS, which a sink's gradient needs, added to that of the call.
__device__ __forceinline__ void add_row_sum(float sum, u64* to, double grain) { atomicAdd(to, (u64)__double2ll_rn(sum * grain)); }
#endif
