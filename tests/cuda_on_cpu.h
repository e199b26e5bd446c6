// A thread block of a GPU on one core, in front of the text of a .cu file that cuda_on_cpu.py has rewritten. Its threads are
// contexts that take turns where they meet: at a barrier, or where the lanes of a warp exchange numbers. What they do is what
// instructions are documented to do; denormals are flushed. Races are not found.
#include <ucontext.h>
#if defined(__SSE__)
#include <xmmintrin.h>   // not all of immintrin.h, which takes half a second to read
#endif
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

using std::max;
using std::min;
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct Place { unsigned x, y, z; };
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static Place threadIdx, blockIdx, gridDim;
alignas(1024) static unsigned char tiles[227 * 1024];   // dynamic shared memory; other shared memory is static

// ---- threads --------------------------------------------------------------------------------------
static int n_threads, current;
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<std::vector<char>> stacks;
static std::vector<char> done;
static void (*body)();

static void pause_thread() {
  const int own = current;
  swapcontext(&contexts[own], &scheduler);
}
struct Meeting { int arrived; unsigned long round; };
static void meet_at(Meeting& m, int count) {
  const unsigned long round = m.round;
  if (++m.arrived == count) { m.arrived = 0; m.round++; }
  else while (m.round == round) pause_thread();
}
struct Warp { Meeting meeting; unsigned long rounds[32]; unsigned words[2][32][6]; };
static std::vector<Warp> warps;
static Meeting all_threads, named_barriers[16];

// Every lane of a warp gives n words and gets those of all.
static const unsigned (*exchange(const unsigned* own, int n))[6] {
  Warp& warp = warps[current / 32];
  unsigned (*words)[6] = warp.words[warp.rounds[current % 32]++ & 1];   // the other one is still being read
  memcpy(words[current % 32], own, 4 * n);
  meet_at(warp.meeting, 32);
  return words;
}
static void start_thread() { body(); done[current] = 1; }
static void run_block(int threads) {
  n_threads = threads;
  contexts.resize(threads);
  stacks.resize(threads, std::vector<char>(1 << 16));
  done.assign(threads, 0);
  warps.assign(threads / 32, Warp{});
  all_threads = {};
  for (Meeting& m : named_barriers) m = {};
  memset(tiles, 255, sizeof tiles);
  for (int i = 0; i < threads; i++) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks[i].data();
    contexts[i].uc_stack.ss_size = stacks[i].size();
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], start_thread, 0);
  }
  for (bool goes_on = true; goes_on;) {
    goes_on = false;
    for (int i = 0; i < threads; i++) {
      if (done[i]) continue;
      goes_on = true;
      current = threadIdx.x = i;
      swapcontext(&scheduler, &contexts[i]);
    }
  }
}
static unsigned flushing() {   // as CuPy compiles; gives what was set before
#if defined(__SSE__)
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  return before;
#else
  return 0;
#endif
}
static void restore(unsigned before) {
#if defined(__SSE__)
  _mm_setcsr(before);
#endif
}

