"""Speed and memory on the CPU, each against a plainly written opponent, measured in alternation in one run.

python -m benchmarks.augment     random crops, flips and normalising, microseconds an image (under 30 s)
python -m benchmarks.stage2      a whole stage 2 against the loop of the field's public code (about 5 min)
python -m benchmarks.steps       images/s of both stages as the scripts run them (about 1 min)
python -m benchmarks.memory      peak resident memory of both scripts (about 2 min)
"""
