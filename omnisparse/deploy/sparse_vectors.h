/* Vectors of eight and what is computed with them: sigmoid and tanh, gates, norms, filterbanks.
 *
 * Included by sparse_kernels.c once for each instruction set, because clang lets no function call one
 * that passes vectors and is compiled for another. Names end in `_plain`, `_avx2`, ...; the macros of
 * sparse_kernels.c choose that of the present OMNI_SET.
 */

TARGET INLINE v8 splat(float x) { return (v8){x, x, x, x, x, x, x, x}; }
TARGET INLINE v8 get8(const float *p) {
    v8 v;
    memcpy(&v, p, 32);
    return v;
}
TARGET INLINE v16 get16(const float *p) {
    v16 v;
    memcpy(&v, p, 64);
    return v;
}
TARGET INLINE void put8(float *p, v8 v) { memcpy(p, &v, 32); }
TARGET INLINE float sum8(v8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/* ---- sigmoid and tanh, to two units in the last place of 1 ---- */

TARGET INLINE v8 choose(i8x where, v8 yes, v8 no) {
    return (v8)((where & (i8x)yes) | (~where & (i8x)no));
}
TARGET INLINE v8 exp8(v8 x) {
    const v8 magic = splat(12582912.0f);
    v8 n, r, p;
    i8x bits;
    x = choose(x > splat(87.0f), splat(87.0f), x);
    x = choose(x < splat(-87.0f), splat(-87.0f), x);
    n = (x * splat(1.44269504f) + magic) - magic;
    r = (x - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);
    p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    bits = (__builtin_convertvector(n, i8x) + 127) << 23;
    return p * (v8)bits;
}
TARGET INLINE v8 sigmoid8(v8 x) { return splat(1.0f) / (splat(1.0f) + exp8(-x)); }
TARGET INLINE v8 tanh8(v8 x) { return splat(1.0f) - splat(2.0f) / (exp8(x + x) + splat(1.0f)); }

TARGET INLINE void gates_any(int64_t cells, const float *gates, float *cell, float *out) {
    int64_t at, lane, left;
    for (at = 0; at < cells; at += 8) {
        float part[5][8] = {{0}};
        v8 admit, forget, candidate, emit, c, o;
        left = cells - at < 8 ? cells - at : 8;
        if (left == 8) {
            admit = get8(gates + at), forget = get8(gates + cells + at);
            candidate = get8(gates + 2 * cells + at), emit = get8(gates + 3 * cells + at);
            c = get8(cell + at);
        } else {
            for (lane = 0; lane < left; lane++) {
                int64_t gate;
                for (gate = 0; gate < 4; gate++) part[gate][lane] = gates[gate * cells + at + lane];
                part[4][lane] = cell[at + lane];
            }
            admit = get8(part[0]), forget = get8(part[1]), candidate = get8(part[2]);
            emit = get8(part[3]), c = get8(part[4]);
        }
        c = sigmoid8(forget) * c + sigmoid8(admit) * tanh8(candidate);
        o = sigmoid8(emit) * tanh8(c);
        if (left == 8) {
            put8(cell + at, c);
            put8(out + at, o);
        } else {
            for (lane = 0; lane < left; lane++) cell[at + lane] = c[lane], out[at + lane] = o[lane];
        }
    }
}

TARGET INLINE void norm_any(int64_t dim, const float *x, const float *gain, const float *bias, float *y) {
    v8 total = splat(0.0f), square = splat(0.0f);
    float sum = 0.0f, squares = 0.0f, mean, scale;
    int64_t at;
    for (at = 0; at + 8 <= dim; at += 8) total += get8(x + at);
    sum = sum8(total);
    for (; at < dim; at++) sum += x[at];
    mean = sum / (float)dim;
    for (at = 0; at + 8 <= dim; at += 8) {
        v8 d = get8(x + at) - splat(mean);
        square += d * d;
    }
    squares = sum8(square);
    for (; at < dim; at++) squares += (x[at] - mean) * (x[at] - mean);
    scale = 1.0f / __builtin_sqrtf(squares / (float)dim + 1e-5f);
    for (at = 0; at < dim; at++) y[at] = (x[at] - mean) * scale * gain[at] + bias[at];
}

TARGET INLINE v8 log8(v8 x) { /* of normal numbers above zero */
    i8x bits = (i8x)x, exponent = ((bits >> 23) & 255) - 126, low;
    v8 m = (v8)((bits & 0x7fffff) | 0x3f000000), square, p, e; /* in [0.5, 1) */
    low = m < splat(0.70710678f);
    m = m + choose(low, m, splat(0.0f)) - splat(1.0f);
    e = __builtin_convertvector(exponent + low, v8);
    square = m * m;
    p = splat(7.0376836292e-2f);
    p = p * m - splat(1.1514610310e-1f);
    p = p * m + splat(1.1676998740e-1f);
    p = p * m - splat(1.2420140846e-1f);
    p = p * m + splat(1.4249322787e-1f);
    p = p * m - splat(1.6668057665e-1f);
    p = p * m + splat(2.0000714765e-1f);
    p = p * m - splat(2.4999993993e-1f);
    p = p * m + splat(3.3333331174e-1f);
    p = p * m * square - e * splat(2.12194440e-4f) - splat(0.5f) * square;
    return m + p + e * splat(0.693359375f);
}

/* Eight frames at once, a lane each; those beyond `left` repeat the last. work: 6 half v8. */
TARGET INLINE void fbank_any(const filterbank *f, int64_t left, const float *samples, v8 *work, float *out) {
    int64_t half = f->half, length = f->length, lane, t, k, q, span, stride, bin;
    v8 *from = work, *to = work + 2 * half, *power = work + 4 * half, *swap;
    float *values = (float *)work;
    for (lane = 0; lane < 8; lane++) {
        const float *frame = samples + f->shift * (lane < left ? lane : left - 1);
        v8 total = splat(0.0f);
        float sum, before;
        for (t = 0; t + 8 <= length; t += 8) total += get8(frame + t);
        for (sum = sum8(total); t < length; t++) sum += frame[t];
        sum /= (float)length;
        before = frame[0] - sum;
        for (t = 0; t < length; t++) {
            float now = frame[t] - sum;
            values[t * 8 + lane] = (now - 0.97f * before) * f->window[t];
            before = now;
        }
    }
    for (t = length; t < 2 * half; t++) from[t] = splat(0.0f);
    for (span = half / 2, stride = 1; span; span /= 2, stride *= 2) { /* Stockham's transform */
        for (k = 0; k < span; k++) {
            float re = f->turns[4 * stride * k], im = f->turns[4 * stride * k + 1];
            for (q = 0; q < stride; q++) {
                const v8 *a = from + 2 * (q + stride * k), *b = a + 2 * stride * span;
                v8 *y = to + 2 * (q + 2 * stride * k), *z = y + 2 * stride;
                v8 r = a[0] - b[0], i = a[1] - b[1];
                y[0] = a[0] + b[0], y[1] = a[1] + b[1];
                z[0] = r * re - i * im, z[1] = r * im + i * re;
            }
        }
        swap = from, from = to, to = swap;
    }
    for (k = 0; k < half; k++) { /* of the even and odd samples that were one complex number */
        const v8 *a = from + 2 * k, *b = from + 2 * ((half - k) % half);
        float re = f->turns[2 * k], im = f->turns[2 * k + 1];
        v8 er = a[0] + b[0], ei = a[1] - b[1], or = a[1] + b[1], oi = b[0] - a[0];
        v8 r = er + or * re - oi * im, i = ei + or * im + oi * re;
        power[k] = (r * r + i * i) * 0.25f;
    }
    const float *weight = f->filters;
    for (bin = 0; bin < f->bins; bin++) {
        v8 sum = splat(0.0f);
        for (k = f->first[bin]; k < f->last[bin]; k++) sum += power[k] * *weight++;
        sum = log8(choose(sum > splat(1.1920929e-7f), sum, splat(1.1920929e-7f)));
        for (lane = 0; lane < 8 && lane < left; lane++) out[lane * f->bins + bin] = sum[lane];
    }
}

TARGET INLINE void join_any(int64_t count, const float *a, const float *b, int64_t relu, float *to) {
    int64_t at, lane;
    for (at = 0; at < count; at += 8) { /* `to` has room for whole eights */
        int64_t left = count - at < 8 ? count - at : 8;
        for (lane = 0; lane < left; lane++) to[at + lane] = a[at + lane] + b[at + lane];
        for (; lane < 8; lane++) to[at + lane] = 0.0f;
        if (!relu) put8(to + at, tanh8(get8(to + at)));
        for (lane = 0; relu && lane < 8; lane++)
            if (to[at + lane] < 0.0f) to[at + lane] = 0.0f;
    }
}
