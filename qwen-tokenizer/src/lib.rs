//! Text to ids and back, chat templates, messages and tool calls.
