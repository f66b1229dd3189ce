/* ChaCha20-Poly1305 (RFC 8439) as ebpf/datapath/src/aead writes it, in scalar C: one block of ChaCha20 at a time, Poly1305 in
 * limbs of 26 bits with 64-bit products, four blocks under the powers of r. Only what BPF cannot say is said as C can: rotations. */
#include "scalar.h"

#define inlined static inline __attribute__((always_inline))

#ifdef SHIFTS_ONLY
/* What the kernel makes of a rotation in BPF, which has none: a move, two shifts, an OR. Hidden from gcc, which knows better. */
#define rotl(x, n)                                                                                                             \
    ({                                                                                                                         \
        uint32_t low = (x), high;                                                                                              \
        __asm__("mov %0, %1\n\tshl %2, %0\n\tshr %3, %1\n\tor %1, %0" : "+r"(low), "=&r"(high) : "i"(n), "i"(32 - (n)));      \
        low;                                                                                                                   \
    })
#else
static inline uint32_t rotl(uint32_t x, int n) { return x << n | x >> (32 - n); }
#endif

#define QUARTER(a, b, c, d)                                                                                                    \
    do {                                                                                                                       \
        a += b, d = rotl(d ^ a, 16);                                                                                           \
        c += d, b = rotl(b ^ c, 12);                                                                                           \
        a += b, d = rotl(d ^ a, 8);                                                                                            \
        c += d, b = rotl(b ^ c, 7);                                                                                            \
    } while (0)

static void xor_block(uint32_t state[16], uint8_t chunk[64]) {
    uint32_t x[16];
    UNROLLED for (int i = 0; i < 16; i++) x[i] = state[i];
    for (int i = 0; i < 10; i++) {
        QUARTER(x[0], x[4], x[8], x[12]);
        QUARTER(x[1], x[5], x[9], x[13]);
        QUARTER(x[2], x[6], x[10], x[14]);
        QUARTER(x[3], x[7], x[11], x[15]);
        QUARTER(x[0], x[5], x[10], x[15]);
        QUARTER(x[1], x[6], x[11], x[12]);
        QUARTER(x[2], x[7], x[8], x[13]);
        QUARTER(x[3], x[4], x[9], x[14]);
    }
    UNROLLED for (int i = 0; i < 16; i++) {
        uint32_t word;
        memcpy(&word, chunk + 4 * i, 4);
        word ^= x[i] + state[i];
        memcpy(chunk + 4 * i, &word, 4);
    }
    state[12]++;
}

struct poly1305 {
    uint64_t h[5], powers[4][9], s[4];
};

#define LOW 0xffffffffu
#define LIMB 0x3ffffffu

inlined void limbs(const uint8_t *at, uint64_t m[5]) {
    uint64_t b[2];
    memcpy(b, at, 16);
    m[0] = b[0] & LIMB, m[1] = b[0] >> 26 & LIMB, m[2] = (b[0] >> 52 | b[1] << 12) & LIMB, m[3] = b[1] >> 14 & LIMB;
    m[4] = b[1] >> 40 | 1 << 24;
}

inlined void add_product(uint64_t sum[5], const uint64_t m[5], const uint64_t power[9]) {
    UNROLLED for (int j = 0; j < 5; j++) {
        UNROLLED for (int i = 0; i < 5; i++) sum[i] += m[j] * power[i >= j ? i - j : 9 + i - j];
    }
}

inlined void carry(const uint64_t from[5], uint64_t h[5]) {
    uint64_t d0 = from[0], d1 = from[1], d2 = from[2], d3 = from[3], d4 = from[4];
    d1 += d0 >> 26, d4 += d3 >> 26, d0 &= LIMB, d3 &= LIMB;
    d2 += d1 >> 26, d0 += (d4 >> 26) * 5, d1 &= LIMB, d4 &= LIMB;
    d3 += d2 >> 26, d1 += d0 >> 26, d2 &= LIMB, d0 &= LIMB;
    d4 += d3 >> 26, d3 &= LIMB;
    h[0] = d0, h[1] = d1, h[2] = d2, h[3] = d3, h[4] = d4;
}

inlined void power(const uint64_t r[5], uint64_t out[9]) {
    UNROLLED for (int i = 0; i < 5; i++) out[i] = r[i];
    UNROLLED for (int i = 1; i < 5; i++) out[4 + i] = 5 * r[i];
}

static void poly_start(struct poly1305 *p, const uint8_t key[32]) {
    uint64_t k[4], r[5];
    memcpy(k, key, 32);
    k[0] &= 0x0ffffffc0fffffff, k[1] &= 0x0ffffffc0ffffffc;
    limbs((const uint8_t *)k, r);
    r[4] ^= 1 << 24;
    memset(p->h, 0, sizeof p->h);
    power(r, p->powers[3]);
    UNROLLED for (int i = 0; i < 4; i++) p->s[i] = k[2 + i / 2] >> (i % 2 * 32) & LOW;
}

