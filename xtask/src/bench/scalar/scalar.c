/* What the benchmark calls: one packet, by suite. */
#include "scalar.h"

int scalar_seal(const struct scalar_key *key, struct packet *p) {
    key->rounds ? aes_gcm_seal(key, p) : chacha20_poly1305_seal(key, p);
    return 0;
}

int scalar_open(const struct scalar_key *key, struct packet *p) {
    return key->rounds ? aes_gcm_open(key, p) : chacha20_poly1305_open(key, p);
}
