//! The embedded memory backend: fast, bounded, not durable.
