"""Graph rewrites and the pipeline that runs them."""
