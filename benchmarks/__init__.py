"""Speed and memory, each against a plainly written opponent, measured in alternation in one run.

python -m benchmarks             the table: every section below (make bench)
    --only stage1                whole training steps, and their share of a bare step
    --only stage2                a whole stage 2: fresh views, cached views, a further head; scoring images
    --only commands              whole commands: start, every method, every method by validation, a sweep

Commands of their own:

python -m benchmarks.gpu           both stages on a CUDA device
python -m benchmarks.accuracy      test accuracy of the scripts, of bf16 and of the plain loops (hours)
python -m benchmarks.scaling       stage 2 by classes, width, rows and heads (about 8 min)

The studies that the pages in docs/ report are in benchmarks/studies.
"""
