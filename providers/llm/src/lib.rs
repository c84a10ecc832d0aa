//! Language models behind OpenAI-compatible HTTP endpoints.
