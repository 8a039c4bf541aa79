#!/usr/bin/env bash
# Stage 1 and stage 2 of ImageNet-LT on one node with 8 GPUs, or on several with --nodes:
#   sbatch --nodes 1 docs/slurm.sh imagenet_lt /data/imagenet
#SBATCH --job-name los
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 96
#SBATCH --time 12:00:00
#SBATCH --output los_%j.log
# two minutes before the end the run saves and ends: the same command once more goes on where it was
#SBATCH --signal USR1@120
set -euo pipefail
dataset=${1:?which data set} data_dir=${2:?its folder}
cd "${SLURM_SUBMIT_DIR:-.}"
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
run() {
    srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 --rdzv_backend c10d \
        --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first_node:29500" \
        --signals_to_handle SIGTERM,SIGINT,SIGUSR1 --shutdown_timeout 100 "$@" --resume auto
}
stage1_done=output/${dataset}_stage1_done
mkdir -p output
if [ ! -e "$stage1_done" ]; then
    run main_stage1.py --dataset "$dataset" --data_dir "$data_dir" --cur_stage stage1 --amp bf16
    touch "$stage1_done"
fi
run main_stage2.py --dataset "$dataset" --data_dir "$data_dir" --cur_stage stage2 --amp bf16 \
    --save_features "output/${dataset}_features.safetensors"
rm "$stage1_done"
