/* AES-GCM (SP 800-38D) as ebpf/datapath/src/aead writes it, in scalar C: AES bitsliced over four blocks ("fixslicing"), GHASH by
 * products of spread bits. The key comes expanded, by the code of datapath. Constant time as there. */
#include "scalar.h"

/* Where the AAD block lies, and the block that is encrypted to mask the tag. */
#define BEFORE (FRONT - 16)
#define inlined static inline __attribute__((always_inline))

inlined uint64_t ror(uint64_t x, int n) { return x >> n | x << (64 - n); }

/* The S-box less its constant, circuit of Boyar and Peralta (SEA 2010). */
inlined void sub_bytes(uint64_t q[8]) {
    uint64_t x7 = q[0], x6 = q[1], x5 = q[2], x4 = q[3], x3 = q[4], x2 = q[5], x1 = q[6], x0 = q[7];

    /* Into the tower field. */
    uint64_t y14 = x3 ^ x5;
    uint64_t y13 = x0 ^ x6;
    uint64_t y9 = x0 ^ x3;
    uint64_t y8 = x0 ^ x5;
    uint64_t t0 = x1 ^ x2;
    uint64_t y1 = t0 ^ x7;
    uint64_t y4 = y1 ^ x3;
    uint64_t y12 = y13 ^ y14;
    uint64_t y2 = y1 ^ x0;
    uint64_t y5 = y1 ^ x6;
    uint64_t y3 = y5 ^ y8;
    uint64_t t1 = x4 ^ y12;
    uint64_t y15 = t1 ^ x5;
    uint64_t y20 = t1 ^ x1;
    uint64_t y6 = y15 ^ x7;
    uint64_t y10 = y15 ^ t0;
    uint64_t y11 = y20 ^ y9;
    uint64_t y7 = x7 ^ y11;
    uint64_t y17 = y10 ^ y11;
    uint64_t y19 = y10 ^ y8;
    uint64_t y16 = t0 ^ y11;
    uint64_t y21 = y13 ^ y16;
    uint64_t y18 = x0 ^ y16;

    /* Inversion. */
    uint64_t t2 = y12 & y15;
    uint64_t t4 = (y3 & y6) ^ t2;
    uint64_t t6 = (y4 & x7) ^ t2;
    uint64_t t7 = y13 & y16;
    uint64_t t9 = (y5 & y1) ^ t7;
    uint64_t t11 = (y2 & y7) ^ t7;
    uint64_t t12 = y9 & y11;
    uint64_t t14 = (y14 & y17) ^ t12;
    uint64_t t16 = (y8 & y10) ^ t12;
    uint64_t t21 = t4 ^ t14 ^ y20;
    uint64_t t22 = t6 ^ t16 ^ y19;
    uint64_t t23 = t9 ^ t14 ^ y21;
    uint64_t t24 = t11 ^ t16 ^ y18;
    uint64_t t25 = t21 ^ t22;
    uint64_t t26 = t21 & t23;
    uint64_t t27 = t24 ^ t26;
    uint64_t t29 = (t25 & t27) ^ t22;
    uint64_t t30 = t23 ^ t24;
    uint64_t t33 = ((t22 ^ t26) & t30) ^ t24;
    uint64_t t36 = t24 & (t27 ^ t33);
    uint64_t t37 = t36 ^ t23 ^ t33;
    uint64_t t38 = t27 ^ t36;
    uint64_t t40 = t25 ^ (t29 & t38);
    uint64_t t41 = t40 ^ t37;
    uint64_t t42 = t29 ^ t33;
    uint64_t t43 = t29 ^ t40;
    uint64_t t44 = t33 ^ t37;
    uint64_t t45 = t42 ^ t41;
    uint64_t z0 = t44 & y15;
    uint64_t z1 = t37 & y6;
    uint64_t z2 = t33 & x7;
    uint64_t z3 = t43 & y16;
    uint64_t z4 = t40 & y1;
    uint64_t z5 = t29 & y7;
    uint64_t z6 = t42 & y11;
    uint64_t z7 = t45 & y17;
    uint64_t z8 = t41 & y10;
    uint64_t z9 = t44 & y12;
    uint64_t z10 = t37 & y3;
    uint64_t z11 = t33 & y4;
    uint64_t z12 = t43 & y13;
    uint64_t z13 = t40 & y5;
    uint64_t z14 = t29 & y2;
    uint64_t z15 = t42 & y9;
    uint64_t z16 = t45 & y14;
    uint64_t z17 = t41 & y8;

    /* Back, with the affine map less its constant. */
    uint64_t t46 = z15 ^ z16;
    uint64_t t48 = z5 ^ z13;
    uint64_t t54 = z6 ^ z7;
    uint64_t t53 = z0 ^ z3;
    uint64_t t57 = z2 ^ z12 ^ t53;
    uint64_t t58 = z4 ^ t46;
    uint64_t t59 = z3 ^ t54;
    uint64_t t60 = t46 ^ t57;
    uint64_t t62 = z7 ^ z8 ^ t58;
    uint64_t t63 = z9 ^ z10 ^ t58;
    uint64_t t64 = z4 ^ t59;
    uint64_t t65 = z14 ^ t57 ^ t62;
    uint64_t t66 = z1 ^ t63;
    uint64_t s0 = t59 ^ t63;
    uint64_t s3 = t53 ^ t66;
    uint64_t s4 = z2 ^ z5 ^ t66;
    uint64_t s5 = z10 ^ z11 ^ t65;
    uint64_t s1 = t64 ^ s3;
    uint64_t s2 = z16 ^ z17 ^ t64 ^ t65;
    uint64_t s6 = z12 ^ t48 ^ t62;
    uint64_t s7 = t48 ^ t60;
    q[0] = s7, q[1] = s6, q[2] = s5, q[3] = s4, q[4] = s3, q[5] = s2, q[6] = s1, q[7] = s0;
}