static void poly_powers(struct poly1305 *p) {
    uint64_t last[5];
    memcpy(last, p->powers[3], 40);
    for (int at = 2; at >= 0; at--) {
        uint64_t sum[5] = {0};
        add_product(sum, last, p->powers[3]);
        carry(sum, last);
        power(last, p->powers[at]);
    }
}

static void poly_few(struct poly1305 *p, const uint8_t *at, size_t blocks) {
    uint64_t h[5], m[5];
    memcpy(h, p->h, 40);
    for (; blocks > 0; blocks--, at += 16) {
        uint64_t sum[5] = {0};
        limbs(at, m);
        UNROLLED for (int i = 0; i < 5; i++) m[i] += h[i];
        add_product(sum, m, p->powers[3]);
        carry(sum, h);
    }
    memcpy(p->h, h, 40);
}

static void poly_chunks(struct poly1305 *p, const uint8_t *at, size_t chunks) {
    uint64_t h[5], m[5];
    memcpy(h, p->h, 40);
    for (; chunks > 0; chunks--) {
        uint64_t sum[5] = {0};
        for (int b = 0; b < 4; b++, at += 16) {
            limbs(at, m);
            if (b == 0) {
                UNROLLED for (int i = 0; i < 5; i++) m[i] += h[i];
            }
            add_product(sum, m, p->powers[b]);
        }
        carry(sum, h);
    }
    memcpy(p->h, h, 40);
}

static void poly_finish(const struct poly1305 *p, uint8_t tag[16]) {
    uint64_t w[4], c = p->h[0] + (p->h[1] << 26);
    w[0] = c & LOW, c = (c >> 32) + (p->h[2] << 20);
    w[1] = c & LOW, c = (c >> 32) + (p->h[3] << 14);
    w[2] = c & LOW, c = (c >> 32) + (p->h[4] << 8);
    w[3] = c & LOW;
    uint64_t top = c >> 32;
    c = 5;
    UNROLLED for (int i = 0; i < 4; i++) c = (c + w[i]) >> 32;
    c = ((c + top) >> 2) * 5;
    UNROLLED for (int i = 0; i < 4; i++) {
        c += w[i] + p->s[i];
        w[i] = c & LOW;
        c >>= 32;
    }
    uint64_t out[2] = {w[0] | w[1] << 32, w[2] | w[3] << 32};
    memcpy(tag, out, 16);
}

static void load(const struct scalar_key *key, const struct packet *p, uint32_t state[16]) {
    static const uint32_t constants[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    memcpy(state, constants, 16);
    memcpy(state + 4, key->schedule, 32);
    state[12] = 0;
    memcpy(state + 13, key->salt, 4);
    memcpy(state + 14, p->iv, 8);
}

/* AAD and lengths are framed around the text, so that all lies in one piece. */
static void authenticate(struct packet *p, const uint8_t one_time_key[64], uint8_t tag[16]) {
    struct poly1305 poly;
    uint64_t lengths[2] = {p->aad_len, p->len};
    size_t text = (p->len + 15) / 16, blocks = text + 2;
    uint8_t *at = p->area + FRONT - 16;
    poly_start(&poly, one_time_key);
    memset(at, 0, 16);
    memcpy(at, p->aad, p->aad_len);
    memset(p->area + FRONT + p->len, 0, 16);
    memcpy(p->area + FRONT + 16 * text, lengths, 16);
    if (blocks >= 12) {
        poly_powers(&poly);
        poly_few(&poly, at, blocks % 4);
        poly_chunks(&poly, at + 16 * (blocks % 4), blocks / 4);
    } else {
        poly_few(&poly, at, blocks);
    }
    poly_finish(&poly, tag);
}

static void crypt(uint32_t state[16], struct packet *p) {
    for (size_t at = 0; at < p->len; at += 64) xor_block(state, p->area + FRONT + at);
}

void chacha20_poly1305_seal(const struct scalar_key *key, struct packet *p) {
    uint32_t state[16];
    uint8_t first[64] = {0};
    load(key, p, state);
    xor_block(state, first);
    crypt(state, p);
    authenticate(p, first, p->tag);
}

int chacha20_poly1305_open(const struct scalar_key *key, struct packet *p) {
    uint32_t state[16];
    uint8_t first[64] = {0}, tag[16];
    load(key, p, state);
    xor_block(state, first);
    authenticate(p, first, tag);
    if (!same_tag(tag, p->tag)) return -1;
    crypt(state, p);
    return 0;
}
