import sys, base64, time, nbformat
from nbclient import NotebookClient
from pathlib import Path
p,out=Path(sys.argv[1]),Path(sys.argv[2])
nb=nbformat.read(p,4); t=time.time()
c=NotebookClient(nb,timeout=900,kernel_name="python3",resources={"metadata":{"path":str(p.parent)}},allow_errors=True,record_timing=True,coalesce_streams=True)
c.execute(); n=0
for i,cell in enumerate(nb.cells):
    if cell.cell_type!="code": continue
    ex=cell.metadata.get("execution",{})
    print(f"--- cell {i}: {cell.source.splitlines()[0] if cell.source else ''}")
    for o in cell.outputs:
        if o.output_type=="stream": print(o.text,end="")
        elif o.output_type=="error": print("ERROR",o.ename,o.evalue); print("\n".join(o.traceback)[-1500:])
        else:
            d=o.get("data",{})
            if "image/png" in d:
                n+=1; (out/f"{n:02d}_cell{i}.png").write_bytes(base64.b64decode(d["image/png"])); print(f"[picture {n}]")
            elif "text/plain" in d: print(d["text/plain"])
print(f"=== {time.time()-t:.0f} s, {n} pictures in {out}")
