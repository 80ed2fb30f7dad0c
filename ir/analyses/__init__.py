"""Pure analyses of a Program, cached on it: layers, token axis, cost."""