inlined uint64_t columns(uint64_t x, int n) {
    n %= 4;
    if (n == 0) return x;
    uint64_t low = (0xffffULL >> (4 * n)) * 0x0001000100010001ULL;
    return ((x >> (4 * n)) & low) | ((x << (16 - 4 * n)) & ~low);
}

inlined void mix_columns(uint64_t s[8], int frame) {
    uint64_t b[8], d[8];
    UNROLLED for (int i = 0; i < 8; i++) {
        b[i] = columns(ror(s[i], 16), frame);
        d[i] = s[i] ^ b[i];
    }
    UNROLLED for (int i = 0; i < 8; i++) {
        uint64_t doubled = i == 0 ? d[7] : i == 1 || i == 3 || i == 4 ? d[i - 1] ^ d[7] : d[i - 1];
        s[i] = doubled ^ b[i] ^ columns(ror(d[i], 32), 2 * frame);
    }
}

inlined void swap(uint64_t *low, uint64_t *high, int n, uint64_t mask) {
    uint64_t t = ((*low >> n) ^ *high) & mask;
    *high ^= t, *low ^= t << n;
}

inlined void transpose(uint64_t q[8]) {
    UNROLLED for (int i = 0; i < 8; i += 2) swap(q + i, q + i + 1, 1, 0x5555555555555555ULL);
    UNROLLED for (int i = 0; i < 8; i += 4) {
        swap(q + i, q + i + 2, 2, 0x3333333333333333ULL);
        swap(q + i + 1, q + i + 3, 2, 0x3333333333333333ULL);
    }
    UNROLLED for (int i = 0; i < 4; i++) swap(q + i, q + i + 4, 4, 0x0f0f0f0f0f0f0f0fULL);
}

inlined uint64_t spread(uint32_t column) {
    uint64_t x = column;
    x = (x | x << 16) & 0x0000ffff0000ffffULL;
    return (x | x << 8) & 0x00ff00ff00ff00ffULL;
}

inlined uint64_t gather(uint64_t x) {
    x &= 0x00ff00ff00ff00ffULL;
    x = (x | x >> 8) & 0x0000ffff0000ffffULL;
    return (x | x >> 16) & 0xffffffffULL;
}

inlined void add_round_key(uint64_t q[8], const struct scalar_key *key, int round) {
    UNROLLED for (int i = 0; i < 8; i++) q[i] ^= key->schedule[round * 8 + i];
}

