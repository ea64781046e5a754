//! Run Qwen2.5 language models inside a Rust program.
