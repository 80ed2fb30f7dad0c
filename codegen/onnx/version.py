"""Versions that every file of this target agrees on."""

# Opset 20 brings Gelu; it is also what most engines other than ONNX Runtime read today.
OPSET = 20
IR_VERSION = 10
