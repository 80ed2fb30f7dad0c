"""Capture of models into Programs."""
