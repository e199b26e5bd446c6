// The columns of the largest scores of each row, rising, -1 behind them where there are fewer. Of equal scores the lower
// column wins; NaN and -inf are never chosen.
//
// A radix selection (Alabi et al., "Fast k-selection algorithms for graphics processing units", 2012, section 2.3): scores
// as whole numbers in their order, of which the least chosen one is found DIGIT bits at a time, from the top; then the row is
// walked once more in order. SCORE_BITS: 32 or 64. Grid: rows. Threads: THREADS.
typedef unsigned int u32;
typedef unsigned long long u64;

#if SCORE_BITS == 32
typedef u32 bits_t;
#else
typedef u64 bits_t;
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32, DIGIT = 11, BINS = 1 << DIGIT, OWN_BINS = BINS / THREADS;
constexpr bits_t SIGN = (bits_t)1 << (SCORE_BITS - 1), INFINITE = SCORE_BITS == 32 ? (bits_t)0x7f800000u : (bits_t)0x7ff0000000000000ull;

// The key of a score by its bits, 0 for what is never chosen. -0 and 0 are equal.
__device__ __forceinline__ bits_t key_of(bits_t bits) {
  if ((bits & ~SIGN) > INFINITE || bits == (SIGN | INFINITE)) return 0;
  if (bits == SIGN) bits = 0;
  return bits & SIGN ? ~bits : bits | SIGN;
}

extern "C" __global__ void __launch_bounds__(THREADS)
largest(const bits_t* scores, const int* limits, int n_rows, int n_cols, int n_selected, int* chosen) {
  __shared__ u32 bins[BINS];
  __shared__ u32 of_warps[2][WARPS];
  __shared__ u32 digit, above, size;   // found: its number, how many keys lie above it, how many have it
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const bits_t* row = scores + (u64)blockIdx.x * n_cols;
  int* to = chosen + (u64)blockIdx.x * n_selected;
  const int limit = limits[blockIdx.x % n_rows];
  auto key_at = [&](int col) { return key_of(row[col]); };

  // Chosen are all keys above `least` and the first `ties` of those that equal it.
  bits_t least = 0;
  u32 ties = 0, left = n_selected;
  for (int high = SCORE_BITS; high > 0;) {   // `least` shifted down by `high` is known: those bits of the n-th largest key
    const int shift = max(high - DIGIT, 0);
    const u32 mask = (1u << (high - shift)) - 1;
    for (int i = thread; i < BINS; i += THREADS) bins[i] = 0;
    __syncthreads();
    for (int col = thread; col < limit; col += THREADS) {
      const bits_t key = key_at(col);
      if (key && (high == SCORE_BITS || key >> high == least)) atomicAdd(&bins[(u32)(key >> shift) & mask], 1u);
    }
    __syncthreads();
    u32 own = 0;
#pragma unroll
    for (int i = 0; i < OWN_BINS; i++) own += bins[thread * OWN_BINS + i];
    u32 up = own;   // keys from the thread's bins on
#pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 next = __shfl_down_sync(~0u, up, d); if (lane + d < 32) up += next; }
    if (lane == 0) of_warps[0][warp] = up;
    if (thread == 0) digit = BINS;
    __syncthreads();
    for (int w = warp + 1; w < WARPS; w++) up += of_warps[0][w];
    u32 count = up - own;
    if (count < left && up >= left)
#pragma unroll
      for (int i = OWN_BINS - 1; i >= 0; i--) {
        const u32 n = bins[thread * OWN_BINS + i];
        if (count < left && count + n >= left) { digit = thread * OWN_BINS + i; above = count; size = n; }
        count += n;
      }
    __syncthreads();
    if (digit == BINS) { least = 0; break; }   // there are fewer: all
    left -= above;
    least = least << (high - shift) | digit;
    high = shift;
    ties = left;
    if (size == left) {   // all that have the digit; no key is 0
      least = max(least << high, (bits_t)1) - 1;
      ties = 0;
      break;
    }
  }

  u32 out = 0, met = 0;
  int turn = 0;
  for (int first = 0; first < limit && out < n_selected; first += THREADS, turn ^= 1) {
    const bits_t key = first + thread < limit ? key_at(first + thread) : 0;
    const bool over = key > least, equal = ties && key == least;
    const u32 overs = __ballot_sync(~0u, over), equals = __ballot_sync(~0u, equal), below = (1u << lane) - 1;
    if (lane == 0) of_warps[turn][warp] = __popc(overs) | __popc(equals) << 16;
    __syncthreads();
    u32 before = __popc(overs & below) | __popc(equals & below) << 16, all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) { const u32 n = of_warps[turn][w]; all += n; if (w < warp) before += n; }
    const u32 rank = met + (before >> 16), taken = min(met, ties);
    if (over || equal && rank < ties) to[out + (before & 0xffff) + min(rank, ties) - taken] = first + thread;
    met += all >> 16;
    out += (all & 0xffff) + min(met, ties) - taken;
  }
  for (int i = out + thread; i < n_selected; i += THREADS) to[i] = -1;
}
