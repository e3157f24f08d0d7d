//! What a client is told without asking.
