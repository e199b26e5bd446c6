// The square of the length of the longest row of an array, into place `place` of `longest`, which holds 0 or more before. A
// row whose square is no number does not count.
//
// Grid: (tiles of 64 rows, batch * n_heads). Threads: 128, 8 of them for a row at a time, 4 rows each.
constexpr int THREADS = 128, PARTS = 8, EACH = 4, ROWS_AT_ONCE = THREADS / PARTS;

// The sum of the squares of a thread's part of a row of `width` numbers.
__device__ __forceinline__ float square_of(const element* row, int part, int width) {
  float sum = 0.f;
#if WIDE
#pragma unroll
  for (int c = part; c < CHUNKS; c += PARTS) {
    if (c * CHUNK >= width) break;
    const uint4 w = *(const uint4*)(row + c * CHUNK);
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if BITS == 16
      const float2 x = unpack2(words[i]);
      sum = fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
#else
      const float x = __uint_as_float(words[i]);
      sum = fmaf(x, x, sum);
#endif
    }
  }
#else
  for (int col = part; col < width; col += PARTS) { const float x = widened(row[col]); sum = fmaf(x, x, sum); }
#endif
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
longest(Rows<const element> x, int batch, int n_heads, int n_rows, int width, u32* longest, int place, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  const element* rows = x.at(number / n_heads, number % n_heads);
  const int part = threadIdx.x % PARTS, first = blockIdx.x * ROWS_AT_ONCE * EACH + threadIdx.x / PARTS;
  float sums[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int row = first + i * ROWS_AT_ONCE;
    sums[i] = row < n_rows ? square_of(rows + row * x.token, part, width) : 0.f;
  }
  u32 most = 0;   // numbers that are not negative order as their bits do
#pragma unroll
  for (int i = 0; i < EACH; i++) {
#pragma unroll
    for (int d = 1; d < PARTS; d *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], d);
    if (sums[i] < POS_INF) most = max(most, __float_as_uint(sums[i]));
  }
  most = __reduce_max_sync(~0u, most);
  if (threadIdx.x % 32 == 0 && most > *(volatile u32*)(longest + place)) atomicMax(longest + place, most);
}
