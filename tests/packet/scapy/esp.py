"""ESP by scapy, one request a line: what `tests/differential.rs` compares datapath with.

seal SUITE KEY SALT SPI SEQ ESN IV NEXT PADLEN INNER OUTER ENCAP  ->  ok FRAME
open SUITE KEY SALT SEQ ESN FRAME                                 ->  ok NEXT IV INNER

Octets are hexadecimal, SEQ has all 64 bits, ESN and ENCAP are 0 or 1, OUTER is 4 or 6. Anything that goes wrong is `error TEXT`.
"""

import sys

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.ipsec import ESP, SecurityAssociation, _ESPPlain
from scapy.layers.l2 import Ether
from scapy.packet import Raw, bind_layers, raw

ALGORITHMS = {"1": "AES-GCM", "2": "AES-GCM", "3": "CHACHA20-POLY1305"}
ICV = 16
# AES-CBC with HMAC-SHA2-256-128: HMAC's key, of so many octets, follows the cipher's.
CHAINED = ("4", "5")
HMAC_KEY = 32


def is_chained(sa):
    return sa.crypt_algo.name == "AES-CBC"


def association(suite, key, salt, spi):
    if suite in CHAINED:
        octets = bytes.fromhex(key)
        return SecurityAssociation(
            ESP,
            spi=spi,
            crypt_algo="AES-CBC",
            crypt_key=octets[:-HMAC_KEY],
            auth_algo="SHA2-256-128",
            auth_key=octets[-HMAC_KEY:],
        )
    # RFC 4106 8.1, RFC 7634 2: the salt follows the key.
    return SecurityAssociation(ESP, spi=spi, crypt_algo=ALGORITHMS[suite], crypt_key=bytes.fromhex(key + salt))


def encrypt(sa, plain, seq, esn):
    if not is_chained(sa):
        return sa.crypt_algo.encrypt(sa, plain, sa.crypt_key, icv_size=ICV, esn_en=esn, esn=seq >> 32)
    sealed = sa.crypt_algo.encrypt(sa, plain, sa.crypt_key)
    return sa.auth_algo.sign(sealed, sa.auth_key, esn_en=esn, esn=seq >> 32)


def decrypt(sa, esp, seq, esn):
    if not is_chained(sa):
        return sa.crypt_algo.decrypt(sa, esp, sa.crypt_key, icv_size=ICV, esn_en=esn, esn=seq >> 32)
    sa.auth_algo.verify(esp, sa.auth_key, esn_en=esn, esn=seq >> 32)
    return sa.crypt_algo.decrypt(sa, esp, sa.crypt_key, icv_size=ICV)


def seal(suite, key, salt, spi, seq, esn, iv, next_header, padlen, inner, outer, encap):
    sa, seq, padlen = association(suite, key, salt, int(spi)), int(seq), int(padlen)
    plain = _ESPPlain(
        spi=int(spi),
        seq=seq & 0xFFFFFFFF,
        iv=bytes.fromhex(iv),
        data=Raw(bytes.fromhex(inner)),
        padding=bytes(range(1, padlen + 1)),
        padlen=padlen,
        nh=int(next_header),
    )
    esp = encrypt(sa, plain, seq, esn == "1")
    layers = UDP(sport=4500, dport=4500, chksum=0 if outer == "4" else None) / esp if encap == "1" else esp
    number = 17 if encap == "1" else 50
    if outer == "4":
        ip = IP(src="192.168.10.100", dst="192.168.10.1", proto=number, flags="DF") / layers
    else:
        ip = IPv6(src="2001:db8:a::64", dst="2001:db8:a::1", nh=number) / layers
    frame = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:64") / ip
    return raw(frame).hex()


def without_checksums(packet):
    packet = packet.copy()
    for layer in (IP, UDP):
        if layer in packet and packet[layer].chksum != 0:
            del packet[layer].chksum
    return packet


def open_(suite, key, salt, seq, esn, frame):
    octets, seq = bytes.fromhex(frame), int(seq)
    packet = Ether(octets)
    if raw(without_checksums(packet)) != octets:
        raise ValueError("a checksum or length of the outer packet is wrong")
    esp = packet[ESP]
    sa = association(suite, key, salt, esp.spi)
    if esp.seq != seq & 0xFFFFFFFF:
        raise ValueError("number %d where %d was to come" % (esp.seq, seq))
    sealed = raw(esp)
    plain = decrypt(sa, esp, seq, esn == "1")
    if plain.padding != bytes(range(1, plain.padlen + 1)):
        raise ValueError("padding")
    block = 16 if is_chained(sa) else 4
    if (len(raw(plain.data)) + 2 + plain.padlen) % block != 0 or plain.padlen >= block:
        raise ValueError("%d octets of padding" % plain.padlen)
    again = _ESPPlain(
        spi=esp.spi, seq=esp.seq, iv=plain.iv, data=plain.data, padding=plain.padding, padlen=plain.padlen, nh=plain.nh
    )
    if raw(encrypt(sa, again, seq, esn == "1")) != sealed:
        raise ValueError("scapy seals the same to other octets")
    return "%d %s %s" % (plain.nh, plain.iv.hex(), raw(plain.data).hex())


def main():
    bind_layers(UDP, ESP, sport=4500, dport=4500)
    # What stands before ESP in transport mode.
    for header in (IPv6ExtHdrHopByHop, IPv6ExtHdrRouting):
        bind_layers(header, ESP, nh=50)
    for line in sys.stdin:
        what, *arguments = line.split()
        try:
            answer = "ok " + (seal if what == "seal" else open_)(*arguments)
        except Exception as error:  # whatever it is, the test says it
            answer = "error %s: %s" % (type(error).__name__, error)
        print(answer, flush=True)


main()
