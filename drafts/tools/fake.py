"""Made-up records of the neighbours' sweeps, for trying cells: PYTHONPATH=<clone> python fake.py FOLDER"""
import copy, dataclasses, json, random, sys
from pathlib import Path
from pilcro.experiments import lab
from pilcro.experiments.train import train
random.seed(0)
out=Path(sys.argv[1]); out.mkdir(parents=True,exist_ok=True)
for name in lab.TIERS["neighbours"]:
    e=lab.EXPERIMENTS[name]; lines=[]; done={}
    for s in e.settings:
        tiny=dataclasses.replace(s,images=100,epochs=2,batch=50,evaluate_on="test",learning_rate=.05)
        base=train(tiny)
        if name=="locality": print(base["metrics"].keys(), base["landscape"]["end"].keys())
        def fake(method,run):
            r=copy.deepcopy(base); c=run.as_dict()
            shift=random.Random(method).gauss(0,.02)+random.gauss(0,.01)
            r["config"]=c; r["key"]=run.key; r["seed"]=run.seed
            n=run.epochs
            r["curves"]={"loss":[2/(i+1) for i in range(n)],"accuracy":[round(min(.95,.3+.3*i/n+shift),4) for i in range(n)],"seconds":[.5]*n,"processor_seconds":[round(.4+random.random()*.1,3) for _ in range(n)]}
            m=r["metrics"]; m["validation_accuracy"]=r["curves"]["accuracy"][-1]
            def j(x):
                if isinstance(x,float): return round(max(0,x*(1+shift*3+random.gauss(0,.03))),4)
                if isinstance(x,list): return [j(y) for y in x]
                if isinstance(x,dict): return {k:j(y) for k,y in x.items()}
                return x
            if run.evaluate_on=="validation": r["metrics"]={"validation_accuracy":m["validation_accuracy"]}
            else:
                r["metrics"]={k:j(v) for k,v in m.items()}; r["metrics"]["accuracy"]=round(.5+shift,4)
            for when in ("start","middle","end"):
                l=r["landscape"].setdefault(when,copy.deepcopy(r["landscape"].get("end") or r["landscape"]["start"]))
                for k in list(l):
                    if k!="thumbnail": l[k]=j(l[k])
            return {"experiment":name,"method":method,**r}
        if not any(k.startswith("thumb") for k in base["landscape"]["end"]): print("no thumb")
        for method,run in lab.trials(e):
            if all(getattr(run,k)==getattr(s,k) for k in ("dataset","images","network")):
                r=fake(method,run); lines.append(r); done[r["key"]]=r
    for method,run in lab.finals(e,done):
        s=next(s for s in e.settings if (s.dataset,s.images,s.network)==(run.dataset,run.images,run.network))
        lines.append((method,run,s))
    # second pass for finals with the right base
    full=[l for l in lines if isinstance(l,dict)]
    for s in e.settings:
        tiny=dataclasses.replace(s,images=100,epochs=2,batch=50,evaluate_on="test",learning_rate=.05)
        base=train(tiny)
        for l in lines:
            if isinstance(l,tuple) and l[2]==s:
                full.append(fake(l[0],l[1]))
    (out/f"{name}.jsonl").write_text("".join(json.dumps(l,ensure_ascii=False)+"\n" for l in full))
    print(name,len(full),flush=True)
