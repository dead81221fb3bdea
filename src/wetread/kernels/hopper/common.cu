// What the kernels for Hopper share: barriers, tensor copies, matrix descriptors, norms on load, the epilogue.
//
// A kernel's text is this file and its own, compiled as one. Set from outside: KIND (type of the product: 0 float16,
// 1 int8, 2 float8 e4m3), S (bytes of a voxel in a chunk of channels: 32, 64 or 128, the swizzle's width), YKIND (type
// of the output: 0 float16, 1 int8, 2 float8 e4m3, 3 uint8), SCALED, BIASED, LEAKY, STATS, RESIDUAL.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct alignas(64) TensorMap { u64 opaque[16]; };

#if KIND == 1
typedef int acc_t;
#define HOLD(v) "+r"(v)
#else
typedef float acc_t;
#define HOLD(v) "+f"(v)
#endif

__device__ __forceinline__ void barrier_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra ready;\nbra again;\nready:\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void load_plane(u32 to, const TensorMap* map, u32 bar, int c, int w, int h, int d, int n) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(to), "l"(map), "r"(bar), "r"(c), "r"(w), "r"(h), "r"(d), "r"(n)
      : "memory");
}
__device__ __forceinline__ void load_rows(u32 to, const TensorMap* map, u32 bar, int c, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(c), "r"(row)
      : "memory");
}
// lets the next launch begin, and waits for the one before
__device__ __forceinline__ void after_previous() {
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
}
// K-major operand: groups of eight rows of S bytes, `group` bytes apart
__device__ __forceinline__ u64 describe(u32 at, u32 group) {
  constexpr u64 LAYOUT = S == 128 ? 1 : S == 64 ? 2 : 3;
  return (u64)((at & 0x3FFFF) >> 4) | (1ull << 16) | ((u64)(group >> 4) << 32) | (LAYOUT << 62);
}
// keeps the compiler from moving uses of accumulators across the instructions that start and end a product
template <int N>
__device__ __forceinline__ void hold(acc_t (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : HOLD(d[i])::"memory");
}

__device__ __forceinline__ u32 half2(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ void floats(u32 word, float& lo, float& hi) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(lo), "=f"(hi) : "r"(word));
}
// in one access each, which the compiler does not make of a uint4 on its own
__device__ __forceinline__ void store4(void* at, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void store2(void* at, u32 a, u32 b) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(a), "r"(b) : "memory");
}
__device__ __forceinline__ uint4 load4(const void* at) {
  uint4 r;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(at));
  return r;
}

// ---- the norm on load

// what it reads; a group norm averages over `group` neighbouring channels (1: instance norm)
struct Source {
  const double* sums; const float* gamma; const float* beta;
  i64 sums_n, sums_r;
  int replicas, group;
  float eps, slope, inverse;
};

// a, b of each channel into shared memory: value = a * x + b, times 1 / scale of an 8-bit operand, which may go into
// a and b because a leaky ReLU keeps positive factors
__device__ __forceinline__ void norm_table(const Source& source, u32 table, int channels, int n, double voxels) {
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const int from = c / source.group * source.group;
    double total = 0, square = 0;
    for (int r = 0; r < source.replicas; r++)
      for (int k = from; k < from + source.group; k++) {
        const double* at = source.sums + r * source.sums_r + n * source.sums_n + k * 2;
        total += at[0];
        square += at[1];
      }
    const double count = voxels * source.group, mean = total / count;
    const float variance = (float)(square / count - mean * mean);
    const float a = rsqrtf(fmaxf(variance, 0.f) + source.eps) * source.gamma[c];
    const float b = source.beta[c] - (float)mean * a;
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(table + 8 * c), "f"(a * source.inverse), "f"(b * source.inverse));
  }
}

