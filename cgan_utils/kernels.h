/* What every program that `compiler` writes begins with. All threads of the program run all of it;
   where it says "omp for", each takes a part of the loop, and then waits for the others. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The processor's registers: each holds LANES numbers, on which it computes at once. */
#if defined(__AVX512F__) /* 32 of them */
#define LANES 16
#define ROWS 12
#elif defined(__AVX__) /* 16 of them */
#define LANES 8
#define ROWS 6
#else
#define LANES 4
#define ROWS 6
#endif
#define COLUMNS (2 * LANES)
#define BLOCK 192 /* columns: a multiple of COLUMNS */
#define DEPTH 16384 /* of more, ROWS might not fit on a thread's stack */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

#if defined(__GLIBC__) && defined(__x86_64__) && !defined(__clang__)
__attribute__((simd("notinbranch"))) extern float expf(float); /* it has one for vectors too */
#endif

/* A function reads both numbers before it decides, so that a register can decide on all of its own;
   a choice written into the loop reads the gradient only where it needs it, one by one. */
static inline float threshold_backward(float gradient, float x, float limit) {
  return x <= limit ? 0 : gradient;
}

static inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }
static inline float hyperbolic_tangent(float x) { return 1 - 2 / (expf(2 * x) + 1); }

/* -log(1 - sigmoid(x)), finite for every x */
static inline float softplus(float x) { return (x > 0 ? x : 0) + log1pf(expf(-fabsf(x))); }

/* `rows` rows, at most ROWS, and COLUMNS columns of C = A B. The sums stay in registers. Each number
   of A, which may lie in memory in any way, meets a row of B, side by side, at a time. */
static inline void multiply_tile(int rows, int inner, const float *a, int a_down, int a_right,
                                 const float *b, int b_down, float *c, int c_down) {
  vector left[ROWS], right[ROWS];
  const float *row[ROWS];
  for (int i = 0; i < ROWS; i++) {
    left[i] = right[i] = (vector){0};
    row[i] = a + (i < rows ? i : 0) * a_down; /* sums of a row too many are not written */
  }
  for (int k = 0; k < inner; k++) {
    const vector *across = (const vector *)(b + k * b_down);
    __builtin_prefetch(b + (k + 16) * b_down); /* rows far apart: no processor foresees them */
    for (int i = 0; i < ROWS; i++) {
      left[i] += row[i][k * a_right] * across[0];
      right[i] += row[i][k * a_right] * across[1];
    }
  }
  for (int i = 0; i < rows; i++) {
    vector *across = (vector *)(c + i * c_down);
    across[0] = left[i];
    across[1] = right[i];
  }
}

/* C = A B, matrices of rows x inner and inner x columns, at least COLUMNS. The last COLUMNS may have
   some in common with those before: these are computed twice, and are the same. If it is a column
   of A whose numbers lie side by side, the cache cannot hold ROWS rows of it: they lie far apart,
   often by a power of two. So they are put together first, for up to BLOCK columns of B. */
static void multiply(int rows, int inner, int columns, const float *a, int a_down, int a_right,
                     const float *b, int b_down, float *c, int c_down) {
  int gather = a_down == 1 && inner <= DEPTH;
  float together[gather ? inner * ROWS : 1];
  _Pragma("omp for collapse(2)")
  for (int block = 0; block < columns; block += BLOCK)
    for (int i = 0; i < rows; i += ROWS) {
      int count = rows - i < ROWS ? rows - i : ROWS;
      int end = columns < block + BLOCK ? columns : block + BLOCK;
      const float *left = a + i * a_down;
      for (int k = 0; gather && k < inner; k++) {
        float *to = together + k * ROWS;
        const float *from = left + k * a_right;
        if (count == ROWS) /* a length known here takes no loop */
          memcpy(to, from, 4 * ROWS);
        else
          memcpy(to, from, 4 * count);
      }
      if (gather)
        left = together;
      for (int j = block; j < end; j += COLUMNS) {
        int first = j < columns - COLUMNS ? j : columns - COLUMNS;
        multiply_tile(count, inner, left, a_down, gather ? ROWS : a_right, b + first, b_down,
                      c + i * c_down + first, c_down);
      }
    }
}

/* One step of Adam: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1. */
static void adam(int size, float *weight, const float *gradient, float *mean, float *square,
                 float step, float rate, double beta1, double beta2, float epsilon) {
  float kept1 = beta1, kept2 = beta2, new1 = 1 - beta1, new2 = 1 - beta2;
  float stride = rate / (1 - pow(beta1, step)), unit = sqrt(1 - pow(beta2, step));
  _Pragma("omp for simd schedule(static)")
  for (int i = 0; i < size; i++) {
    mean[i] = kept1 * mean[i] + new1 * gradient[i];
    square[i] = kept2 * square[i] + new2 * gradient[i] * gradient[i];
    weight[i] -= stride * mean[i] / (sqrtf(square[i]) / unit + epsilon);
  }
}
