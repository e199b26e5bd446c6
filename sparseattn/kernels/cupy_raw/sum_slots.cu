// Rows of gradients that several work items computed in pieces: their float32 sums, added in the order of the pieces,
// so that results have equal bits every run. A group is one stationary tile: {row, first slot, number of slots, 0}.
//
// Grid: (most groups of a place, places, any number): blocks along z share a tile's rows. 128 threads, four columns at a
// time each. BY_HEADS = 1: row r of a tile is head x_head + r of the token at slot `row`; 0: the token at slot
// row * rows + r of head x_head.
// shared: 0
#ifndef BY_HEADS
#define BY_HEADS 0
#endif
#if OUT32
typedef float result;
#else
typedef element result;
#endif

extern "C" __global__ void __launch_bounds__(128)
sum_slots(const int4* groups, const int2* group_at, const int* places, const int* x_order, int width, int n_x, int rows, int adds, int n_slots,
          Rows<result> out, Rows<float> carry, const float* part, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  const int2 own = group_at[number];
  if ((int)blockIdx.x >= own.y) return;
  const int4 group = groups[own.x + blockIdx.x];
  const int* place = places + 8 * number;
  const int used = BY_HEADS ? place[3] : rows, fours = (width + 3) / 4;
  const i64 tile = (i64)rows * width;
  const float* first = part + ((i64)number * n_slots + group.y) * tile;
  for (int i = blockIdx.z * 128 + threadIdx.x; i < used * fours; i += gridDim.z * 128) {
    const int r = i / fours, col = i % fours * 4;
    const int token = token_at(x_order, place[6], BY_HEADS ? group.x : group.x * rows + r, n_x);
    if (token < 0) continue;
    const float* from = first + (i64)r * width + col;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    for (int s = 0; s < group.z; s++, from += tile) {
#if WIDE
      const float4 x = *(const float4*)from;
      sum[0] += x.x; sum[1] += x.y; sum[2] += x.z; sum[3] += x.w;
#else
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (col + j < width) sum[j] += from[j];
#endif
    }
    const int head = place[1] + (BY_HEADS ? r : 0);
    result* to = out.at(place[0], head) + token * out.token;
    const float* before = carry.at(place[0], head) + token * carry.token;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      if (adds) { const float2 old = read_pair_f32(before, col + j, width); sum[j] += old.x; sum[j + 1] += old.y; }
#if OUT32
      write_pair_f32(to, col + j, width, sum[j], sum[j + 1]);
#else
      write_pair(to, col + j, width, sum[j], sum[j + 1]);
#endif
    }
  }
}
