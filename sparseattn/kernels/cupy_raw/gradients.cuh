// The gradient of a pair, behind steps.cuh in the files of the backward.
#ifndef SLICES
#define SLICES 1
#endif
#ifndef BIAS_GRAD
#define BIAS_GRAD 0
#endif

#if OUT32
typedef float result;
#else
typedef element result;
#endif

// One pair of a stationary row x and a moving row y: its score s becomes the weight that multiplies y2, dP in d becomes
// dS times the slope of the softcap. `there`: whether it is attended. `counts`: whether this thread is to add to the
// gradient of the bias.
__device__ __forceinline__ void pair_gradient(float& s, float& d, bool there, bool counts, float lse2, float delta, float scale, const Options& o,
                                              const Shaping& shaping, code_t x_code, int x_token, int y_token, void* dvalues, const double* grain) {
#if SHAPED
  float z = s * scale, slope = 1.f;
  if (o.softcap != 0.f) { const float u = tanh_of(z / o.softcap); z = o.softcap * u; slope = 1.f - u * u; }
#if BIAS
  i64 value = 0;
  if (there && x_token >= 0) { value = place_of(o, shaping, x_code, o.y_codes[y_token], x_token, y_token); z += shaping.values[value]; }
#endif
  const float exponent = fmaf(z, LOG2E, -lse2);
#else
  const float exponent = fmaf(s, scale * LOG2E, -lse2);
#endif
  const float p = there ? ex2(fminf(exponent, 0.f)) : 0.f;   // no weight is above 1, whatever rounding says
  s = p;
#if DROPOUT
  const u32 number = KV ? draw(draw(shaping.draw, y_token), x_token) : draw(draw(shaping.draw, x_token), y_token);
  const bool dropped = number <= o.limit;
  s = dropped ? 0.f : p * o.kept;
  d = dropped ? 0.f : d * o.kept;
#endif
  // also where dP is NaN: of a pair that is not there, or that a bias of -inf leaves out
  d = !there || (SHAPED && p == 0.f) ? 0.f : p * (d - delta);
#if BIAS_GRAD
  if (there && x_token >= 0 && counts) {
    const i64 at = shaping.values - o.values + value;
#if BIAS_GRAD == 1
    ((float*)dvalues)[at] = d;
#else
    atomicAdd((u64*)dvalues + at, (u64)__double2ll_rn(d * grain[0]));   // whole numbers: equal sums in any order
#endif
  }
#endif
#if SHAPED
  d = p == 0.f ? 0.f : d * slope;
#endif
}
