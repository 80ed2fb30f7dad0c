"""Speculative decoding: tokens are guessed ahead, and the model checks several of them in one step."""
