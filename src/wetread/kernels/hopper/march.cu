// 3x3x3 convolution, stride 1, pad 1, channels last, for Hopper (sm_90a).
//
// A block computes 32 output channels of a 16 x 16 column (H x W) and marches along D. The input plane of the
// column, with its halo of one voxel, lies in shared memory once and is read by the tensor cores at nine shifts
// (kh, kw): a shift is another start address of the matrix descriptor. One product has N = 96: the 32 outputs of
// the plane's three depth taps, which belong to the output planes p-1, p, p+1. After plane p, output plane p-1 is
// complete and leaves; the accumulators move up by one. So activations are loaded from L2 1.27 times instead of
// 27, and N = 96 asks less of shared memory than the tensor core takes to compute.
//
// All weights of the block stay in shared memory, or, with STREAM, arrive with each chunk of a plane. One warp loads planes through tensor maps (outside the tensor
// they read zero, which is the padding); two warpgroups compute 8 x 16 voxels each. Where a plane is one chunk, one
// warpgroup stores while the other computes; where it is several, each stores its last plane while the tensor cores
// work on the next (measured: each way is slower in the other case).
//
// With NORM the input is raw float16 of a convolution before: seven more warps normalise each plane in shared
// memory (a, b from the float64 sums), apply the leaky ReLU, write zero where the padding is, and round to the type
// of the product. Float16 stays where it arrived; 8-bit values go to a ring of their own.
//
// Set from outside: KIND (0 float16, 1 int8, 2 float8 e4m3), S (bytes of a voxel in a chunk of channels: 32, 64 or
// 128, the swizzle's width), CHUNKS (chunks of both inputs), CHUNKS0 (of the first), STAGES, SCALED, BIASED,
// LEAKY, STATS, NORM, RAWS (raw planes in
// flight, 8 bits only), STREAM; and WGMMA, the instruction with its 48 registers.

#if STREAM && NORM
#error "weights that arrive with the planes and a norm on load are not made for one another"
#endif

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

constexpr int EDGE = 18;                                     // 16 outputs and a halo
constexpr int PLANE = EDGE * EDGE * S;                       // bytes that arrive
constexpr int STAGE = (PLANE + 1023) / 1024 * 1024;
constexpr int TAP = 96 * S;                                  // bytes of one (kh, kw): 3 depth taps x 32 outputs
constexpr int WEIGHTS = STREAM ? 0 : 9 * CHUNKS * TAP;      // that stay
constexpr int HELD = STAGE + (STREAM ? 9 * TAP : 0);         // of one stage
constexpr int KSTEPS = S / 32;                               // one instruction takes 32 bytes of K
constexpr int CH = S / (KIND == 0 ? 2 : 1);                  // channels of a chunk
constexpr bool APART = NORM && KIND != 0;                    // raw planes have a ring of their own
constexpr int RAW_PLANE = EDGE * EDGE * CH * 2;
constexpr int RAW_STAGE = (RAW_PLANE + 1023) / 1024 * 1024;
constexpr int RAW_RING = APART ? RAWS : 0;
constexpr int WORKERS = NORM ? 7 : 0;                        // warps that normalise
constexpr u64 LAYOUT = S == 128 ? 1 : S == 64 ? 2 : 3;

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
// K-major operand: groups of eight rows of S bytes, `group` bytes apart
__device__ __forceinline__ u64 describe(u32 at, u32 group) {
  return (u64)((at & 0x3FFFF) >> 4) | (1ull << 16) | ((u64)(group >> 4) << 32) | (LAYOUT << 62);
}
__device__ __forceinline__ void wgmma(acc_t (&d)[48], u64 a, u64 b) { WGMMA; }

// keeps the compiler from moving uses of accumulators across the instructions that start and end a product
__device__ __forceinline__ void hold(acc_t (&d)[48]) {
#pragma unroll
  for (int i = 0; i < 48; i++) asm volatile("" : HOLD(d[i])::"memory");
}

