//! What this machine can do at best, measured: to put figures of kernels in proportion.
