import sys
from playwright.sync_api import sync_playwright
root,out=sys.argv[1],sys.argv[2]
import shutil
exe=shutil.which("chromium") or shutil.which("google-chrome")
with sync_playwright() as p:
    b=p.chromium.launch(executable_path=exe,args=["--no-sandbox"])
    for spec in sys.argv[3:]:
        page,mode,w=spec.split(":")
        c=b.new_context(viewport={"width":int(w),"height":1000},color_scheme=mode)
        t=c.new_page(); t.goto(f"file://{root}/book/{page}.html",timeout=120000); t.wait_for_timeout(4000)
        t.screenshot(path=f"{out}/{page}_{mode}_{w}.png",full_page=True)
        print(page,t.evaluate("[document.documentElement.scrollWidth,innerWidth,document.documentElement.scrollHeight]"))
    b.close()
