// What the backward needs of each query row: {lse log2(e), delta}. The first is as rounded as the factor unit * log2(e)
// that scores are multiplied with there (unit: the scale, or 1 where scores are shaped before). delta =
// sum(dout * out) - dlse, the derivative of the loss by a row's common factor (Dao, "FlashAttention-2", 2023,
// arXiv:2307.08691, section 3.1). A row that attends nothing (lse = -inf) gets {+inf, 0}, so that its weights are 0 in the
// backward. Without lse only delta counts; a sum that is no number is 0 then: what the lengths of rows are made of.
//
// Grid: enough blocks for all rows. 128 threads, PER_ROW (a power of two) of them a row, 16 bytes at a time: a thread
// block has 128 / PER_ROW rows, PER_ROW = the greatest power of two <= min(32, HEAD_DIM * BITS / 128).
// shared: 0
constexpr int PER_ROW = CHUNKS >= 32 ? 32 : CHUNKS >= 16 ? 16 : CHUNKS >= 8 ? 8 : 4;

// sum + x y; the out y of a query without keys is 0, whatever its dout x holds
__device__ __forceinline__ float plus(float sum, float x, float y) { return y == 0.f ? sum : fmaf(x, y, sum); }
__device__ __forceinline__ float dot_chunk(const element* x, const element* y, int c, int width) {
  float sum = 0.f;
#if WIDE
  if (c * CHUNK >= width) return 0.f;
  const uint4 u = *(const uint4*)(x + c * CHUNK), v = *(const uint4*)(y + c * CHUNK);
  const u32 a[4] = {u.x, u.y, u.z, u.w}, b[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
#if BITS == 16
    const float2 f = unpack2(a[i]), g = unpack2(b[i]);
    sum = plus(plus(sum, f.y, g.y), f.x, g.x);
#else
    sum = plus(sum, __uint_as_float(a[i]), __uint_as_float(b[i]));
#endif
  }
#else
#pragma unroll
  for (int i = 0; i < CHUNK; i++)
    if (c * CHUNK + i < width) sum = plus(sum, widened(x[c * CHUNK + i]), widened(y[c * CHUNK + i]));
#endif
  return sum;
}

extern "C" __global__ void __launch_bounds__(128)
row_dots(Rows<const element> dout, Rows<const element> out, const float* lse, const float* dlse, int batch, int n_heads, int n_queries, int v_dim,
         float unit, float2* stats) {
  const u32 row = blockIdx.x * (128 / PER_ROW) + threadIdx.x / PER_ROW;   // there are fewer than 2^31
  if (row >= (u32)batch * n_heads * n_queries) return;                    // groups of PER_ROW threads leave together
  const u32 place = row / n_queries, query = row % n_queries, b = place / n_heads, h = place % n_heads;
  const element *x = dout.at(b, h) + query * dout.token, *y = out.at(b, h) + query * out.token;
  float sum = 0.f;
#pragma unroll
  for (int c = 0; c < CHUNKS; c += PER_ROW)
    if (c + threadIdx.x % PER_ROW < CHUNKS) sum += dot_chunk(x, y, c + threadIdx.x % PER_ROW, v_dim);
  const u32 group = (PER_ROW == 32 ? ~0u : (1u << PER_ROW % 32) - 1) << threadIdx.x % 32 / PER_ROW * PER_ROW;
#pragma unroll
  for (int d = PER_ROW / 2; d; d /= 2) sum += __shfl_xor_sync(group, sum, d);
  if (threadIdx.x % PER_ROW) return;
  if (!lse) { stats[row] = make_float2(0.f, fabsf(sum) < POS_INF ? sum : 0.f); return; }
  const float e = lse[row];
  const float lse2 = (float)(e * ((double)(unit * LOG2E) / unit));
  stats[row] = e == NEG_INF ? make_float2(POS_INF, 0.f) : make_float2(lse2, dlse ? sum - dlse[row] : sum);
}
