/* The ciphers of ebpf/datapath/src/aead in scalar C, for comparison only: what the same code costs without BPF.
 * x86_64 is assumed: little-endian, unaligned access through memcpy. */
#ifndef SCALAR_H
#define SCALAR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TEXT_MAX 4096
#define FRONT 64

/* A key as datapath expands it: ChaCha20's octets in the first four words, or AES's 15 bitsliced round keys and four powers of
 * H. `rounds` is 0 for ChaCha20-Poly1305. */
struct scalar_key {
    uint8_t salt[4];
    uint32_t rounds;
    uint64_t schedule[15 * 8 + 16];
};

/* One packet. The text begins at FRONT: before it there is room for the AAD, behind it for key stream and lengths. */
struct packet {
    uint8_t iv[8];
    uint8_t aad[16];
    uint8_t tag[16];
    uint64_t aad_len, len;
    uint8_t area[FRONT + TEXT_MAX + 128];
};

/* At -O2 gcc keeps arrays in memory that loops walk over; unrolled, they are registers, as in the Rust code. */
#define UNROLLED _Pragma("GCC unroll 16")

static inline int same_tag(const uint8_t a[16], const uint8_t b[16]) {
    uint64_t x[2], y[2];
    memcpy(x, a, 16), memcpy(y, b, 16);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

void chacha20_poly1305_seal(const struct scalar_key *, struct packet *);
int chacha20_poly1305_open(const struct scalar_key *, struct packet *);
void aes_gcm_seal(const struct scalar_key *, struct packet *);
int aes_gcm_open(const struct scalar_key *, struct packet *);

#endif
