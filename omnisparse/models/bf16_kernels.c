/* What a bfloat16 training step does between its products of matrices on a CPU: an LSTM
 * (`lstm_bf16.h`) and the nodes of a transducer's lattice; forward and backward, float32 inside.
 *
 * Lattice: an utterance has frames x nodes nodes; a node has `dim` activations and `vocab` logits.
 * Every function is compiled twice on x86-64, and the processor chooses.
 */
#include <stdint.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))
#define LANES 16 /* values summed side by side, so that a sum is a loop over vectors */
#define HIDDEN -1e30f

/* PUBLIC(f, declaration, arguments) makes omni_f of the inline f. */
#if defined(__x86_64__)
#define PUBLIC(name, declaration, arguments)                                                   \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) static void         \
        name##_wide declaration {                                                              \
        name arguments;                                                                        \
    }                                                                                          \
    void omni_##name declaration {                                                             \
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&         \
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))          \
            name##_wide arguments;                                                             \
        else                                                                                   \
            name arguments;                                                                    \
    }
#else
#define PUBLIC(name, declaration, arguments)                                                   \
    void omni_##name declaration { name arguments; }
#endif

ALWAYS float wide(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, ties to even; NaN stays NaN, which adding to its bits would not keep. */
ALWAYS uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7fc0u);
}

/* e^x within 2 units in the last place. The limits keep 2^n a normal number; NaN passes them. */
ALWAYS float power(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    /* Adding and taking away 1.5 * 2^23 rounds to a whole number, which then is in the low bits. */
    float shifted = x * 1.44269504f + 12582912.0f;
    float whole = shifted - 12582912.0f;
    float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127u) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return sum * scale;
}

/* ln x of a normal x, within 2 units in the last place near 1; NaN stays NaN. */
ALWAYS float logarithm(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t shifted = bits - 0x3f3504f3u; /* exponents change at the root of 1/2 */
    float exponent = (float)((int32_t)shifted >> 23);
    bits = (shifted & 0x7fffffu) + 0x3f3504f3u;
    float rest;
    memcpy(&rest, &bits, 4);
    rest -= 1.0f;
    float square = rest * rest, sum = 7.0376836292e-2f;
    sum = sum * rest - 1.1514610310e-1f;
    sum = sum * rest + 1.1676998740e-1f;
    sum = sum * rest - 1.2420140846e-1f;
    sum = sum * rest + 1.4249322787e-1f;
    sum = sum * rest - 1.6668057665e-1f;
    sum = sum * rest + 2.0000714765e-1f;
    sum = sum * rest - 2.4999993993e-1f;
    sum = sum * rest + 3.3333331174e-1f;
    sum = sum * rest * square + exponent * -2.12194440e-4f - 0.5f * square;
    sum = rest + sum + exponent * 0.693359375f;
    return x == x ? sum : x;
}

ALWAYS float sigmoid(float x) { return 1.0f / (1.0f + power(-x)); }
ALWAYS float tangent(float x) { return 1.0f - 2.0f / (1.0f + power(2.0f * x)); }

#include "lstm_bf16.h"

/* tanh(a + b) = 1 - 2 / (1 + e^2a e^2b) of every frame and node: [rows, frames, nodes, dim].
 * left: e^2a, [rows, frames, dim], rows `left_row` apart; right: e^2b, [rows, nodes, dim]. */
ALWAYS void join(int64_t rows, int64_t frames, int64_t nodes, int64_t dim,
                 const float *restrict left, int64_t left_row, const float *restrict right,
                 int64_t right_row, uint16_t *restrict hidden) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t frame = 0; frame < frames; frame++)
            for (int64_t node = 0; node < nodes; node++) {
                const float *a = left + row * left_row + frame * dim;
                const float *b = right + row * right_row + node * dim;
                for (int64_t i = 0; i < dim; i++)
                    hidden[i] = narrow(1.0f - 2.0f / (1.0f + a[i] * b[i]));
                hidden += dim;
            }
}

/* Gradients of a and b from that of the activations, added to left_grad and right_grad. */
ALWAYS void join_backward(int64_t rows, int64_t frames, int64_t nodes, int64_t dim,
                          const uint16_t *restrict grad, const uint16_t *restrict hidden,
                          float *restrict left_grad, int64_t left_row, float *restrict right_grad,
                          int64_t right_row) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t frame = 0; frame < frames; frame++)
            for (int64_t node = 0; node < nodes; node++) {
                float *a = left_grad + row * left_row + frame * dim;
                float *b = right_grad + row * right_row + node * dim;
                for (int64_t i = 0; i < dim; i++) {
                    float level = wide(hidden[i]);
                    float reached = wide(grad[i]) * (1.0f - level * level);
                    a[i] += reached;
                    b[i] += reached;
                }
                grad += dim;
                hidden += dim;
            }
}

/* Logits without label and blank, less their largest, exponentiated, in `others`; the largest is
 * returned and the sum written. `others` has room for a whole number of LANES. */
