/* ChaCha20-Poly1305 (RFC 8439) as ebpf/datapath/src/aead writes it, in scalar C: one block of ChaCha20 at a time, Poly1305 in
 * 32-bit limbs with 64-bit products. Only what BPF cannot say is said as C can: rotations. */
#include "scalar.h"

static inline uint32_t rotl(uint32_t x, int n) { return x << n | x >> (32 - n); }

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
    uint64_t h[5], r[4], s[4];
};

#define LOW 0xffffffffu

static void poly_start(struct poly1305 *p, const uint8_t key[32]) {
    uint64_t k[4];
    memcpy(k, key, 32);
    k[0] &= 0x0ffffffc0fffffff, k[1] &= 0x0ffffffc0ffffffc;
    memset(p->h, 0, sizeof p->h);
    UNROLLED for (int i = 0; i < 4; i++) {
        p->r[i] = k[i / 2] >> (i % 2 * 32) & LOW;
        p->s[i] = k[2 + i / 2] >> (i % 2 * 32) & LOW;
    }
}

static void poly_blocks(struct poly1305 *p, const uint8_t *at, size_t blocks) {
    uint64_t r0 = p->r[0], r1 = p->r[1], r2 = p->r[2], r3 = p->r[3];
    uint64_t q1 = r1 + (r1 >> 2), q2 = r2 + (r2 >> 2), q3 = r3 + (r3 >> 2);
    uint64_t h0 = p->h[0], h1 = p->h[1], h2 = p->h[2], h3 = p->h[3], h4 = p->h[4];
    for (; blocks > 0; blocks--, at += 16) {
        uint64_t b[2];
        memcpy(b, at, 16);
        uint64_t s0 = h0 + (b[0] & LOW), s1 = h1 + (b[0] >> 32), s2 = h2 + (b[1] & LOW), s3 = h3 + (b[1] >> 32), s4 = h4 + 1;
        uint64_t x0 = s0 * r0 + s1 * q3 + s2 * q2 + s3 * q1 + s4 * (r0 >> 2) * 5;
        uint64_t x1 = s0 * r1 + s1 * r0 + s2 * q3 + s3 * q2 + s4 * q1;
        uint64_t x2 = s0 * r2 + s1 * r1 + s2 * r0 + s3 * q3 + s4 * q2;
        uint64_t x3 = s0 * r3 + s1 * r2 + s2 * r1 + s3 * r0 + s4 * q3;
        uint64_t top = s4 * (r0 & 3) + (x3 >> 32);
        uint64_t u0 = (x0 & LOW) + (top >> 2) * 5;
        uint64_t u1 = (x1 & LOW) + (x0 >> 32) + (u0 >> 32);
        uint64_t u2 = (x2 & LOW) + (x1 >> 32) + (u1 >> 32);
        uint64_t u3 = (x3 & LOW) + (x2 >> 32) + (u2 >> 32);
        h0 = u0 & LOW, h1 = u1 & LOW, h2 = u2 & LOW, h3 = u3 & LOW, h4 = (u3 >> 32) + (top & 3);
    }
    p->h[0] = h0, p->h[1] = h1, p->h[2] = h2, p->h[3] = h3, p->h[4] = h4;
}

static void poly_finish(const struct poly1305 *p, uint8_t tag[16]) {
    uint64_t carry = 5, limb[4];
    UNROLLED for (int i = 0; i < 4; i++) carry = (carry + p->h[i]) >> 32;
    carry = ((carry + p->h[4]) >> 2) * 5;
    UNROLLED for (int i = 0; i < 4; i++) {
        carry += p->h[i] + p->s[i];
        limb[i] = carry & LOW;
        carry >>= 32;
    }
    uint64_t out[2] = {limb[0] | limb[1] << 32, limb[2] | limb[3] << 32};
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

static void authenticate(struct packet *p, const uint8_t one_time_key[64], uint8_t tag[16]) {
    struct poly1305 poly;
    uint8_t block[16] = {0};
    uint64_t lengths[2] = {p->aad_len, p->len};
    poly_start(&poly, one_time_key);
    memcpy(block, p->aad, p->aad_len);
    poly_blocks(&poly, block, 1);
    memset(p->area + FRONT + p->len, 0, 16);
    poly_blocks(&poly, p->area + FRONT, (p->len + 15) / 16);
    poly_blocks(&poly, (const uint8_t *)lengths, 1);
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
