"""land.py NN name "README title": references, notation, toc, README row of a chapter"""
import re, sys
nn,name,title,after=sys.argv[1:5]
D="/work/scratch/drafts/"
refs=open('book/references.bib').read(); have=set(re.findall(r"@\w+\{([^,]+),",refs))
new=open(f'{D}{nn}_refs.bib').read()
add=[e for e in re.split(r"\n(?=@)",new.strip()) if re.match(r"@\w+\{([^,]+),",e)[1] not in have]
open('book/references.bib','w').write(refs.rstrip()+"\n\n"+"\n\n".join(x.strip() for x in add)+"\n")
p='book/notation.md'; s=open(p).read()
rows=open(f'{D}{nn}_notation.md').read().strip()+"\n"
anchor=[l for l in s.splitlines() if l.startswith("| $U_{j,t}$")][0]
s=s.replace(anchor+"\n",rows+anchor+"\n"); open(p,'w').write(s)
p='_toc.yml'; s=open(p).read()
s=s.replace("      - file: book/18_colour_edge_pixel",f"      - file: book/{name}\n      - file: book/18_colour_edge_pixel"); open(p,'w').write(s)
p='README.md'; s=open(p).read()
l=[x for x in s.splitlines() if x.startswith("| 18 ")][0]
s=s.replace(l,l.replace("18 Colour, edge and pixel",title).replace("18_colour_edge_pixel",name)+"\n"+l); open(p,'w').write(s)
