"""refs.py NN name 'README title' AFTER: references, notation, README row after that of AFTER; placeholder out"""
import re, sys, pathlib, subprocess
nn,name,title,before=sys.argv[1:5]
D="/work/scratch/drafts/"
refs=open('book/references.bib').read(); have=set(re.findall(r"@\w+\{([^,]+),",refs))
new=open(f'{D}{nn}_refs.bib').read()
add=[e for e in re.split(r"\n(?=@)",new.strip()) if re.match(r"@\w+\{([^,]+),",e)[1] not in have]
print([re.match(r"@\w+\{([^,]+),",e)[1] for e in add])
open('book/references.bib','w').write(refs.rstrip()+"\n\n"+"\n\n".join(x.strip() for x in add)+"\n")
p='book/notation.md'; s=open(p).read().splitlines()
rows=[r for r in open(f'{D}{nn}_notation.md').read().strip().splitlines() if not r.startswith(r"| $\mathcal{L}$")]
at=next((i for i,l in enumerate(s) if re.search(rf"\| \[{before}\]",l)), None)
if at is None: at=next(i for i,l in enumerate(s) if l.startswith("| $U_{j,t}$"))
print("notation before:",s[at][:60]); s[at:at]=rows
open(p,'w').write("\n".join(s)+"\n")
p='README.md'; s=open(p).read()
l=[x for x in s.splitlines() if x.startswith(f"| {before} ")][0]
bt=re.match(r"\| (.*?) \| ",l)[1]; bn=re.search(r"book/(\d\d_\w+)\.ipynb",l)[1]
s=s.replace(l,l.replace(bt,f"{nn} {title}").replace(bn,name)+"\n"+l); open(p,'w').write(s)
if pathlib.Path(f'book/{name}.md').exists(): subprocess.run(['git','rm','-q',f'book/{name}.md'],check=True)