__device__ __forceinline__ u32 half2(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
// four lanes hold four words each; afterwards lane j holds word j of lanes 0, 1, 2, 3
__device__ __forceinline__ void transpose(u32 (&q)[4], int lane) {
  bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    u32 got = __shfl_xor_sync(0xffffffffu, odd ? q[i] : q[i + 1], 1);
    if (odd) q[i] = got; else q[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    u32 got = __shfl_xor_sync(0xffffffffu, high ? q[i] : q[i + 2], 2);
    if (high) q[i] = got; else q[i + 2] = got;
  }
}

// what a norm on load reads
struct Source { const double* sums; const float* gamma; const float* beta; i64 sums_n, sums_r; int replicas; float eps, slope, inverse; };

// eight raw float16 values: a * x + b, leaky ReLU
__device__ __forceinline__ void normalise(const uint4& in, const float* ab, float slope, float (&v)[8]) {
  const u32 words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float lo, hi;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(lo), "=f"(hi) : "r"(words[i]));
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
  // 1536 leaves the nearest integer, ties to even, in the low byte of a float16
  return add2(min2(max2(max2(z, mul2(z, slope)), 0xD7F0D7F0u), 0x57F057F0u), 0x66006600u);
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

extern "C" __global__ void __launch_bounds__(NORM ? 512 : 384, 1)
march(const __grid_constant__ TensorMap x0, const __grid_constant__ TensorMap x1, const __grid_constant__ TensorMap wmap,
      unsigned short* __restrict__ y, const float* __restrict__ scale, const float* __restrict__ bias,
      double* __restrict__ sums, float slope, int D, int H, int W, int tiles_h, int tiles_w, int blocks, int segments,
      int length, i64 yn, i64 yd, i64 yh, i64 yw, i64 sums_n, i64 sums_r, int replicas, const Source source) {
  extern __shared__ unsigned char raw[];
  const u32 start = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
  const u32 weights = start + STAGES * HELD;
  const u32 raws = weights + (WEIGHTS + 1023) / 1024 * 1024;
  const u32 full = raws + RAW_RING * RAW_STAGE, empty = full + 8 * STAGES, ready = empty + 8 * STAGES;
  const u32 came = ready + 8, left = came + 8 * 16;           // raw planes: arrived, and read
  const u32 table = (left + 8 * 16 + 15) & ~15u;              // a, b of each input channel

  int id = blockIdx.x;
  const int cb = id % blocks; id /= blocks;
  const int w0 = id % tiles_w * 16; id /= tiles_w;
  const int h0 = id % tiles_h * 16; id /= tiles_h;
  const int d0 = id % segments * length;
  const int n = id / segments;
  const int planes = min(length, D - d0) + 2;

  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) { barrier_init(full + 8 * i, NORM ? WORKERS : 1); barrier_init(empty + 8 * i, 2); }
    for (int i = 0; i < 16; i++) { barrier_init(came + 8 * i, 1); barrier_init(left + 8 * i, WORKERS ? WORKERS : 1); }
    barrier_init(ready, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 256) {                                   // weights depend on no launch before
    barrier_expect(ready, WEIGHTS);
    for (int i = 0; i < (STREAM ? 0 : 9 * CHUNKS); i++)
      load_rows(weights + i * TAP, &wmap, ready, 0, (cb * 9 * CHUNKS + i) * 96);
  }
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
  if (NORM && threadIdx.x < CHUNKS * CH) {
    const int c = threadIdx.x;
    double total = 0, square = 0;
    for (int r = 0; r < source.replicas; r++) {
      const double* from = source.sums + r * source.sums_r + n * source.sums_n + c * 2;
      total += from[0];
      square += from[1];
    }
    const double voxels = (double)D * H * W, mean = total / voxels;
    const float variance = (float)(square / voxels - mean * mean);
    // the 8-bit scale goes into a and b: leaky ReLU keeps positive factors
    const float a = rsqrtf(fmaxf(variance, 0.f) + source.eps) * source.gamma[c];
    const float b = source.beta[c] - (float)mean * a;
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(table + 8 * c), "f"(a * source.inverse), "f"(b * source.inverse));
  }
  __syncthreads();

  if (warp >= 8) {                                            // the warps that load and normalise
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(!NORM ? 40 : CHUNKS > 1 ? 56 : 80));
    if (warp == 8 && lane == 0) {
      int stage = 0;
      u32 phase = 1;
      constexpr int RING = APART ? RAWS : STAGES;
      const u32 free = APART ? left : empty, arrived = NORM ? came : full, to = APART ? raws : start;
      for (int p = 0; p < planes; p++)
        for (int c = 0; c < CHUNKS; c++) {
          barrier_wait(free + 8 * stage, phase);
          barrier_expect(arrived + 8 * stage, (APART ? RAW_PLANE : PLANE) + (STREAM ? 9 * TAP : 0));
          if (STREAM)
            for (int i = 0; i < 9; i++)
              load_rows(start + stage * HELD + STAGE + i * TAP, &wmap, full + 8 * stage, 0, ((cb * CHUNKS + c) * 9 + i) * 96);
          const bool first = c < CHUNKS0;
          load_plane(to + stage * (APART ? RAW_STAGE : HELD), first ? &x0 : &x1, arrived + 8 * stage,
                     (first ? c : c - CHUNKS0) * CH, w0 - 1, h0 - 1, d0 + p - 1, n);
          if (++stage == RING) { stage = 0; phase ^= 1; }
        }
    } else if (NORM && warp > 8) {
      constexpr int EACH = KIND == 0 ? 8 : 16;                // channels of a thread: 16 bytes of the operand
      constexpr int PARTS = CH / EACH;
      const int worker = threadIdx.x - 288, lane_part = worker % PARTS;
      int stage = 0, ring = 0;
      u32 phase = 1, ring_phase = 0;
      for (int p = 0; p < planes; p++) {
        const int d = d0 + p - 1;
        for (int c = 0; c < CHUNKS; c++) {
#if KIND == 0
          float ab[2 * EACH];
#else
          u32 a2[8], b2[8];
          const u32 slope2 = half2(source.slope, source.slope);
#endif
#pragma unroll
          for (int i = 0; i < EACH; i += 2) {
            float f[4];
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(f[0]), "=f"(f[1]), "=f"(f[2]), "=f"(f[3])
                         : "r"(table + 8 * (c * CH + lane_part * EACH + i)));
#if KIND == 0
            ab[2 * i] = f[0]; ab[2 * i + 1] = f[1]; ab[2 * i + 2] = f[2]; ab[2 * i + 3] = f[3];
#else
            a2[i / 2] = half2(f[0], f[2]); b2[i / 2] = half2(f[1], f[3]);
#endif
          }
          barrier_wait(came + 8 * ring, ring_phase);
          if (APART) barrier_wait(empty + 8 * stage, phase);
          for (int v = worker / PARTS; v < EDGE * EDGE; v += WORKERS * 32 / PARTS) {
            const int h = h0 - 1 + v / EDGE, w = w0 - 1 + v % EDGE;
            const bool inside = d >= 0 && d < D && h >= 0 && h < H && w >= 0 && w < W;
            // the swizzle: 16-byte places are exchanged by the row's bits of the address
            const u32 at = start + stage * HELD + v * S;
            const u32 to = at + ((lane_part ^ (at >> 7 & (S / 16 - 1))) << 4);
            uint4 out = make_uint4(0, 0, 0, 0);
            if (inside) {
              uint4 in;
              const u32 from = APART ? raws + ring * RAW_STAGE + v * CH * 2 + lane_part * 32 : to;
              asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(in.x), "=r"(in.y), "=r"(in.z), "=r"(in.w) : "r"(from));
#if KIND == 0
              float f[8];
              normalise(in, ab, source.slope, f);
              out = make_uint4(half2(f[0], f[1]), half2(f[2], f[3]), half2(f[4], f[5]), half2(f[6], f[7]));
#else
              uint4 more;
              asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(more.x), "=r"(more.y), "=r"(more.z), "=r"(more.w) : "r"(from + 16));
              out.x = bytes(normalise2(in.x, a2[0], b2[0], slope2), normalise2(in.y, a2[1], b2[1], slope2));
              out.y = bytes(normalise2(in.z, a2[2], b2[2], slope2), normalise2(in.w, a2[3], b2[3], slope2));
              out.z = bytes(normalise2(more.x, a2[4], b2[4], slope2), normalise2(more.y, a2[5], b2[5], slope2));
              out.w = bytes(normalise2(more.z, a2[6], b2[6], slope2), normalise2(more.w, a2[7], b2[7], slope2));
#endif
            }
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(out.x), "r"(out.y), "r"(out.z), "r"(out.w) : "memory");
          }
          asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
          __syncwarp();
          if (lane == 0) {
            barrier_arrive(full + 8 * stage);
            if (APART) barrier_arrive(left + 8 * ring);
          }
          if (++stage == STAGES) { stage = 0; phase ^= 1; }
          if (++ring == (APART ? RAWS : STAGES)) { ring = 0; ring_phase ^= 1; }
        }
      }
    }
  } else {                                                    // the two that compute
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(!NORM ? 232 : CHUNKS > 1 ? 200 : 176));
    const int group = warp / 4, part = warp % 4;
    const int quad = lane % 4;
    acc_t acc[2][48];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < 48; i++) acc[t][i] = 0;
    float factor[8], addend[8], pivot[8], s1[8], s2[8];
    float count = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int channel = cb * 32 + (i / 2) * 8 + quad * 2 + i % 2;
      factor[i] = SCALED ? scale[channel] : 1.f;
      addend[i] = BIASED ? bias[channel] : 0.f;
      pivot[i] = s1[i] = s2[i] = 0.f;
    }
    constexpr bool LATER = CHUNKS > 1;
    acc_t done[2][16] = {};                                   // a complete plane
    auto store = [&](int d) {
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int h = h0 + group * 8 + part * 2 + r, w = w0 + t * 8 + lane / 4;
          const bool inside = h < H && w < W && d >= d0;
          float v[8];
#pragma unroll
          for (int i = 0; i < 8; i++) {
            v[i] = (float)done[t][(i / 2) * 4 + r * 2 + i % 2];
            if (SCALED) v[i] *= factor[i];
            if (BIASED) v[i] += addend[i];
            if (LEAKY) v[i] = v[i] > 0.f ? v[i] : v[i] * slope;
          }
          if (STATS) {                                      // about the thread's first value: nothing cancels
            if (t == 0 && r == 0) {
#pragma unroll
                for (int i = 0; i < 8; i++) pivot[i] = d == d0 ? v[i] : pivot[i];
              }
              const float one = inside ? 1.f : 0.f;
            count += one;
#pragma unroll
            for (int i = 0; i < 8; i++) {
              const float about = (v[i] - pivot[i]) * one;
              s1[i] += about;
              s2[i] = fmaf(about, about, s2[i]);
            }
          }
          u32 q[4];
#pragma unroll
          for (int i = 0; i < 4; i++) q[i] = half2(v[2 * i], v[2 * i + 1]);
          transpose(q, lane);
          if (inside)
            *reinterpret_cast<uint4*>(y + n * yn + d * yd + h * yh + w * yw + cb * 32 + quad * 8) =
                make_uint4(q[0], q[1], q[2], q[3]);
        }
    };
    barrier_wait(ready, 0);
    int stage = 0;
    u32 phase = 0;
    for (int p = 0; p < planes; p++) {
      for (int c = 0; c < CHUNKS; c++) {
        barrier_wait(full + 8 * stage, phase);
        hold(acc[0]);
        hold(acc[1]);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        const u64 a = describe(start + stage * HELD + group * 8 * EDGE * S, EDGE * S);
        const u64 b = describe(STREAM ? start + stage * HELD + STAGE : weights + c * 9 * TAP, 8 * S);
#pragma unroll
        for (int tap = 0; tap < 9; tap++)
#pragma unroll
          for (int k = 0; k < KSTEPS; k++)
#pragma unroll
            for (int t = 0; t < 2; t++)
              wgmma(acc[t], a + ((((tap / 3) * EDGE + tap % 3 + t * 8) * S + k * 32) >> 4), b + ((tap * TAP + k * 32) >> 4));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (LATER && c == 0) store(d0 + p - 3);               // complete since the plane before (none below d0)
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        hold(acc[0]);
        hold(acc[1]);
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * stage);
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
      }
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < 16; i++) {
          done[t][i] = acc[t][i];
          acc[t][i] = acc[t][i + 16];
          acc[t][i + 16] = acc[t][i + 32];
          acc[t][i + 32] = 0;
          if (LATER) asm volatile("" : HOLD(done[t][i])::"memory");  // copied here, not where it is read
        }
      if (!LATER && p >= 2) store(d0 + p - 2);
    }
    if (LATER) store(d0 + planes - 3);
    if (STATS) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        double k = pivot[i], m = count, a = s1[i];
        double total = m * k + a, square = (double)s2[i] + 2.0 * k * a + m * k * k;
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          total += __shfl_xor_sync(0xffffffffu, total, mask);
          square += __shfl_xor_sync(0xffffffffu, square, mask);
        }
        if (lane < 4) {
          const int channel = cb * 32 + (i / 2) * 8 + quad * 2 + i % 2;
          double* to = sums + blockIdx.x % replicas * sums_r + n * sums_n + channel * 2;
          atomicAdd(to, total);
          atomicAdd(to + 1, square);
        }
      }
    }
  }
}