// ---- functions of CUDA ----------------------------------------------------------------------------
template <class To, class From> static To same_bits(From x) { To y; memcpy(&y, &x, sizeof y); return y; }
static inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return same_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
static inline float __int_as_float(int x) { return same_bits<float>(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline long long __double2ll_rn(double x) { return llrint(x); }
template <class T> static T atomicAdd(T* to, T x) { const T before = *to; *to += x; return before; }
template <class T> static T atomicMax(T* to, T x) { const T before = *to; *to = max(before, x); return before; }
static inline unsigned __cvta_generic_to_shared(const void* p) { return (unsigned)(int)((const char*)p - (const char*)tiles); }
static inline char* shared_at(unsigned address) { return (char*)tiles + (int)address; }

template <class T> static T from_lane(T x, int lane) {
  unsigned own[2] = {};
  memcpy(own, &x, sizeof x);
  T other;
  memcpy(&other, exchange(own, 2)[lane], sizeof other);
  return other;
}
template <class T> static T __shfl_sync(unsigned, T x, int lane) { return from_lane(x, lane); }
template <class T> static T __shfl_xor_sync(unsigned, T x, int mask) { return from_lane(x, current % 32 ^ mask); }
template <class T> static T __shfl_down_sync(unsigned, T x, int lanes) { return from_lane(x, current % 32 + lanes < 32 ? current % 32 + lanes : current % 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class T, class Two> static T reduced(T x, Two two) {
  const unsigned own = same_bits<unsigned>(x);
  const unsigned (*all)[6] = exchange(&own, 1);
  T result = x;
  for (int i = 0; i < 32; i++) result = two(result, same_bits<T>(all[i][0]));
  return result;
}
template <class T> static T __reduce_max_sync(unsigned, T x) { return reduced(x, [](T a, T b) { return max(a, b); }); }
template <class T> static T __reduce_min_sync(unsigned, T x) { return reduced(x, [](T a, T b) { return min(a, b); }); }
static unsigned __ballot_sync(unsigned, int x) { return reduced<unsigned>(x ? 1u << current % 32 : 0u, [](unsigned a, unsigned b) { return a | b; }); }
static int __all_sync(unsigned mask, int x) { return __ballot_sync(mask, x) == ~0u; }
static int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
static void __syncwarp() { __ballot_sync(~0u, 1); }
static void __syncthreads() { meet_at(all_threads, n_threads); }
static int __syncthreads_and(int x) {
  static int result;
  __syncthreads();
  result = 1;
  __syncthreads();
  if (!x) result = 0;
  __syncthreads();
  return result;
}

// ---- numbers of 16 bits ---------------------------------------------------------------------------
static float from_half(unsigned h) {
  const unsigned sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
  if (!exponent) return sign ? -ldexpf(fraction, -24) : ldexpf(fraction, -24);
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
static unsigned to_half(float x) {
  const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
  const float size = fabsf(x);
  if (x != x) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | (unsigned)nearbyintf(size * 0x1p24f);
  return sign | ((bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
}
static float from_bfloat(unsigned h) { return __uint_as_float(h << 16); }
static unsigned to_bfloat(float x) {
  const unsigned bits = __float_as_uint(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// ---- instructions ---------------------------------------------------------------------------------
static void load_matrices(unsigned* r, unsigned address, bool transposed) {
  const unsigned (*all)[6] = exchange(&address, 1);
  const int lane = current % 32;
  for (int i = 0; i < 4; i++) {
    unsigned short two[2];
    for (int e = 0; e < 2; e++) {
      const int far = 2 * (lane % 4) + e, near = lane / 4, row = transposed ? far : near, column = transposed ? near : far;
      memcpy(two + e, shared_at(all[8 * i + row][0]) + 2 * column, 2);
    }
    r[i] = two[0] | (unsigned)two[1] << 16;
  }
  __syncwarp();   // nobody writes before all have read
}
static const int EXTRA = 2;   // what is said of compute capability 9.0; errors that a GPU made come out equal with 1 to 3, not with 0
static int exponent(double x) { unsigned long long bits; memcpy(&bits, &x, 8); return (int)(bits >> 52 & 0x7ff) - 1023; }
static double power(int n) { const unsigned long long bits = (unsigned long long)(n + 1023) << 52; double x; memcpy(&x, &bits, 8); return x; }
// c and products x[k] y[k] added as a GPU of compute capability 9.0 does: all in whole numbers of a unit that the largest of
// them (by its factors' exponents) has EXTRA bits more than a float's of, what is less cut off; then the sum is cut to a float.
static float cut_sum(float c, const double* x, const double* y, int n) {
  int most = c != 0 ? exponent(c) : -1000;
  double sum = c;
  for (int k = 0; k < n; k++) {
    sum += x[k] * y[k];
    if (x[k] != 0 && y[k] != 0) { const int e = exponent(x[k]) + exponent(y[k]); most = e > most ? e : most; }
  }
  if (!std::isfinite(sum) || most == -1000) return (float)sum;
  const double units = power(23 + EXTRA - most);
  long long total = (long long)(c * units);
  for (int k = 0; k < n; k++) total += (long long)(x[k] * y[k] * units);
  const double exact = (double)total / units;
  const float near = (float)exact;
  return std::fabs((double)near) > std::fabs(exact) ? std::nextafterf(near, 0.f) : near;
}
// d = a b + c of a warp: m16n8k8 of tf32, else m16n8k16.
static void multiply(float* d, const unsigned* a, unsigned b0, unsigned b1, const float* c, char kind) {
  const unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned (*all)[6] = exchange(own, 6);
  const int lane = current % 32, n = kind == 't' ? 8 : 16;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4, low = i / 2, column = 2 * (lane % 4) + i % 2;
    double x[16], y[16];
    for (int k = 0; k < n; k++) {
      const int at = kind == 't' ? k % 4 : k % 8 / 2, half = kind == 't' ? k / 4 : k / 8;
      const unsigned u = all[row * 4 + at][low + 2 * half], v = all[column * 4 + at][4 + half];
      if (kind == 't') { x[k] = __uint_as_float(u & 0xffffe000u); y[k] = __uint_as_float(v & 0xffffe000u); continue; }
      const unsigned p = u >> 16 * (k % 2) & 0xffff, q = v >> 16 * (k % 2) & 0xffff;
      x[k] = kind == 'h' ? from_half(p) : from_bfloat(p);
      y[k] = kind == 'h' ? from_half(q) : from_bfloat(q);
    }
    d[i] = cut_sum(c[i], x, y, n);
  }
}
