//! Sans-IO membership, synch channel codec, journal, mirror, takeover.
