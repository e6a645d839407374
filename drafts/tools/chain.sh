
cd /work/scratch/sweep
export PYTHONPATH=/work/scratch/sweep OMP_NUM_THREADS=1
for e in positions head_to_head; do
  .venv/bin/pilcro sweep $e --folder data/results/neighbours || exit 1
done
