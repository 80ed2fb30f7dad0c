"""KV caches: a decoder that is run in steps and keeps the keys and values of earlier tokens."""