static void encrypt(const struct scalar_key *key, uint64_t q[8]) {
    int last = key->rounds, round = 1;
    add_round_key(q, key, 0);
    for (;;) {
        sub_bytes(q), mix_columns(q, 1), add_round_key(q, key, round);
        if (round + 1 >= last) break;
        sub_bytes(q), mix_columns(q, 2), add_round_key(q, key, round + 1);
        sub_bytes(q), mix_columns(q, 3), add_round_key(q, key, round + 2);
        sub_bytes(q), mix_columns(q, 0), add_round_key(q, key, round + 3);
        round += 4;
    }
    sub_bytes(q);
    UNROLLED for (int i = 0; i < 8; i++) {
        uint64_t t = (q[i] ^ (q[i] >> 8)) & 0x00ff000000ff0000ULL;
        q[i] ^= t ^ (t << 8);
    }
    add_round_key(q, key, last);
}

/* Key stream of four counter blocks into `chunk`. */
static void crypt(const struct scalar_key *key, const struct packet *p, uint32_t counter, uint8_t *at, size_t len) {
    uint32_t salt, iv[2];
    memcpy(&salt, key->salt, 4), memcpy(iv, p->iv, 8);
    uint64_t even = spread(salt) | spread(iv[1]) << 8, odd = spread(iv[0]);
    for (size_t done = 0; done < len; done += 64, at += 64, counter += 4) {
        uint64_t q[8];
        UNROLLED for (int k = 0; k < 4; k++) q[k] = even, q[4 + k] = odd | spread(__builtin_bswap32(counter + k)) << 8;
        transpose(q), encrypt(key, q), transpose(q);
        UNROLLED for (int k = 0; k < 4; k++) {
            uint64_t w[2];
            memcpy(w, at + 16 * k, 16);
            w[0] ^= gather(q[k]) | gather(q[4 + k]) << 32;
            w[1] ^= gather(q[k] >> 8) | gather(q[4 + k] >> 8) << 32;
            memcpy(at + 16 * k, w, 16);
        }
    }
}

#define COMB 0x1111111111111111ULL

inlined void comb(uint64_t x, uint64_t r[9]) {
    r[0] = x & COMB, r[1] = x >> 1 & COMB, r[2] = r[0] ^ r[1];
    r[3] = x >> 2 & COMB, r[4] = x >> 3 & COMB, r[5] = r[3] ^ r[4];
    r[6] = r[0] ^ r[3], r[7] = r[1] ^ r[4], r[8] = r[6] ^ r[7];
}

inlined uint64_t reversed(uint64_t x) {
    x = (x & 0x5555555555555555ULL) << 1 | (x >> 1 & 0x5555555555555555ULL);
    x = (x & 0x3333333333333333ULL) << 2 | (x >> 2 & 0x3333333333333333ULL);
    x = (x & 0x0f0f0f0f0f0f0f0fULL) << 4 | (x >> 4 & 0x0f0f0f0f0f0f0f0fULL);
    return __builtin_bswap64(x);
}

inlined void kinds(uint64_t low, uint64_t high, uint64_t up_low, uint64_t up_high, uint64_t k[6]) {
    k[0] = low, k[1] = high, k[2] = low ^ high, k[3] = up_low, k[4] = up_high, k[5] = up_low ^ up_high;
}

struct ghash {
    uint64_t hash[2], factors[6][4][9];
};

inlined uint64_t row(const uint64_t operands[4], const uint64_t factors[4][9], int v) {
    uint64_t p0 = 0, p1 = 0, sum = 0;
    UNROLLED for (int b = 0; b < 4; b++) {
        uint64_t x = v == 0 ? operands[b] : v == 1 ? operands[b] >> 2 : operands[b] ^ operands[b] >> 2;
        uint64_t even = x & COMB, odd = x >> 1 & COMB;
        p0 ^= even * factors[b][3 * v], p1 ^= odd * factors[b][3 * v + 1], sum ^= (even ^ odd) * factors[b][3 * v + 2];
    }
    p0 &= COMB, p1 &= COMB, sum &= COMB;
    return p0 ^ (p0 ^ p1 ^ sum) << 1 ^ p1 << 2;
}