// eight raw float16 values: a * x + b, leaky ReLU
__device__ __forceinline__ void normalise(const uint4& in, const float* ab, float slope, float (&v)[8]) {
  const u32 words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float lo, hi;
    floats(words[i], lo, hi);
    lo = fmaf(lo, ab[4 * i], ab[4 * i + 1]);
    hi = fmaf(hi, ab[4 * i + 2], ab[4 * i + 3]);
    v[2 * i] = fmaxf(lo, 0.f) + fminf(lo, 0.f) * slope;
    v[2 * i + 1] = fmaxf(hi, 0.f) + fminf(hi, 0.f) * slope;
  }
}
// the same for an 8-bit operand, two values an instruction: a float16 has digits enough for what is rounded to 8 bits
__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) { u32 r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
__device__ __forceinline__ u32 mul2(u32 a, u32 b) { u32 r; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 add2(u32 a, u32 b) { u32 r; asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 max2(u32 a, u32 b) { u32 r; asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 min2(u32 a, u32 b) { u32 r; asm("min.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 normalise2(u32 x, u32 a, u32 b, u32 slope) {
  const u32 z = fma2(x, a, b);
#if KIND == 1
  // -128 to 127; 1536 leaves the nearest integer, ties to even, in the low byte of a float16
  return add2(min2(max2(max2(z, mul2(z, slope)), 0xD800D800u), 0x57F057F0u), 0x66006600u);
#else
  return max2(z, mul2(z, slope));
#endif
}
__device__ __forceinline__ u32 bytes(u32 lo, u32 hi) {
#if KIND == 2
  u32 r;
  asm("{ .reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f16x2 l, %1; cvt.rn.satfinite.e4m3x2.f16x2 h, %2; mov.b32 %0, {l, h}; }"
      : "=r"(r) : "r"(lo), "r"(hi));
  return r;
#else
  return __byte_perm(lo, hi, 0x6420);
#endif
}

// ---- the epilogue: scale, bias, residual, leaky ReLU, sums, rounding, stores

// strides in elements; y's and the residual's of N, D, H, W
struct Output {
  void* y; const unsigned short* residual; const float* scale; const float* bias; double* sums;
  i64 yn, yd, yh, yw, rn, rd, rh, rw, sums_n, sums_r;
  int replicas;
  float slope, inverse;
};

// two values for the output, in one word: two halves, or two bytes in the low half
__device__ __forceinline__ u32 narrow(float lo, float hi, float inverse) {
#if YKIND == 0
  return half2(lo, hi);
#elif YKIND == 2
  unsigned short r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi * inverse), "f"(lo * inverse));
  return r;
#else
  constexpr float LOW = YKIND == 3 ? 0.f : -128.f, HIGH = YKIND == 3 ? 255.f : 127.f;
  // adding 1.5 * 2**23 leaves the nearest integer, ties to even, in the low bits
  lo = fminf(fmaxf(lo * inverse, LOW), HIGH) + 12582912.f;
  hi = fminf(fmaxf(hi * inverse, LOW), HIGH) + 12582912.f;
  return __byte_perm(__float_as_uint(lo), __float_as_uint(hi), 0x0040);
#endif
}

// What a thread of a warpgroup keeps while it stores accumulators of COLS channels. Weights are packed so that the
// columns which a thread has of a product are neighbouring channels (parts.order): eight of each 32, four of 16 left
// over. KEEP holds scale, bias and pivots in registers as they are; without, scale and bias are read where they are used
// and pivots lie two in a register.
template <int COLS, bool KEEP>
struct Epilogue {
  static constexpr int V = COLS / 4, WORDS = COLS / 8, FULL = COLS / 32;
  float factor[V], addend[V], s1[V], s2[V], pivot[KEEP ? V : 1];
  u32 pivots[KEEP ? 1 : V / 2];
  float count;
  int first, quad, lane;                                      // channel of the block, lanes

  // the i-th of the thread's channels
  __device__ __forceinline__ int channel(int i) const {
    return first + (i < FULL * 8 ? i / 8 * 32 + quad * 8 + i % 8 : FULL * 32 + quad * 4 + i % 8);
  }

  __device__ __forceinline__ Epilogue(const Output& to, int first_channel, int lane_) {
    first = first_channel;
    lane = lane_;
    quad = lane % 4;
    count = 0.f;
#pragma unroll
    for (int i = 0; i < V; i++) {
      factor[i] = KEEP && SCALED ? to.scale[channel(i)] : 1.f;
      addend[i] = KEEP && BIASED ? to.bias[channel(i)] : 0.f;
      s1[i] = s2[i] = 0.f;
      if (KEEP) pivot[i] = 0.f; else pivots[i / 2] = 0;
    }
  }
  __device__ __forceinline__ void centre(int i, float& lo, float& hi) const {
    if (KEEP) { lo = pivot[KEEP ? i : 0]; hi = pivot[KEEP ? i + 1 : 0]; }
    else floats(pivots[KEEP ? 0 : i / 2], lo, hi);
  }
  // the residual of one voxel, whose elements begin at `at`
  __device__ __forceinline__ void fetch(const Output& to, i64 at, bool inside, u32 (&q)[WORDS]) const {
    const unsigned short* from = to.residual + at + first;
#pragma unroll
    for (int g = 0; g < FULL; g++) {
      uint4 in = make_uint4(0, 0, 0, 0);
      if (inside) in = load4(from + g * 32 + quad * 8);
      q[g * 4] = in.x; q[g * 4 + 1] = in.y; q[g * 4 + 2] = in.z; q[g * 4 + 3] = in.w;
    }
    if constexpr (COLS % 32 == 16) {
      uint2 in = make_uint2(0, 0);
      if (inside) in = *reinterpret_cast<const uint2*>(from + FULL * 32 + quad * 4);
      q[FULL * 4] = in.x; q[FULL * 4 + 1] = in.y;
    }
  }
  __device__ __forceinline__ void write(const Output& to, i64 at, const u32 (&q)[WORDS]) const {
    at += first;
#pragma unroll
    for (int g = 0; g < FULL; g++) {
      const i64 c = at + g * 32 + quad * 8;
#if YKIND == 0
      store4((unsigned short*)to.y + c, q[g * 4], q[g * 4 + 1], q[g * 4 + 2], q[g * 4 + 3]);
#else
      store2((unsigned char*)to.y + c, __byte_perm(q[g * 4], q[g * 4 + 1], 0x5410), __byte_perm(q[g * 4 + 2], q[g * 4 + 3], 0x5410));
#endif
    }
    if constexpr (COLS % 32 == 16) {
      const i64 c = at + FULL * 32 + quad * 4;
#if YKIND == 0
      store2((unsigned short*)to.y + c, q[FULL * 4], q[FULL * 4 + 1]);
#else
      *reinterpret_cast<u32*>((unsigned char*)to.y + c) = __byte_perm(q[FULL * 4], q[FULL * 4 + 1], 0x5410);
#endif
    }
  }
  // Row r (0 or 1) of the thread's two voxels in the COLS / 2 accumulators: stores it at element `at` where it is
  // inside, with the residual `given`; `start`: the first values of all, about which the thread sums. ALL: every voxel
  // of the warp is inside.
  template <bool ALL, class T>
  __device__ __forceinline__ void row(const Output& to, const T (&done)[COLS / 2], const u32 (&given)[WORDS], int r, bool inside,
                                      i64 at, bool start) {
    float v[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] = (float)done[(i / 2) * 4 + r * 2 + i % 2];
      if (SCALED) v[i] *= KEEP ? factor[i] : to.scale[channel(i)];
      if (BIASED) v[i] += KEEP ? addend[i] : to.bias[channel(i)];
    }
    if (RESIDUAL) {
#pragma unroll
      for (int i = 0; i < WORDS; i++) {
        float lo, hi;
        floats(given[i], lo, hi);
        v[2 * i] += lo;
        v[2 * i + 1] += hi;
      }
    }
    if (LEAKY) {
#pragma unroll
      for (int i = 0; i < V; i++) v[i] = v[i] > 0.f ? v[i] : v[i] * to.slope;
    }
    if (STATS) {                                              // about the thread's first value: nothing cancels
      if (start) {
#pragma unroll
        for (int i = 0; i < V; i++)
          if (KEEP) pivot[KEEP ? i : 0] = v[i]; else if (i % 2 == 0) pivots[KEEP ? 0 : i / 2] = half2(v[i], v[i + 1]);
      }
      const float one = ALL || inside ? 1.f : 0.f;
      count += one;
#pragma unroll
      for (int i = 0; i < V; i += 2) {
        float lo, hi;
        centre(i, lo, hi);
        lo = v[i] - lo;
        hi = v[i + 1] - hi;
        if (!ALL) { lo *= one; hi *= one; }
        s1[i] += lo;
        s1[i + 1] += hi;
        s2[i] = fmaf(lo, lo, s2[i]);
        s2[i + 1] = fmaf(hi, hi, s2[i + 1]);
      }
    }
    u32 q[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) q[i] = narrow(v[2 * i], v[2 * i + 1], to.inverse);
    if (ALL || inside) write(to, at, q);
  }
  // adds the thread's sums, moved to the origin in float64
  __device__ __forceinline__ void flush(const Output& to, int n) {
#pragma unroll
    for (int i = 0; i < V; i++) {
      float lo, hi;
      centre(i / 2 * 2, lo, hi);
      const double k = i % 2 ? hi : lo, m = count, a = s1[i];
      double total = m * k + a, square = (double)s2[i] + 2.0 * k * a + m * k * k;
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        total += __shfl_xor_sync(0xffffffffu, total, mask);
        square += __shfl_xor_sync(0xffffffffu, square, mask);
      }
      if (lane < 4) {
        double* at = to.sums + blockIdx.x % to.replicas * to.sums_r + n * to.sums_n + channel(i) * 2;
        atomicAdd(at, total);
        atomicAdd(at + 1, square);
      }
    }
  }
};
