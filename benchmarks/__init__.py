"""What Tersor claims, measured: one command a table of `docs/benchmarks.md`.

python -m benchmarks.quality    what token dropping costs in quality, on real pictures and prose
python -m benchmarks.speed      latency in ONNX Runtime against FLOPs, and against PyTorch's own exporter
python -m benchmarks.operators  the operators that the ONNX target chooses, against what it chose them over
python -m benchmarks.compile    time and memory of capture, passes and lowering, against that exporter
python -m benchmarks.decoding   tokens a second of a decoder, with guesses and without, against transformers

Each measures both sides of every comparison in one run, and writes its own section of the page and no other.
"""
