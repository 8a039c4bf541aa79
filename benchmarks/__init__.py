"""Speed and memory, each against a plainly written opponent, measured in alternation in one run.

python -m benchmarks             the table: every section below (make bench, under 15 min)
    --only augment               random crops, flips and normalising
    --only decode                ImageNet-sized JPEGs to training views
    --only stage1                whole training steps, eager and compiled, and their share of a bare step
    --only evaluate              scoring images with their mirror images
    --only stage2                a whole stage 2: fresh views, cached views, a further head
    --only pack                  every method on a feature pack, one head more

Commands of their own:

python -m benchmarks.profile       where the time of every stage goes, beside the machine's roofs
python -m benchmarks.gpu           both stages on a CUDA device
python -m benchmarks.accuracy      test accuracy of the scripts, of bf16 and of the plain loops (hours)
python -m benchmarks.scaling       stage 2 by classes, width, rows and heads (about 8 min)
python -m benchmarks.heads         many heads over one representation, several seeds (about 4 min)
python -m benchmarks.loader_start  the first batch of as many files as iNaturalist 2018
python -m benchmarks.big_head      a stage-2 step at iNaturalist's size, the share outside its two products
python -m benchmarks.big_pack      what memory features of iNaturalist's size take
python -m benchmarks.saving        saving a checkpoint safely against a plain fsynced write
python -m benchmarks.resume        how much longer a resumed start takes than a fresh one
python -m benchmarks.memory        peak resident memory of both scripts (about 2 min)
python -m benchmarks.plain_head    one head as one writes it for one experiment: the opponent in `pack`
"""
