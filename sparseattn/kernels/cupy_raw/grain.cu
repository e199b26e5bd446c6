// Grains to a unit, in whole numbers of which gradients are summed. No weights of a row add up to more than 1, so neither dP
// nor delta, nor their sum over a row, exceeds a bound made of the longest rows of dout and v, whose squares are given, and
// of the largest dlse. The bound has at most 2^bits grains.
//
// Grid: one thread block. Threads: 128.
constexpr int THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS)
grain(const float* longest, const float* dlse, int n_dlse, float kept, int bits, double* grain) {
  __shared__ float shares[THREADS / 32];
  float most = 0.f;
  if (dlse)
    for (int i = threadIdx.x; i < n_dlse; i += THREADS) most = fmaxf(most, fabsf(dlse[i]));
#pragma unroll
  for (int d = 1; d < 32; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
  if (threadIdx.x % 32 == 0) shares[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < THREADS / 32; i++) most = fmaxf(most, shares[i]);
  const double bound = 2. * kept * sqrt((double)longest[0] * longest[1]) + most + 1e-25;
  grain[0] = exp2(bits - ceil(log2(bound)));
}