inlined uint64_t low_product(const uint64_t operands[4], const uint64_t factors[4][9]) {
    uint64_t low = row(operands, factors, 0), high = row(operands, factors, 1), sum = row(operands, factors, 2);
    return low ^ (low ^ high ^ sum) << 2 ^ high << 4;
}

static void ghash_start(const struct scalar_key *key, struct ghash *g) {
    const uint64_t *powers = key->schedule + 15 * 8;
    g->hash[0] = g->hash[1] = 0;
    UNROLLED for (int b = 0; b < 4; b++) {
        uint64_t k[6];
        kinds(powers[4 * b], powers[4 * b + 1], powers[4 * b + 2], powers[4 * b + 3], k);
        UNROLLED for (int i = 0; i < 6; i++) comb(k[i], g->factors[i][b]);
    }
}

static void ghash_chunk(struct ghash *g, const uint8_t chunk[64]) {
    uint64_t operands[6][4], p[6];
    UNROLLED for (int b = 0; b < 4; b++) {
        uint64_t w[2], k[6];
        memcpy(w, chunk + 16 * b, 16);
        uint64_t high = __builtin_bswap64(w[0]), low = __builtin_bswap64(w[1]);
        if (b == 0) low ^= g->hash[0], high ^= g->hash[1];
        kinds(low, high, reversed(low), reversed(high), k);
        UNROLLED for (int i = 0; i < 6; i++) operands[i][b] = k[i];
    }
    UNROLLED for (int i = 0; i < 6; i++) p[i] = low_product(operands[i], (const uint64_t(*)[9])g->factors[i]);
    uint64_t low_up = reversed(p[3]) >> 1, high_up = reversed(p[4]) >> 1, middle_up = reversed(p[5]) >> 1;
    uint64_t v0 = p[0], v1 = low_up ^ p[2] ^ p[0] ^ p[1], v2 = p[1] ^ middle_up ^ low_up ^ high_up, v3 = high_up;
    v1 ^= v0 << 63 ^ v0 << 62 ^ v0 << 57;
    v2 ^= v0 ^ v0 >> 1 ^ v0 >> 2 ^ v0 >> 7 ^ v1 << 63 ^ v1 << 62 ^ v1 << 57;
    v3 ^= v1 ^ v1 >> 1 ^ v1 >> 2 ^ v1 >> 7;
    g->hash[0] = v2, g->hash[1] = v3;
}

/* GHASH over AAD, text and lengths, with zero blocks in front that fill the first chunk. */
static void hash(const struct scalar_key *key, struct packet *p, uint8_t out[16]) {
    struct ghash g;
    ghash_start(key, &g);
    size_t text = (p->len + 15) / 16, blocks = text + 2;
    uint64_t lengths[2] = {__builtin_bswap64(p->aad_len * 8), __builtin_bswap64(p->len * 8)};
    memset(p->area, 0, FRONT);
    memcpy(p->area + BEFORE, p->aad, p->aad_len);
    memset(p->area + FRONT + p->len, 0, 16);
    memcpy(p->area + FRONT + 16 * text, lengths, 16);
    size_t end = FRONT + 16 * text + 16;
    for (size_t at = BEFORE - 16 * (-blocks & 3); at < end; at += 64) ghash_chunk(&g, p->area + at);
    uint64_t tag[2] = {__builtin_bswap64(g.hash[1]), __builtin_bswap64(g.hash[0])};
    memcpy(out, tag, 16);
}

void aes_gcm_seal(const struct scalar_key *key, struct packet *p) {
    uint8_t mask[16];
    memset(p->area + BEFORE, 0, 16);
    crypt(key, p, 1, p->area + BEFORE, p->len + 16);
    memcpy(mask, p->area + BEFORE, 16);
    hash(key, p, p->tag);
    for (int i = 0; i < 16; i++) p->tag[i] ^= mask[i];
}

int aes_gcm_open(const struct scalar_key *key, struct packet *p) {
    uint8_t tag[16];
    hash(key, p, tag);
    memcpy(p->area + BEFORE, tag, 16);
    crypt(key, p, 1, p->area + BEFORE, 64);
    if (!same_tag(p->area + BEFORE, p->tag)) return -1;
    if (p->len > 48) crypt(key, p, 5, p->area + FRONT + 48, p->len - 48);
    return 0;
}
