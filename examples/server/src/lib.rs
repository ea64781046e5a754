//! A server that speaks the protocol of OpenAI's API, on an engine of `qwen-rs`.
//!
//! [`Server`] listens, and answers `/health` with 503 until [`Server::loader`] is given the engine. The program in
//! `main.rs` reads options and loads the model; everything else is here, so that tests drive it in their own process:
//! `gate.rs` has what every request passes, `routes.rs` the paths, and each endpoint its own file. Requests are read and
//! encoded on threads that may wait (`app.rs`); their answers are streams that tasks poll (`answers.rs`), so that
//! dropping a task, as happens when a client leaves, cancels what it asked for.

mod admission;
mod answers;
mod app;
mod base64;
mod body;
mod chat;
mod chunks;
mod completions;
mod connection;
mod embeddings;
mod error;
mod fields;
mod gate;
mod health;
mod inputs;
mod metrics;
mod models;
mod page;
mod responses;
mod routes;
mod sampling;
mod server;
mod settings;
mod sse;
mod tokens;
mod wire;

pub use server::{Loader, Server};
pub use settings::{ApiKey, Settings};
