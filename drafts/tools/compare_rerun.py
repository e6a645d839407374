"""python compare_rerun.py stored.jsonl again.jsonl"""
import json, sys, math, statistics as st
a,b=[{r["key"]:r for r in map(json.loads,open(p))} for p in sys.argv[1:3]]
both=[k for k in b if k in a]
print(len(a),len(b),"both",len(both),"only again",len(b)-len(both))
def acc(r): return r["metrics"].get("accuracy", r["metrics"].get("validation_accuracy"))
da,dr,ident,div=[],[],0,0
worst=[]
for k in both:
    x,y=a[k],b[k]
    if ("diverged_in_epoch" in x["metrics"])!=("diverged_in_epoch" in y["metrics"]):
        div+=1; print("diverged differs",x["method"],x["network"],x["config"]["learning_rate"],x["metrics"].get("diverged_in_epoch"),y["metrics"].get("diverged_in_epoch"), acc(x),acc(y)); continue
    if acc(x) is None: continue
    d=abs(acc(x)-acc(y)); da.append(d)
    rx,ry=[r["landscape"].get("end",{}).get("roughness") for r in (x,y)]
    e=abs(math.log(rx/ry)) if rx and ry else float("nan"); dr.append(e)
    worst.append((d,e,x["method"],x["network"],x["config"]["learning_rate"],x["config"]["method"]["strength"],acc(x),acc(y),rx,ry))
    strip=lambda r:(r["metrics"],r["landscape"],r["curves"]["accuracy"],r["curves"]["loss"])
    ident+=strip(x)==strip(y)
q=lambda v,p: sorted(v)[min(len(v)-1,int(p*len(v)))]
print("identical",ident,"diverged differs",div)
print("acc diff median",q(da,.5),"p95",q(da,.95),"max",max(da),"over .03:",sum(d>.03 for d in da))
dr=[d for d in dr if d==d]
print("log rough median",q(dr,.5),"p95",q(dr,.95),"max",max(dr),"over .3:",sum(d>.3 for d in dr))
for w in sorted(worst,reverse=True)[:8]: print(w)
