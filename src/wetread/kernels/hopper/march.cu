// 3x3x3 convolution, stride 1, pad 1, channels last, for Hopper (sm_90a).
//
// A block computes OUT output channels (32 or 48) of a 16 x 16 column (H x W) and marches along D. The input plane of the
// column, with its halo of one voxel, lies in shared memory once and is read by the tensor cores at nine shifts
// (kh, kw): a shift is another start address of the matrix descriptor. One product has N = 3 * OUT: the outputs of
// the plane's three depth taps, which belong to the output planes p-1, p, p+1. After plane p, output plane p-1 is
// complete and leaves; the accumulators move up by one. So activations are loaded from L2 1.27 times instead of
// 27, and N = 96 or 144 asks less of shared memory than the tensor core takes to compute.
//
// All weights of the block stay in shared memory, or, with STREAM, arrive with each chunk of a plane. One warp loads planes through tensor maps (outside the tensor
// they read zero, which is the padding); two warpgroups compute 8 x 16 voxels each. Where a plane is one chunk, one
// warpgroup stores while the other computes; where it is several, each stores its last plane while the tensor cores
// work on the next (measured: each way is slower in the other case; 48 outputs leave no registers for it).
//
// With NORM the input is raw float16 of a convolution before: seven more warps normalise each plane in shared
// memory (a, b from the float64 sums), apply the leaky ReLU, write zero where the padding is, and round to the type
// of the product. Float16 stays where it arrived; 8-bit values go to a ring of their own.
//
// Set from outside, besides what common.cu needs: OUT, CHUNKS (chunks of both inputs), CHUNKS0 (of the first), STAGES, NORM, RAWS
// (raw planes in flight, 8 bits only), STREAM; and MARCH_PRODUCT, the instruction with its 3 * OUT / 2 registers.

#if STREAM && NORM
#error "weights that arrive with the planes and a norm on load are not made for one another"
#endif

constexpr int EDGE = 18;                                     // 16 outputs and a halo
constexpr int PLANE = EDGE * EDGE * S;                       // bytes that arrive
constexpr int STAGE = (PLANE + 1023) / 1024 * 1024;
constexpr int TAP = 3 * OUT * S;                             // bytes of one (kh, kw): 3 depth taps x OUT outputs
constexpr int WEIGHTS = STREAM ? 0 : 9 * CHUNKS * TAP;      // that stay
constexpr int HELD = STAGE + (STREAM ? 9 * TAP : 0);         // of one stage
constexpr int KSTEPS = S / 32;                               // one instruction takes 32 bytes of K
constexpr int CH = S / (KIND == 0 ? 2 : 1);                  // channels of a chunk
constexpr bool APART = NORM && KIND != 0;                    // raw planes have a ring of their own
constexpr int RAW_PLANE = EDGE * EDGE * CH * 2;
constexpr int RAW_STAGE = (RAW_PLANE + 1023) / 1024 * 1024;
constexpr int RAW_RING = APART ? RAWS : 0;
constexpr int WORKERS = NORM ? 7 : 0;                        // warps that normalise
constexpr int ACC = 3 * OUT / 2, DONE = OUT / 2;             // registers of 64 voxels: three planes, one
constexpr bool LATER = CHUNKS > 1 && OUT == 32;
constexpr bool EARLY = RESIDUAL && !LATER && OUT == 32;      // the residual is loaded while the products run
constexpr int FEW = !NORM ? 40 : OUT == 48 ? 48 : CHUNKS > 1 ? 56 : 80;  // registers of the warps that load, and of those
constexpr int MANY = !NORM ? 232 : OUT == 48 ? 208 : CHUNKS > 1 ? 200 : 176;  // that compute

__device__ __forceinline__ void wgmma(acc_t (&d)[ACC], u64 a, u64 b) { MARCH_PRODUCT; }