ALWAYS float exponentials(const uint16_t *restrict logits, int64_t vocab, int64_t label,
                          int64_t blank, float *restrict others, float *restrict sum) {
    int64_t length = (vocab + LANES - 1) / LANES * LANES;
    float most[LANES], sums[LANES];
    for (int64_t i = 0; i < vocab; i++) others[i] = wide(logits[i]);
    for (int64_t i = vocab; i < length; i++) others[i] = HIDDEN;
    others[label] = others[blank] = HIDDEN;
    for (int64_t k = 0; k < LANES; k++) most[k] = HIDDEN, sums[k] = 0.0f;
    for (int64_t i = 0; i < length; i += LANES)
        for (int64_t k = 0; k < LANES; k++) most[k] = others[i + k] > most[k] ? others[i + k] : most[k];
    float largest = most[0];
    for (int64_t k = 1; k < LANES; k++) largest = most[k] > largest ? most[k] : largest;
    for (int64_t i = 0; i < length; i += LANES)
        for (int64_t k = 0; k < LANES; k++) {
            others[i + k] = power(others[i + k] - largest);
            sums[k] += others[i + k];
        }
    float total = 0.0f;
    for (int64_t k = 0; k < LANES; k++) total += sums[k];
    *sum = total;
    return largest;
}

/* log (P(label), P(blank), P(anything else)) of every node: [rows, frames, nodes, 3].
 * labels: [rows, nodes], `blank` where a node has none; others: scratch, vocab + LANES values. */
ALWAYS void collapse(int64_t rows, int64_t frames, int64_t nodes, int64_t vocab,
                     const uint16_t *restrict logits, const int64_t *restrict labels,
                     int64_t blank, float least, float *restrict others,
                     float *restrict lattice) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t frame = 0; frame < frames; frame++)
            for (int64_t node = 0; node < nodes; node++) {
                int64_t at = labels[row * nodes + node];
                float sum;
                float largest = exponentials(logits, vocab, at, blank, others, &sum);
                float score[3] = {at == blank ? HIDDEN : wide(logits[at]), wide(logits[blank]),
                                  largest + logarithm(sum)};
                float top = score[0] > score[1] ? score[0] : score[1];
                top = score[2] > top ? score[2] : top;
                float total = 0.0f;
                for (int k = 0; k < 3; k++) total += power(score[k] - top);
                float norm = top + logarithm(total);
                for (int k = 0; k < 3; k++) {
                    float value = score[k] - norm;
                    lattice[k] = value < least ? least : value;
                }
                logits += vocab;
                lattice += 3;
            }
}

/* Gradient of the logits, in their place, from that of a node's three scores; also added to
 * bias_grad, [vocab]. */
ALWAYS void collapse_backward(int64_t rows, int64_t frames, int64_t nodes, int64_t vocab,
                              uint16_t *restrict logits, const int64_t *restrict labels,
                              int64_t blank, const float *restrict scores_grad,
                              float *restrict others, float *restrict bias_grad) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t frame = 0; frame < frames; frame++)
            for (int64_t node = 0; node < nodes; node++) {
                int64_t at = labels[row * nodes + node];
                float sum;
                exponentials(logits, vocab, at, blank, others, &sum);
                float share = scores_grad[2] / sum;
                for (int64_t i = 0; i < vocab; i++) others[i] *= share;
                others[at] = scores_grad[0];
                others[blank] = scores_grad[1]; /* last: the blank is the label of no label */
                for (int64_t i = 0; i < vocab; i++) {
                    logits[i] = narrow(others[i]);
                    bias_grad[i] += others[i];
                }
                logits += vocab;
                scores_grad += 3;
            }
}

PUBLIC(lstm_forward,
       (int64_t rows, int64_t cells, const uint16_t *sums, const float *before, float *after,
        uint16_t *output),
       (rows, cells, sums, before, after, output))

PUBLIC(lstm_backward,
       (int64_t rows, int64_t cells, const uint16_t *sums, const float *before,
        const float *after, const uint16_t *output_grad, float *cell_grad, uint16_t *sums_grad,
        uint16_t *output),
       (rows, cells, sums, before, after, output_grad, cell_grad, sums_grad, output))

PUBLIC(join,
       (int64_t rows, int64_t frames, int64_t nodes, int64_t dim, const float *left,
        int64_t left_row, const float *right, int64_t right_row, uint16_t *hidden),
       (rows, frames, nodes, dim, left, left_row, right, right_row, hidden))

PUBLIC(join_backward,
       (int64_t rows, int64_t frames, int64_t nodes, int64_t dim, const uint16_t *grad,
        const uint16_t *hidden, float *left_grad, int64_t left_row, float *right_grad,
        int64_t right_row),
       (rows, frames, nodes, dim, grad, hidden, left_grad, left_row, right_grad, right_row))

PUBLIC(collapse,
       (int64_t rows, int64_t frames, int64_t nodes, int64_t vocab, const uint16_t *logits,
        const int64_t *labels, int64_t blank, float least, float *others, float *lattice),
       (rows, frames, nodes, vocab, logits, labels, blank, least, others, lattice))

PUBLIC(collapse_backward,
       (int64_t rows, int64_t frames, int64_t nodes, int64_t vocab, uint16_t *logits,
        const int64_t *labels, int64_t blank, const float *scores_grad, float *others,
        float *bias_grad),
       (rows, frames, nodes, vocab, logits, labels, blank, scores_grad, others, bias_grad))
