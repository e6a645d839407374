#!/bin/bash
# land.sh NN NAME: draft to /work/main/book, cell ids, format, stored outputs, frame check
set -e
cd /work/main
/work/scratch/jt/bin/jupytext --to ipynb -o book/$2.ipynb /work/scratch/drafts/$1.md > /dev/null
.venv/bin/python - $2 <<'Q'
import sys, nbformat
p=f"book/{sys.argv[1]}.ipynb"; nb=nbformat.read(p,4)
for i,c in enumerate(nb.cells): c.id=f"cell-{i}"
nb.metadata.pop("jupytext",None)
nbformat.write(nb,p)
Q
.venv/bin/ruff format -q book/$2.ipynb; .venv/bin/ruff check book/$2.ipynb
ls book/_scripts | head -30
OMP_NUM_THREADS=1 nice -n 5 .venv/bin/python book/_scripts/store.py book/$2.ipynb
.venv/bin/python - $2 <<'Q'
import sys
sys.path[:0]=['.','book/_scripts','tests/book']
import nbformat, frame
nb=nbformat.read(f"book/{sys.argv[1]}.ipynb",4)
for f in frame.CHECKS:
    for c in f(nb): print(f.__name__,c)
Q
