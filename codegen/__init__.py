"""Code generation: Programs become something that runs.  Each sub-package is one target."""
