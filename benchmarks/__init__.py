"""What Tersor claims, measured: one command a table of `docs/benchmarks.md`.

python -m benchmarks.quality    what token dropping costs in quality, on real pictures and prose
python -m benchmarks.speed      latency in ONNX Runtime against FLOPs, and against PyTorch's own exporter
python -m benchmarks.operators  the operators that the ONNX target chooses, against what it chose them over
python -m benchmarks.compile    time and memory of capture, passes and lowering, against that exporter
python -m benchmarks.decoding   tokens a second of a decoder, with guesses and without, against transformers
python -m benchmarks.identity   whether its tokens are those of transformers, with every drafter, alone and in batches
python -m benchmarks.generator  a file that generates by itself, against generating step by step
python -m benchmarks.quantised  a decoder with weights of 8 bits and fewer, against llama.cpp
python -m benchmarks.weights    what every kind of weights costs a decoder; prints its section, which the page has not
python -m benchmarks.gpu        token dropping on a GPU; prints its section, which the page has not

Each measures both sides of every comparison in one run, and writes its own section of the page and no other.
"""