extern "C" __global__ void __launch_bounds__(NORM ? 512 : 384, 1)
march(const __grid_constant__ TensorMap x0, const __grid_constant__ TensorMap x1, const __grid_constant__ TensorMap wmap,
      int D, int H, int W, int tiles_h, int tiles_w, int blocks, int segments, int length,
      const __grid_constant__ Output to, const __grid_constant__ Source source) {
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
      load_rows(weights + i * TAP, &wmap, ready, 0, (cb * 9 * CHUNKS + i) * 3 * OUT);
  }
  after_previous();
  if (NORM) norm_table(source, table, CHUNKS * CH, n, (double)D * H * W);
  __syncthreads();

  if (warp >= 8) {                                            // the warps that load and normalise
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
    if (warp == 8 && lane == 0) {
      int stage = 0;
      u32 phase = 1;
      constexpr int RING = APART ? RAWS : STAGES;
      const u32 free = APART ? left : empty, arrived = NORM ? came : full, ring = APART ? raws : start;
      for (int p = 0; p < planes; p++)
#pragma unroll 1
        for (int c = 0; c < CHUNKS; c++) {
          barrier_wait(free + 8 * stage, phase);
          barrier_expect(arrived + 8 * stage, (APART ? RAW_PLANE : PLANE) + (STREAM ? 9 * TAP : 0));
          if (STREAM)
            for (int i = 0; i < 9; i++)
              load_rows(start + stage * HELD + STAGE + i * TAP, &wmap, full + 8 * stage, 0, ((cb * CHUNKS + c) * 9 + i) * 3 * OUT);
          const bool first = c < CHUNKS0;
          load_plane(ring + stage * (APART ? RAW_STAGE : HELD), first ? &x0 : &x1, arrived + 8 * stage,
                     (first ? c : c - CHUNKS0) * CH, w0 - 1, h0 - 1, d0 + p - 1, n);
          if (++stage == RING) { stage = 0; phase ^= 1; }
        }
    } else if (NORM && warp > 8) {
      constexpr int EACH = KIND == 0 ? 8 : 16;                // channels of a thread: 16 bytes of the operand
      constexpr int PARTS = CH / EACH;
      const int worker = threadIdx.x - 288, lane_part = worker % PARTS;
      const bool late = lane & 4;                             // reads its 32 raw bytes second half first: fewer conflicts
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
                         : "r"(table + 8 * (c * CH + lane_part * EACH + (KIND != 0 && late ? i ^ 8 : i))));
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
              const u32 from = APART ? raws + ring * RAW_STAGE + v * CH * 2 + lane_part * 32 + (late ? 16 : 0) : to;
              asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(in.x), "=r"(in.y), "=r"(in.z), "=r"(in.w) : "r"(from));
#if KIND == 0
              float f[8];
              normalise(in, ab, source.slope, f);
              out = make_uint4(half2(f[0], f[1]), half2(f[2], f[3]), half2(f[4], f[5]), half2(f[6], f[7]));
#else
              uint4 more;
              asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(more.x), "=r"(more.y), "=r"(more.z), "=r"(more.w) : "r"(from ^ 16));
              const u32 q0 = bytes(normalise2(in.x, a2[0], b2[0], slope2), normalise2(in.y, a2[1], b2[1], slope2));
              const u32 q1 = bytes(normalise2(in.z, a2[2], b2[2], slope2), normalise2(in.w, a2[3], b2[3], slope2));
              const u32 q2 = bytes(normalise2(more.x, a2[4], b2[4], slope2), normalise2(more.y, a2[5], b2[5], slope2));
              const u32 q3 = bytes(normalise2(more.z, a2[6], b2[6], slope2), normalise2(more.w, a2[7], b2[7], slope2));
              out = late ? make_uint4(q2, q3, q0, q1) : make_uint4(q0, q1, q2, q3);
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
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    const int group = warp / 4, part = warp % 4;
    acc_t acc[2][ACC];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < ACC; i++) acc[t][i] = 0;
    Epilogue<OUT, OUT == 32> epilogue(to, cb * OUT, lane);
    acc_t done[2][DONE] = {};                                 // a complete plane
    u32 given[2][2][OUT / 8] = {};                            // the residual of the plane that is stored next
    auto fetch = [&](int d) {
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int h = h0 + group * 8 + part * 2 + r, w = w0 + t * 8 + lane / 4;
          epilogue.fetch(to, n * to.rn + d * to.rd + h * to.rh + w * to.rw, h < H && w < W && d >= d0, given[t][r]);
        }
    };
    const bool whole = h0 + 16 <= H && w0 + 16 <= W;
    auto store = [&](int d) {
      if (RESIDUAL && !EARLY) fetch(d);
      if (d < d0) return;
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int h = h0 + group * 8 + part * 2 + r, w = w0 + t * 8 + lane / 4;
          const i64 at = n * to.yn + d * to.yd + h * to.yh + w * to.yw;
          const bool start = t == 0 && r == 0 && d == d0;
          if (whole) epilogue.row<true>(to, done[t], given[t][r], r, true, at, start);
          else epilogue.row<false>(to, done[t], given[t][r], r, h < H && w < W, at, start);
        }
    };
    barrier_wait(ready, 0);
    int stage = 0;
    u32 phase = 0;
    for (int p = 0; p < planes; p++) {
#if OUT == 48
#pragma unroll 1
#endif
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
        if (EARLY) fetch(d0 + p - 2);                         // one chunk: nothing below d0 is read
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        hold(acc[0]);
        hold(acc[1]);
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * stage);
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
      }
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < DONE; i++) {
          done[t][i] = acc[t][i];
          acc[t][i] = acc[t][i + DONE];
          acc[t][i + DONE] = acc[t][i + 2 * DONE];
          acc[t][i + 2 * DONE] = 0;
          if (LATER) asm volatile("" : HOLD(done[t][i])::"memory");  // copied here, not where it is read
        }
      if (!LATER && p >= 2) store(d0 + p - 2);
    }
    if (LATER) store(d0 + planes - 3);
    if (STATS) epilogue.flush(to, n);
  }
}
