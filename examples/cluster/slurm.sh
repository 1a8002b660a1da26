#!/bin/bash
# Calibrates as a Slurm job array, one shard a task; the model is made by a job that waits for all of them:
#
#     export MODEL=in.onnx CALIB=data.npz OUT=out.onnx SHARDS=8
#     array=$(sbatch --parsable --array=1-$SHARDS examples/cluster/slurm.sh)
#     sbatch --dependency=afterok:$array examples/cluster/slurm.sh
#
# Paths are on a disk that all nodes see.
#SBATCH --job-name=onnx-osplus
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
set -euo pipefail
tool=${ONNX_OSPLUS_BIN:-onnx-osplus}
threads=${SLURM_CPUS_PER_TASK:-0}
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    "$tool" stats "$MODEL" --calib "$CALIB" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --threads "$threads" \
        -o "$OUT.$SLURM_ARRAY_TASK_ID.stats" --force
else
    parts=()
    for ((i = 1; i <= SHARDS; i++)); do parts+=("$OUT.$i.stats"); done
    "$tool" "$MODEL" "$OUT" --calib "$CALIB" --stats "${parts[@]}" --threads "$threads"
fi
