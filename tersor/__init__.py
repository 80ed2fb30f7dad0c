"""Tersor: a compiler that makes transformer models faster."""
