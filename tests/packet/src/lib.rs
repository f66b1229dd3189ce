//! The packet case tables, on the host and through BPF_PROG_TEST_RUN.
