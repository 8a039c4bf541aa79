"""Speed and memory on the CPU, each against a plainly written opponent, measured in alternation in one run.

python -m benchmarks.augment     random crops, flips and normalising, microseconds an image (under 30 s)
python -m benchmarks.stage2      a whole stage 2 against the loop of the field's public code (about 5 min)
python -m benchmarks.decode      ImageNet-sized JPEGs to training views, against Pillow and transforms v1
python -m benchmarks.big_head    a stage-2 step at iNaturalist's size, the share outside its two products
python -m benchmarks.saving      saving a checkpoint safely against a plain fsynced write
python -m benchmarks.steps       images/s of both stages as the scripts run them (about 1 min)
python -m benchmarks.memory      peak resident memory of both scripts (about 2 min)
"""
