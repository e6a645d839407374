"""fill.py DRAFT OUT TEXTS: replaces the [[RESULT…]] marks in order by the blocks of TEXTS, divided by lines of ----"""
import re, sys
s=open(sys.argv[1]).read(); t=[x.strip() for x in open(sys.argv[3]).read().split("\n----\n")]
marks=re.findall(r"\[\[RESULT.*?\]\]",s,flags=re.S)
assert len(marks)==len(t),(len(marks),len(t),[m[:90] for m in marks])
for m,x in zip(marks,t): s=s.replace(m,x,1)
s=re.sub(r"  +\n","\n",s)
open(sys.argv[2],"w").write(s)
