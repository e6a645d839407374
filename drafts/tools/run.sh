#!/bin/bash
# run.sh DRAFT.md NAME CLONE [OUTDIR]: convert a MyST draft to CLONE/book/NAME.ipynb, run it, show text outputs, save pictures
set -e
DRAFT=$1 NAME=$2 CLONE=$3 OUT=${4:-/tmp/figs_$2}
/work/scratch/jt/bin/jupytext --to ipynb -o $CLONE/book/$NAME.ipynb $DRAFT >/dev/null
cd $CLONE
.venv/bin/ruff format -q book/$NAME.ipynb; .venv/bin/ruff check -q book/$NAME.ipynb || true
mkdir -p $OUT; rm -f $OUT/*.png
env OMP_NUM_THREADS=1 PYTHONPATH=$CLONE .venv/bin/python /work/scratch/tools/show.py book/$NAME.ipynb $OUT
